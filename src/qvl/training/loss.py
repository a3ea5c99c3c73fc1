"""The head and its cross-entropy as one, a chunk of tokens at a time, so that whole logits never exist.

For 8192 supervised tokens and 151 936 words, logits, their softmax and their gradient would take 15 GB in float32. Here
each chunk's gradient is worked out while its logits are at hand, and only the gradients of the inputs are kept.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle.autograd import PyLayer

from qvl import ops
from qvl.model.part import Part


def linear_cross_entropy(
    hidden: paddle.Tensor,
    weight: paddle.Tensor,
    targets: paddle.Tensor,
    *,
    tied: bool,
    chunk: int = 256,
    low_rank: tuple[paddle.Tensor, paddle.Tensor] | None = None,
    part: Part | None = None,
    first_word: int = 0,
) -> paddle.Tensor:
    """Sum over tokens of -log softmax(hidden W)[target], float32 [].

    hidden: [K, H], the states that predict; targets: int64 [K], every one of them a word. weight: [H, V], or [V, H]
    with `tied` (the embedding). chunk: tokens at a time. Gradients flow to hidden and, if it learns, to weight.
    low_rank: [K, r] and [r, V], whose product is added to the logits; gradients flow to both.
    part: where several hold some of the words each, weight (and the second of low_rank) being those from `first_word`
    on; all have the same hidden and targets, and get the same loss and the same gradient of hidden. Of the first of
    low_rank each gets its own share of the gradient.
    """
    return _LinearCrossEntropy.apply(
        hidden, weight, targets - first_word, *(low_rank or ()), tied=tied, chunk=chunk, part=part or Part()
    )


class _LinearCrossEntropy(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: paddle.Tensor,
        weight: paddle.Tensor,
        targets: paddle.Tensor,
        low: paddle.Tensor | None = None,
        low_weight: paddle.Tensor | None = None,
        *,
        tied: bool,
        chunk: int,
        part: Part,
    ) -> paddle.Tensor:
        learns = not weight.stop_gradient
        total = paddle.zeros([], "float32")
        grad_weight = paddle.zeros(weight.shape, "float32") if learns else None
        grad_low_weight = None if low_weight is None else paddle.zeros(low_weight.shape, "float32")
        grads, low_grads = [], []
        for start in range(0, hidden.shape[0], chunk):
            rows, wanted = hidden[start : start + chunk], targets[start : start + chunk]
            logits = paddle.matmul(rows, weight, transpose_y=tied)
            if low is not None:
                low_rows = low[start : start + chunk]
                logits = logits.astype("float32")
                logits += paddle.matmul(low_rows, low_weight).astype("float32")
            loss, slope = _softmax_slope(logits, wanted, part)
            total = total + loss
            slope = slope.astype(hidden.dtype)
            grads.append(paddle.matmul(slope, weight, transpose_y=not tied))
            if grad_low_weight is not None:
                low_grads.append(paddle.matmul(slope, low_weight, transpose_y=True))
                grad_low_weight += paddle.matmul(low_rows, slope, transpose_x=True).astype("float32")
            if grad_weight is not None:
                first, second = (slope, rows) if tied else (rows, slope)
                if first.dtype == grad_weight.dtype:
                    grad_weight.addmm_(first.transpose([1, 0]), second)  # no product as large as the weight beside it
                else:
                    grad_weight += paddle.matmul(first, second, transpose_x=True).astype("float32")
        # In one sum: each word has its share in the gradient of what came in.
        whole = part.summed(paddle.concat(grads, axis=0).detach())
        ctx.save_for_backward(whole, *([paddle.concat(low_grads, axis=0).detach()] if low_grads else ()))
        ctx.grad_weights = (
            None if grad_weight is None else grad_weight.astype(weight.dtype),
            None if low_weight is None or grad_low_weight is None else grad_low_weight.astype(low_weight.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        inputs = [saved * grad.astype(saved.dtype) for saved in ctx.saved_tensor()]
        weights, ctx.grad_weights = ctx.grad_weights, None
        for weight in weights:
            if weight is not None:
                weight.multiply_(grad.astype(weight.dtype))
        made = (inputs[0], weights[0], None)
        return made if len(inputs) == 1 else (*made, inputs[1], weights[1])


def _softmax_slope(logits: paddle.Tensor, targets: paddle.Tensor, part: Part) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The summed loss of a chunk of logits [n, V], and its gradient with respect to them: softmax minus one-hot.

    The logits are used up. targets: counted from this part's first word, of which it may have none.
    """
    gpu = ops.gpu_for(logits) if part.size == 1 else None
    if gpu is not None:
        return gpu.cross_entropy(logits, targets).sum(), logits
    logits = logits.astype("float32")
    index = targets.unsqueeze(-1)
    top = logits.max(axis=-1, keepdim=True)
    own = paddle.ones_like(top)
    if part.size > 1:
        paddle.distributed.all_reduce(top, paddle.distributed.ReduceOp.MAX, group=part.group)
        own = paddle.logical_and(index >= 0, index < logits.shape[-1]).astype("float32")
        index = index.clip(0, logits.shape[-1] - 1)
    wanted = part.summed(paddle.take_along_axis(logits, index, axis=-1) * own)
    slope = logits.subtract_(top).exp_()  # in place: a chunk of logits is the largest array there is
    sums = part.summed(slope.sum(axis=-1, keepdim=True))
    loss = (paddle.log(sums) + top - wanted).sum()
    slope.divide_(sums)
    return loss, paddle.put_along_axis(slope, index, -own, axis=-1, reduce="add")
