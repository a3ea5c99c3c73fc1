"""A decode step in a CUDA graph: what the CPU has to start once is captured, and then replayed with one call.

A step of one token is some hundred launches, which take longer than a small model's weights to read. A graph is fixed:
sizes and addresses stay as they were captured. So one is for the caches of certain sequences, and as long as they lie
where they are; what changes from step to step, tokens, positions and how many tokens the caches hold, is read from one
small tensor. Drafts, prompts and whatever cannot be captured take the plain path, whose arithmetic is the same.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from qvl.errors import UsageError
from qvl.model.device import Placement
from qvl.model.qwen2_vl import ModelInputs, Qwen2VL
from qvl.ops import cuda, reads_starts
from qvl.ops.cuda_body import most_keys
from qvl.runtime.cache import KVCache
from qvl.runtime.decode import Feed

VARIABLE = "QVL_CUDA_GRAPH"
# Steps in a row with the same caches before they are captured. A capture takes longer than a plain step, and what a
# library sets up at its first call must have been set up.
_PLAIN_STEPS = 2
_KEPT = 8  # graphs, each with memory of its own for what is between layers

Run = Callable[[], paddle.Tensor]
# Captures what a function does on the device. Gives what does it again, and the function's result, which is then
# written to the same memory.
Capture = Callable[[Run], tuple[Callable[[], None], paddle.Tensor]]


def why_not(placement: Placement) -> str:
    """Why decode steps are not captured; nothing where they are. Raises UsageError for a variable set to nonsense."""
    wish = os.environ.get(VARIABLE) or "1"
    if wish not in ("0", "1"):
        raise UsageError(f"{VARIABLE}={wish} is not known; 0 or 1")
    if wish == "0":
        return f"{VARIABLE}=0"
    if not placement.device.startswith("gpu"):
        return "they are for GPUs"
    reason = cuda.why_not()
    return f"they need the native ops for a GPU: {reason}" if reason else ""


def captured(run: Run) -> tuple[Callable[[], None], paddle.Tensor]:
    """By Paddle, on its current device. Nothing has run when this returns."""
    from paddle.device.cuda.graphs import CUDAGraph

    graph = CUDAGraph(paddle.CUDAPlace(int(paddle.device.get_device().partition(":")[2] or 0)))
    graph.capture_begin()
    try:
        out = run()
    except BaseException:
        with contextlib.suppress(Exception):  # which may well complain of the same
            graph.capture_end()
        raise
    graph.capture_end()
    return graph.replay, out


@dataclass(frozen=True, eq=False)
class _Step:
    """board: int64 [3, sequences], which is read anew by every replay: tokens, positions, tokens held."""

    caches: tuple[weakref.ref[KVCache], ...]
    board: paddle.Tensor
    place: int
    replay: Callable[[], None]
    out: paddle.Tensor


_Key = tuple[tuple[object, ...], int]


class StepGraphs:
    """The graphs of one model. reason: why there will be no more of them, after one that failed."""

    def __init__(self, model: Qwen2VL, capture: Capture = captured) -> None:
        self.reason = ""
        self.replays = 0
        self._model, self._capture = model, capture
        self._steps: OrderedDict[_Key, _Step] = OrderedDict()
        self._latest: tuple[_Key | None, int] = (None, 0)

    def logits(self, feeds: Sequence[Feed]) -> paddle.Tensor | None:
        """Run a step and give its logits float32 [sequences, vocab_size], good until the next one; None: take the plain
        path, nothing has been done.
        """
        caches = [feed.cache for feed in feeds if isinstance(feed.cache, KVCache) and len(feed.token_ids) == 1]
        if self.reason or len(caches) < len(feeds) or any(len(cache) == cache.capacity for cache in caches):
            return None
        dtype = self._model.model.norm.weight.dtype
        if not all(reads_starts(dtype, cache.dtype, cache.head_dim) for cache in caches):
            return None
        key = (tuple(cache.memory for cache in caches), most_keys(max(map(len, caches)) + 1))
        if key not in self._steps and not (self._is_due(key) and self._add(key, caches)):
            return None
        step = self._steps[key]
        self._steps.move_to_end(key)
        rows = [feed.token_ids[0] for feed in feeds], [feed.position for feed in feeds], [len(c) for c in caches]
        step.board.set_value(np.asarray(rows, np.int64))
        if step.board.data_ptr() != step.place:
            self._give_up("what a graph reads has moved")
            return None
        step.replay()
        self.replays += 1
        for cache in caches:
            cache.count(1)
        return step.out

    def _is_due(self, key: _Key) -> bool:
        """Whether this step has come often enough."""
        latest, times = self._latest
        self._latest = (key, times + 1 if latest == key else 1)
        return self._latest[1] > _PLAIN_STEPS

    def _add(self, key: _Key, caches: Sequence[KVCache]) -> bool:
        """Capture a step. Does no step: the caches are as they were."""
        count, held = len(caches), [len(cache) for cache in caches]
        board = paddle.to_tensor(np.asarray([[0] * count, held, held], np.int64))
        model = self._model

        def run() -> paddle.Tensor:
            inputs = ModelInputs(
                input_ids=board[0],
                position_ids=board[1:2].expand([3, count]),
                lengths=[1] * count,
                starts=board[2].astype("int32"),
            )
            return model(inputs, caches)

        try:
            replay, out = self._capture(run)
        except Exception as error:
            self._give_up(f"a capture failed: {' '.join(str(error).split())[:200]}")
            return False
        finally:
            for cache, tokens in zip(caches, held, strict=True):
                cache.truncate(tokens)
        self._drop_stale()
        self._steps[key] = _Step(tuple(map(weakref.ref, caches)), board, board.data_ptr(), replay, out)
        return True

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._steps.clear()
        warnings.warn(f"decode steps are launched one by one: {reason}", stacklevel=4)

    def _drop_stale(self) -> None:
        """Those whose caches are gone or have grown, and the longest unused of too many."""
        for key, step in list(self._steps.items()):
            memories = [cache.memory if (cache := kept()) is not None else None for kept in step.caches]
            if memories != list(key[0]):
                del self._steps[key]
        while len(self._steps) >= _KEPT:
            self._steps.popitem(last=False)
