"""What is done with logits: the loss and its gradient, and the choice of a token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tests.gpu.kernels.bench import calls, traffic
from tests.gpu.kernels.bench.calls import Launch
from tests.gpu.kernels.bench.cases import Case, Operands
from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.sizes import Model, Sizes
from tests.gpu.kernels.devices import TorchBuffer
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_cross_entropy import CrossEntropyParams

DTYPE = "bfloat16"


def cases(side: Side, sizes: Sizes) -> Iterator[Case]:
    for model in sizes.steps:
        for gradient in (True, False):
            yield _cross_entropy(side, model, sizes.many[0], gradient=gradient)
        for rows in sizes.few:
            yield _greedy(side, model, rows)
            yield _drawn(side, model, rows)


def _cross_entropy(side: Side, model: Model, rows: int, *, gradient: bool) -> Case:
    vocab = model.vocab

    def make() -> Operands:
        logits = side.random(rows, vocab)
        targets = TorchBuffer(torch.randint(0, vocab, (rows,), device=side.where))
        losses = side.empty((rows,), "float32")
        pointers = (logits.pointer, targets.pointer, None, losses.pointer)
        params = CrossEntropyParams(CODES[DTYPE], *pointers, rows, vocab, vocab, 1.0 / rows, gradient)
        launch = Launch(side, "cross_entropy", params, logits, targets, losses)
        # In memory of its own, since ours become their gradient.
        given = (logits.tensor.clone(), targets.tensor)
        return Operands(launch, given, (losses.tensor, logits.tensor)[: 2 if gradient else 1])

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def both(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        likely = torch.softmax(logits.float(), dim=-1)
        losses = -likely.gather(1, targets[:, None]).log()
        likely[torch.arange(rows, device=logits.device), targets] -= 1
        return losses[:, 0], (likely / rows).to(logits.dtype)

    def fused(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # The same without an index that is written to, which the compiler could not join with the rest.
        log_likely = torch.log_softmax(logits.float(), dim=-1)
        hit = torch.arange(vocab, device=logits.device) == targets[:, None]
        losses = -torch.where(hit, log_likely, 0.0).sum(dim=-1)
        return losses, ((log_likely.exp() - hit.float()) / rows).to(logits.dtype)

    size = traffic.cross_entropy(rows, vocab, gradient=gradient)
    label = f"{rows} rows, loss{' and gradient' if gradient else ''}"
    peers = {"eager": both if gradient else loss}
    compiled = fused if gradient else loss
    return Case("cross_entropy", model.name, label, size, make, peers, compiled=compiled)


def _sampler(side: Side, model: Model, rows: int, rules: bytes) -> Operands:
    logits, tokens = side.random(rows, model.vocab, scale=3.0), side.empty((rows,), "int64")
    given = side.put(np.frombuffer(rules, np.uint8))
    launch = calls.sample(side, DTYPE, (rows, model.vocab), logits, given, tokens)
    return Operands(launch, (logits.tensor,))


def _greedy(side: Side, model: Model, rows: int) -> Case:
    def eager(logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def make() -> Operands:
        return _sampler(side, model, rows, calls.rules(rows))

    size = traffic.sample(rows, model.vocab)
    return Case("sample", model.name, f"{rows} rows, greedy", size, make, {"eager": eager}, compiled=eager)


def _drawn(side: Side, model: Model, rows: int) -> Case:
    """torch's side is what transformers does: sorted for top_p."""
    temperature, top_k, top_p = 0.8, 50, 0.95

    def eager(logits: Tensor) -> Tensor:
        scores = logits.float() / temperature
        scores = scores.masked_fill(scores < torch.topk(scores, top_k).values[..., -1, None], -torch.inf)
        ascending, order = torch.sort(scores, descending=False)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        scores = scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
        likely = scores.softmax(dim=-1)
        # torch.multinomial waits for the device, which no graph can hold.
        return (likely / torch.empty_like(likely).exponential_(1)).argmax(dim=-1)

    def make() -> Operands:
        rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "uniform": 0.37}
        return _sampler(side, model, rows, calls.rules(rows, **rule))

    size = traffic.sample(rows, model.vocab)
    return Case("sample", model.name, f"{rows} rows, top_k and top_p", size, make, {"eager": eager})
