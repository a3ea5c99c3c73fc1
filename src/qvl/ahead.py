"""Work done ahead by threads, results in order, and never more of them waiting than there are threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def in_order(work: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[Out]:
    """Like `map`, with up to `workers` threads ahead of whoever iterates; 0 works when asked, without threads.

    Unlike a pool's own `map` it takes items as it goes, so a long run does not pile up results in memory.
    """
    if not workers:
        yield from map(work, items)
        return
    ahead: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
