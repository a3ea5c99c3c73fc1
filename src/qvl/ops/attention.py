"""Attention over sequences laid end to end, without padding and without ever holding a whole score matrix.

One function serves the language model (causal, with or without earlier keys in a cache) and the vision tower (each
temporal slice of each picture is a sequence of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from qvl.ops.bodies import dense, gpu_for, learner_for, learns_natively, module_for
from qvl.ops.cuda_body import Body
from qvl.ops.gradients import Attention, AttentionPlan, Rotation
from qvl.ops.rotary import apply_rotary, spread

# "composed" runs anywhere, with the native body where there is one. "rounded" is the same where q, k, v and the weights
# may be rounded to bfloat16 on their way, which the native body does on CPUs whose tile unit makes that 2 to 3 times
# faster. "flash" is Paddle's FlashAttention, for float16 and bfloat16 on a GPU.
AttentionImpl = Literal["composed", "rounded", "flash"]

# Scores held at a time by the composed body; 8 to 32 MiB are equally fast on a CPU. For a 2044x1372 picture, with its
# 14308 patches, the scores of one head in one matrix would take 0.8 GiB, those of all heads 12 GiB.
SCORE_BYTES = 16 * 1024 * 1024
_MIN_ROWS = 16


def varlen_attention(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    lengths: Sequence[tuple[int, int]],
    *,
    causal: bool,
    impl: AttentionImpl = "composed",
) -> paddle.Tensor:
    """softmax(q k^T / sqrt(D)) v within each sequence.

    q: [N, heads, D]; k, v: [M, kv_heads, D], heads a multiple of kv_heads; lengths: (queries, keys) of each sequence,
    adding up to N and M. causal: the last query sees every key, the one before it all but one, and so on.
    Returns [N, heads, D] in q's dtype; softmax in float32.
    """
    dim = q.shape[-1]
    if impl == "flash" and dim % 8 == 0 and dim <= 256:  # the head sizes FlashAttention has
        return _flash(q, k, v, lengths, causal)
    module = module_for(q, k, v)
    if module is not None and _native_head(dim):
        return module.attention(q, k, v, list(lengths), causal, impl == "rounded")
    if learns_natively(q, k, v) and _native_head(dim):
        plan = AttentionPlan(q.shape[1], k.shape[1], lengths, causal)
        return Attention.apply(plan, q, k, v, None, None)
    if len(lengths) == 1:
        return _composed(q, k, v, causal)
    queries, keys = [n for n, _ in lengths], [m for _, m in lengths]
    # Split, not sliced: the gradient of a slice is a tensor as long as all sequences together, one for each of them.
    parts = zip(paddle.split(q, queries), paddle.split(k, keys), paddle.split(v, keys), strict=True)
    return paddle.concat([_composed(q, k, v, causal) for q, k, v in parts], axis=0)


def vision_attention(
    qkv: paddle.Tensor,
    cos: paddle.Tensor,
    sin: paddle.Tensor,
    heads: int,
    lengths: Sequence[int],
    *,
    impl: AttentionImpl = "composed",
) -> paddle.Tensor:
    """Rotary and full attention within each slice of the vision tower.

    qkv: [N, 3 * heads * D], q, k and v one after the other; cos, sin: float32 [N, D/2] of `half_tables`; lengths: rows
    of each slice, adding up to N. Returns [N, heads * D] in qkv's dtype. Raises ValueError when sizes disagree.
    """
    module = module_for(qkv, cos) if impl != "flash" else None
    n, width = qkv.shape[0], qkv.shape[1] // 3
    if module is not None and _native_head(width // heads):
        return module.vision_attention(dense(qkv), cos, sin, heads, list(lengths), impl == "rounded")
    if impl != "flash" and learns_natively(qkv, cos, sin) and _native_head(width // heads):
        plan = AttentionPlan(heads, heads, [(m, m) for m in lengths], causal=False)
        return Attention.apply(plan, qkv, None, None, cos, sin)
    # q and k are turned as one.
    qk, v = paddle.split(qkv, [2 * width, width], axis=-1)
    qk = turned(qk.reshape([n, 2 * heads, -1]), cos, sin)
    q, k, v = qk[:, :heads], qk[:, heads:], v.reshape([n, heads, -1])
    out = varlen_attention(q, k, v, [(m, m) for m in lengths], causal=False, impl=impl)
    return out.reshape([n, width])


def rotary_attention(
    projected: tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor],
    cos: paddle.Tensor,
    sin: paddle.Tensor,
    head_dim: int,
    lengths: Sequence[int],
    *,
    impl: AttentionImpl = "composed",
) -> paddle.Tensor:
    """Rotary and causal attention of whole sequences, from the rows of the projections on: training's own.

    projected: q [N, heads * D], k and v [N, kv_heads * D]; cos, sin: float32 [N, D/2] of `half_tables`; lengths: tokens
    of each sequence, adding up to N. Returns [N, heads * D]. Raises ValueError when sizes disagree.
    """
    q, k, v = projected
    n, heads, kv_heads = q.shape[0], q.shape[1] // head_dim, k.shape[1] // head_dim
    spans = [(m, m) for m in lengths]
    if impl != "flash" and learns_natively(q, k, v, cos, sin) and _native_head(head_dim):
        return Attention.apply(AttentionPlan(heads, kv_heads, spans, causal=True), q, k, v, cos, sin)
    qk = paddle.concat([q, k], axis=-1).reshape([n, heads + kv_heads, head_dim])
    qk = turned(qk, cos, sin)
    q, k = paddle.split(qk, [heads, kv_heads], axis=1)
    v = v.reshape([n, kv_heads, head_dim])
    return varlen_attention(q, k, v, spans, causal=True, impl=impl).reshape([n, heads * head_dim])


def turned(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """Each head of x [N, heads, D] turned by the tables of `half_tables`. May be x, written over: it is used up."""
    gpu = gpu_for(x)
    if gpu is not None and _turns(x):
        gpu.rotate(x, cos, sin)
        return x
    learner = learner_for(x)
    if isinstance(learner, Body) and _turns(x):
        return Rotation.apply(learner, x, cos, sin)
    return apply_rotary(x, *spread(cos, sin, x.shape[1]))


def _turns(x: paddle.Tensor) -> bool:
    """Whether the body of a GPU turns heads of this size."""
    return bool(x.shape[2] % 8 == 0 and x.shape[2] <= 256 and x.shape[0] > 0)


def _native_head(dim: int) -> bool:
    """Whether the native bodies have heads of this size."""
    return dim % 2 == 0 and dim <= 256


def _composed(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, causal: bool) -> paddle.Tensor:
    """One sequence, a block of queries at a time. Heads that share keys are handled as more rows of one product."""
    n, heads, dim = q.shape
    m, kv_heads, _ = k.shape
    group = heads // kv_heads
    q = (q * dim**-0.5).reshape([n, kv_heads, group, dim]).transpose([1, 2, 0, 3])  # [kv, group, n, D]
    k = k.transpose([1, 2, 0])  # [kv, D, m]
    v = v.transpose([1, 0, 2])  # [kv, m, D]
    rows = max(_MIN_ROWS, SCORE_BYTES // (4 * heads * m))
    if rows < n:
        # Turned over once here, or every block's product would do it again.
        k, v = k.clone(), v.clone()
    outputs = []
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        seen = m - n + stop if causal else m  # keys beyond are masked for every query of this block
        block = q[:, :, start:stop].reshape([kv_heads, group * (stop - start), dim])
        keys, values = (k, v) if seen == m else (k[:, :, :seen], v[:, :seen])
        scores = paddle.matmul(block, keys).astype("float32")
        if causal and stop - start > 1:
            mask = _causal_mask(stop - start, seen)
            scores = scores.reshape([kv_heads, group, stop - start, seen]) + mask
            scores = scores.reshape([kv_heads, group * (stop - start), seen])
        weights = F.softmax(scores, axis=-1).astype(v.dtype)
        out = paddle.matmul(weights, values).reshape([kv_heads, group, stop - start, dim])
        outputs.append(out.transpose([2, 0, 1, 3]).reshape([stop - start, heads, dim]))
    return outputs[0] if len(outputs) == 1 else paddle.concat(outputs, axis=0)


def _causal_mask(queries: int, keys: int) -> paddle.Tensor:
    """float32 [queries, keys]: 0 where a key may be seen, -inf after it."""
    last_seen = np.arange(keys - queries, keys)[:, None]
    return paddle.to_tensor(np.where(np.arange(keys)[None, :] <= last_seen, 0.0, -np.inf).astype(np.float32))


def _flash(
    q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, lengths: Sequence[tuple[int, int]], causal: bool
) -> paddle.Tensor:
    causal = causal and any(n > 1 for n, _ in lengths)  # a lone query sees every key, masked or not
    if causal and any(n != m for n, m in lengths):
        # Whether a causal mask is aligned to the first or the last key differs between FlashAttention releases, and
        # only shows when several queries follow cached keys: that rare case takes the body whose answer is certain.
        return varlen_attention(q, k, v, lengths, causal=True, impl="composed")
    if len(lengths) == 1:  # no lengths to copy to the device, at every layer of every token
        out, _ = F.flash_attention.flash_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), causal=causal)
        return out.squeeze(0)

    def cumulative(counts: Sequence[int]) -> paddle.Tensor:
        return paddle.to_tensor(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    queries, keys = [n for n, _ in lengths], [m for _, m in lengths]
    out, _ = F.flash_attention.flash_attn_unpadded(
        q,
        k,
        v,
        cumulative(queries),
        cumulative(keys),
        max(queries),
        max(keys),
        scale=q.shape[-1] ** -0.5,
        causal=causal,
    )
    return out
