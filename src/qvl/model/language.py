"""The language model: token embeddings in, hidden states out, over sequences laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from qvl import ops
from qvl.model.config import ModelConfig
from qvl.model.linear import BiasedLinear, PlainLinear, is_bare
from qvl.model.packed import Projection, gated_mlp
from qvl.model.part import Part, PartialEmbedding
from qvl.ops.rotary import inverse_frequencies, mrope_axes

# Cosines and sines; on a GPU also how many tokens each cache held before, in its memory.
Rotary = tuple[paddle.Tensor, ...]


class KeyValueCache(Protocol):
    """What the model needs of a cache, one for each sequence. It belongs to the caller, never to a layer."""

    def append(self, layer: int, k: paddle.Tensor, v: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Store the keys and values [n, kv_heads, D] of the newest tokens; return those of all tokens so far."""
        ...

    def claim(self, layer: int, tokens: int) -> ops.CacheRows:
        """Count so many new tokens as stored, and give the memory they are to be written to."""
        ...

    def __len__(self) -> int:
        """Tokens stored by every layer."""
        ...


class RMSNorm(nn.Layer):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return ops.rms_norm(x, self.weight, self.epsilon)


class Attention(nn.Layer):
    def __init__(self, config: ModelConfig, layer: int, impl: ops.AttentionImpl, part: Part) -> None:
        super().__init__()
        self.layer, self.head_dim, self.impl, self.part = layer, config.head_dim, impl, part
        self.num_heads = len(part.query_heads(config))
        width, kv_width = self.num_heads * config.head_dim, len(part.key_heads(config)) * config.head_dim
        self.q_proj = BiasedLinear(config.hidden_size, width)
        self.k_proj = BiasedLinear(config.hidden_size, kv_width)
        self.v_proj = BiasedLinear(config.hidden_size, kv_width)
        self.o_proj: nn.Layer = PlainLinear(width, config.hidden_size)
        # In a quantised model this stands for the first three, and what takes a residual adds it.
        self.qkv_proj: Projection | None = None

    def forward(
        self,
        x: paddle.Tensor,
        rotary: Rotary,
        lengths: Sequence[int],
        caches: Sequence[KeyValueCache] | None,
        residual: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        added = () if residual is None else (residual,)
        x = self.part.shared(x)
        return self.part.summed(self.o_proj(self._attended(x, rotary, lengths, caches), *added))

    def _attended(
        self,
        x: paddle.Tensor,
        rotary: Rotary,
        lengths: Sequence[int],
        caches: Sequence[KeyValueCache] | None,
    ) -> paddle.Tensor:
        """What the heads give, side by side: [N, heads * D]."""
        n = x.shape[0]
        if caches is not None and rotary[0].ndim == 2:
            claimed = [cache.claim(self.layer, m) for m, cache in zip(lengths, caches, strict=True)]
            projected = ops.Projected(*self._projected(x, apart=len(rotary) == 3), *rotary)
            return ops.cached_attention(projected, claimed, lengths, impl=self.impl)
        rows = self._rows(x)
        if rotary[0].ndim == 2:
            return ops.rotary_attention(rows, rotary[0], rotary[1], self.head_dim, lengths, impl=self.impl)
        qk, v = paddle.concat(rows[:2], axis=-1).reshape([n, -1, self.head_dim]), rows[2]
        qk = ops.apply_rotary(qk, rotary[0], rotary[1])
        q, k = paddle.split(qk, [self.num_heads, qk.shape[1] - self.num_heads], axis=1)
        v = v.reshape([n, -1, self.head_dim])
        if caches is None:
            out = ops.varlen_attention(q, k, v, [(m, m) for m in lengths], causal=True, impl=self.impl)
        else:
            out = self._with_caches(q, k, v, lengths, caches)
        return out.reshape([n, -1])

    def _projected(self, x: paddle.Tensor, apart: bool) -> tuple[Any, ...]:
        """What `ops.Projected` begins with. apart: biases are left to the op, which saves a GPU a launch for each."""
        if self.qkv_proj is not None:
            return self.qkv_proj(x), None, None, None
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if apart and all(is_bare(layer) for layer in layers):
            return *(paddle.matmul(x, layer.weight) for layer in layers), tuple(layer.bias for layer in layers)
        return *(layer(x) for layer in layers), None

    def _rows(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries, keys and values, each by itself."""
        if self.qkv_proj is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = paddle.split(self.qkv_proj(x), list(self.qkv_proj.widths), axis=-1)
        return q, k, v

    def _with_caches(
        self,
        q: paddle.Tensor,
        k: paddle.Tensor,
        v: paddle.Tensor,
        lengths: Sequence[int],
        caches: Sequence[KeyValueCache],
    ) -> paddle.Tensor:
        """Each sequence attends to its own cache; with one sequence nothing is cut or joined."""
        outputs = []
        start = 0
        for n, cache in zip(lengths, caches, strict=True):
            rows = slice(start, start + n)
            alone = len(lengths) == 1
            keys, values = cache.append(self.layer, k if alone else k[rows], v if alone else v[rows])
            span = [(n, keys.shape[0])]
            outputs.append(
                ops.varlen_attention(q if alone else q[rows], keys, values, span, causal=True, impl=self.impl)
            )
            start += n
        return outputs[0] if len(outputs) == 1 else paddle.concat(outputs, axis=0)


class MLP(nn.Layer):
    def __init__(self, config: ModelConfig, part: Part) -> None:
        super().__init__()
        self.part = part
        width = len(part.columns(config))
        self.gate_proj = PlainLinear(config.hidden_size, width)
        self.up_proj = PlainLinear(config.hidden_size, width)
        self.down_proj: nn.Layer = PlainLinear(width, config.hidden_size)
        self.gate_up_proj: Projection | None = None  # as `Attention.qkv_proj`

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> paddle.Tensor:
        if self.gate_up_proj is not None:
            return gated_mlp(self.gate_up_proj, self.down_proj, "swiglu", x, residual)
        x = self.part.shared(x)
        return self.part.summed(self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x))))


class DecoderLayer(nn.Layer):
    def __init__(self, config: ModelConfig, layer: int, impl: ops.AttentionImpl, part: Part) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, impl, part)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, part)

    def forward(
        self,
        x: paddle.Tensor,
        rotary: Rotary,
        lengths: Sequence[int],
        caches: Sequence[KeyValueCache] | None,
    ) -> paddle.Tensor:
        norm = self.post_attention_layernorm
        if self.mlp.gate_up_proj is not None:
            x = self.self_attn(self.input_layernorm(x), rotary, lengths, caches, x)
            return self.mlp(norm(x), x)
        attended = self.self_attn(self.input_layernorm(x), rotary, lengths, caches)
        x, normal = ops.add_rms_norm(x, attended, norm.weight, norm.epsilon)
        return x + self.mlp(normal)


class LanguageModel(nn.Layer):
    def __init__(self, config: ModelConfig, impl: ops.AttentionImpl, part: Part) -> None:
        super().__init__()
        self.embed_tokens = (
            nn.Embedding(config.vocab_size, config.hidden_size) if part.size == 1 else PartialEmbedding(config, part)
        )
        self.layers = nn.LayerList([DecoderLayer(config, i, impl, part) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.recompute = False  # in training: keep a layer's input only, and run it again in the backward pass
        # Constants, not weights: they are in no checkpoint and stay float32 and int64.
        self._inv_freq = inverse_frequencies(config.head_dim, config.rope_theta)
        self._axes = mrope_axes(config.mrope_section)
        self._constants: dict[str, tuple[paddle.Tensor, paddle.Tensor]] = {}  # the same, on each device
        self._rotated_heads = len(part.query_heads(config)) + len(part.key_heads(config))

    def forward(
        self,
        hidden: paddle.Tensor,
        position_ids: paddle.Tensor,
        lengths: Sequence[int],
        caches: Sequence[KeyValueCache] | None = None,
        starts: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """hidden: [N, hidden_size]; position_ids: int64 [3, N]; lengths: new tokens of each sequence, N in all.

        starts: where the caches' lengths are in a GPU's memory already, int32, one for each.
        """
        rotary = self._rotary(hidden, position_ids, caches, starts)
        for layer in self.layers:
            if self.recompute and self.training:
                # Not the reentrant form: with frozen embeddings no input asks for a gradient, and it would give none.
                hidden = recompute(layer, hidden, rotary, lengths, caches, use_reentrant=False)
            else:
                hidden = layer(hidden, rotary, lengths, caches)
        return self.norm(hidden)

    def _rotary(
        self,
        hidden: paddle.Tensor,
        position_ids: paddle.Tensor,
        caches: Sequence[KeyValueCache] | None,
        starts: paddle.Tensor | None,
    ) -> Rotary:
        angles = ops.mrope_angles(position_ids, *self._on(hidden))
        # One op from the projections to the rows of attention, where there is a body for it, takes the shorter tables.
        fused = ops.works_natively(hidden) if caches is None else ops.runs_natively(hidden)
        if not fused:
            return ops.rotary_tables(angles, self._rotated_heads)
        tables = ops.half_tables(angles)
        if caches is None or ops.gpu_for(hidden) is None:
            return tables
        return *tables, ops.starts_of([len(cache) for cache in caches]) if starts is None else starts

    def _on(self, hidden: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Frequencies and axes where the hidden states are. Made once: a CUDA graph may not copy from the host."""
        if not paddle.in_dynamic_mode():
            return paddle.to_tensor(self._inv_freq), paddle.to_tensor(self._axes)
        place = str(hidden.place)
        if place not in self._constants:
            self._constants[place] = (paddle.to_tensor(self._inv_freq), paddle.to_tensor(self._axes))
        return self._constants[place]
