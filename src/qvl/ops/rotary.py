"""Rotary embeddings: M-RoPE in the language model, 2-D rotary in the vision tower. Tables are float32 always."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import paddle


def inverse_frequencies(dim: int, theta: float) -> npt.NDArray[np.float32]:
    """theta ** (-2i / dim) for i in 0 .. dim/2 - 1, float32 [dim/2]."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def mrope_axes(section: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which position axis (0 temporal, 1 height, 2 width) each frequency follows: int64 [sum(section)]."""
    return np.repeat(np.arange(len(section), dtype=np.int64), section)


def mrope_angles(position_ids: paddle.Tensor, inv_freq: paddle.Tensor, axes: paddle.Tensor) -> paddle.Tensor:
    """The angle of every token and frequency.

    position_ids: int64 [3, N]; inv_freq: float32 [D/2]; axes: int64 [D/2]. Returns float32 [N, D/2].
    """
    per_frequency = paddle.gather(position_ids.astype("float32"), axes, axis=0)  # [D/2, N]
    return per_frequency.transpose([1, 0]) * inv_freq


def half_tables(angles: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Cosines and sines float32 [N, D/2] of angles, as the ops take them that turn what they read on the way."""
    return paddle.cos(angles), paddle.sin(angles)


def rotary_tables(angles: paddle.Tensor, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    """What `apply_rotary` multiplies by, float32 [N, heads, D] each, from angles float32 [N, D/2].

    Written out for every head, and with the sign of the rotation in the sines: broadcasting over heads makes a product
    20 times slower on a CPU, and the tables serve every layer.
    """
    return spread(*half_tables(angles), heads)


def spread(cos: paddle.Tensor, sin: paddle.Tensor, heads: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The tables of `rotary_tables` from those of `half_tables`."""
    tables = paddle.stack([paddle.concat([cos, cos], axis=-1), paddle.concat([-sin, sin], axis=-1)])
    cos, sin = tables.unsqueeze(2).tile([1, 1, heads, 1]).unbind(axis=0)
    return cos, sin


def vision_rotary_angles(
    grid_thw: tuple[int, int, int], head_dim: int, spatial_merge_size: int, theta: float = 10_000.0
) -> npt.NDArray[np.float32]:
    """Angles of each patch of a picture or clip, float32 [t*h*w, head_dim/2]: half by row, half by column.

    Patches are in merge order, where the four patches of one token lie together; every slice has the same angles.
    """
    t, h, w = grid_thw
    m = spatial_merge_size
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    inv_freq = inverse_frequencies(head_dim // 2, theta)

    def angles(index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        merged = index.reshape(h // m, m, w // m, m).transpose(0, 2, 1, 3).reshape(-1)
        return np.outer(merged.astype(np.float32), inv_freq)

    return np.tile(np.concatenate([angles(rows), angles(columns)], axis=1), (t, 1))


def apply_rotary(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """Rotate each head by the half-split form: dimension i pairs with i + D/2.

    x: [N, heads, D]; cos, sin: float32 [N, heads, D] of `rotary_tables`. Computed in float32, returned in x's dtype.
    """
    wide = x.astype("float32")
    first, second = paddle.chunk(wide, 2, axis=-1)
    return (wide * cos + paddle.concat([second, first], axis=-1) * sin).astype(x.dtype)
