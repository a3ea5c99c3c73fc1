"""Groups of processes on CPUs, each with a store of its own.

Paddle gives all groups one store, and gloo writes the addresses of a group's members to it under the same names for
each: who is quick finds those of the group before, where nobody listens any more ("Connection refused"). With two
processes that is rare, with four it is most runs. NCCL, between GPUs, does not connect this way.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from paddle.base import core

_TIMEOUT = timedelta(minutes=15)
# A group needs its store for as long as it lives, and does not hold it.
_kept: list[Any] = []


def separate_stores() -> None:
    """Let every group of gloo that is made from here on have a store of its own. Does nothing the second time."""
    from paddle.distributed import collective

    make = collective._new_process_group_impl
    if not getattr(make, "has_own_stores", False):
        collective._new_process_group_impl = _with_own_stores(make)


def _with_own_stores(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(backend: str, store: Any, rank: int, world_size: int, *rest: Any, group_id: int = 0, **more: Any) -> Any:
        if backend == "gloo":
            store = _store_of(store, rank, world_size, group_id)
            _kept.append(store)
        return make(backend, store, rank, world_size, *rest, group_id=group_id, **more)

    made.has_own_stores = True  # type: ignore[attr-defined]
    return made


def _store_of(common: Any, rank: int, world_size: int, group_id: int) -> Any:
    """The store of a group, which its first member serves. Called by all members; `group_id` is no other group's."""
    name = f"qvl/group/{group_id}"
    if rank == 0:
        host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").rpartition(":")[0]
        common.set(name, f"{host}:{_free_port()}")
    host, _, port = bytes(common.get(name)).decode().rpartition(":")
    return core.TCPStore(host, int(port), rank == 0, world_size, int(_TIMEOUT.total_seconds()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
