"""What stands for a CUDA graph where there is no GPU: it runs again what was captured, as it was at its capture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import paddle

from qvl.ops import CacheRows
from qvl.runtime.cache import KVCache


class Tape:
    """A `runtime.graph.Capture`. A replay gets the cache rows that the capture got, so whatever is not read from the
    device is stale; host memory may be neither read nor copied from, nor waited for.
    """

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, run: Callable[[], paddle.Tensor]) -> tuple[Callable[[], None], paddle.Tensor]:
        claimed: list[CacheRows] = []
        real = KVCache.claim

        def claim(cache: KVCache, layer: int, tokens: int) -> CacheRows:
            claimed.append(real(cache, layer, tokens))
            return claimed[-1]

        with _within(claim):
            out = run()
        self.captures += 1
        place = out.data_ptr()
        paddle.assign(paddle.full_like(out, float("nan")), out)  # a capture runs nothing

        def replay() -> None:
            rows = iter(claimed)
            with _within(lambda *_: next(rows)):
                again = run()
            assert next(rows, None) is None
            paddle.assign(again, out)
            assert out.data_ptr() == place

        return replay, out


@contextlib.contextmanager
def _within(claim: Callable[..., CacheRows]) -> Iterator[None]:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a graph cannot have this")

    before: list[tuple[Any, str, Any]] = []
    for owner, name, value in (
        (KVCache, "claim", claim),
        (paddle, "to_tensor", refused),
        (paddle.Tensor, "numpy", refused),
        (paddle.Tensor, "item", refused),
        (paddle.Tensor, "set_value", refused),
    ):
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
