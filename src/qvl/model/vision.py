"""The vision tower: patches in, one feature of the language model's width per merged square of patches out."""

from __future__ import annotations

import paddle
from paddle import nn

from qvl import ops
from qvl.model.config import VisionConfig
from qvl.model.linear import BiasedLinear, PlainLinear
from qvl.model.packed import gated_mlp, takes_residual

LAYER_NORM_EPS = 1e-6


def _normalised(norm: nn.LayerNorm, x: paddle.Tensor) -> paddle.Tensor:
    return ops.layer_norm(x, norm.weight, norm.bias, LAYER_NORM_EPS)


class PatchEmbed(nn.Layer):
    """The 3-D convolution of the checkpoint, whose stride is its size, as one matrix product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = PlainLinear(config.patch_dim, config.embed_dim)

    def forward(self, patches: paddle.Tensor) -> paddle.Tensor:
        return self.proj(patches)


class VisionAttention(nn.Layer):
    def __init__(self, config: VisionConfig, impl: ops.AttentionImpl) -> None:
        super().__init__()
        self.num_heads, self.impl = config.num_heads, impl
        self.qkv = BiasedLinear(config.embed_dim, 3 * config.embed_dim)
        self.proj = BiasedLinear(config.embed_dim, config.embed_dim)

    def forward(
        self,
        x: paddle.Tensor,
        cos: paddle.Tensor,
        sin: paddle.Tensor,
        lengths: list[tuple[int, int]],
        residual: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        n, width = x.shape
        added = () if residual is None else (residual,)
        if cos.ndim == 2:
            slices = [rows for rows, _ in lengths]
            out = ops.vision_attention(self.qkv(x), cos, sin, self.num_heads, slices, impl=self.impl)
            return self.proj(out, *added)
        heads = self.num_heads
        # q, k and v lie one after the other; q and k are turned as one.
        qk, v = paddle.split(self.qkv(x), [2 * width, width], axis=-1)
        qk = ops.apply_rotary(qk.reshape([n, 2 * heads, -1]), cos, sin)
        q, k = paddle.split(qk, 2, axis=1)
        v = v.reshape([n, heads, -1])
        out = ops.varlen_attention(q, k, v, lengths, causal=False, impl=self.impl)
        return self.proj(out.reshape([n, width]), *added)


class VisionMLP(nn.Layer):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = BiasedLinear(config.embed_dim, config.intermediate_size)
        self.fc2 = BiasedLinear(config.intermediate_size, config.embed_dim)

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> paddle.Tensor:
        return gated_mlp(self.fc1, self.fc2, "quick_gelu", x, residual)


class VisionBlock(nn.Layer):
    def __init__(self, config: VisionConfig, impl: ops.AttentionImpl) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, epsilon=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, epsilon=LAYER_NORM_EPS)
        self.attn = VisionAttention(config, impl)
        self.mlp = VisionMLP(config)

    def forward(
        self, x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor, lengths: list[tuple[int, int]]
    ) -> paddle.Tensor:
        if takes_residual(self.mlp.fc2):
            x = self.attn(_normalised(self.norm1, x), cos, sin, lengths, x)
            return self.mlp(_normalised(self.norm2, x), x)
        attended = self.attn(_normalised(self.norm1, x), cos, sin, lengths)
        x, normal = ops.add_layer_norm(x, attended, self.norm2.weight, self.norm2.bias, LAYER_NORM_EPS)
        return x + self.mlp(normal)


class PatchMerger(nn.Layer):
    """Joins each 2x2 square of patches, which lie together, and maps it to the language model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_dim = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, epsilon=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            BiasedLinear(self.merged_dim, self.merged_dim),
            nn.GELU(),
            BiasedLinear(self.merged_dim, config.hidden_size),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.mlp(_normalised(self.ln_q, x).reshape([-1, self.merged_dim]))


class VisionTower(nn.Layer):
    def __init__(self, config: VisionConfig, impl: ops.AttentionImpl) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.LayerList([VisionBlock(config, impl) for _ in range(config.depth)])
        self.merger = PatchMerger(config)

    def forward(self, patches: paddle.Tensor, grids: list[tuple[int, int, int]]) -> paddle.Tensor:
        """Encode pictures and clips laid end to end.

        patches: [sum of t*h*w, 1176] in the tower's dtype; grids: (t, h, w) of each.
        Returns [tokens, hidden_size]. Attention stays inside each temporal slice of each picture.
        """
        angles = [ops.vision_rotary_angles(g, self.config.head_dim, self.config.spatial_merge_size) for g in grids]
        table = paddle.concat([paddle.to_tensor(a) for a in angles], axis=0)
        lengths = [(h * w, h * w) for t, h, w in grids for _ in range(t)]
        x = self.patch_embed(patches)
        # One op from the projection to the rows of attention, where there is a body for it, takes the shorter tables.
        fused = ops.works_natively(x)
        cos, sin = ops.half_tables(table) if fused else ops.rotary_tables(table, 2 * self.config.num_heads)
        for block in self.blocks:
            x = block(x, cos, sin, lengths)
        return self.merger(x)
