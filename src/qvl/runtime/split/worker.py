"""`python -m qvl.runtime.split.worker`: the process of one part, started by `crew.py`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from qvl import environment
from qvl.errors import QvlError
from qvl.runtime.split import calls

environment.prepare()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import paddle  # noqa: E402
import psutil  # noqa: E402

from qvl.model.adapter import Adapter, apply_adapter  # noqa: E402
from qvl.model.part import Part  # noqa: E402
from qvl.model.qwen2_vl import ModelInputs, Qwen2VL  # noqa: E402
from qvl.model.weights import load_model  # noqa: E402
from qvl.runtime.cache import KVCache  # noqa: E402
from qvl.runtime.memory import available_bytes, peak_bytes  # noqa: E402


class Worker:
    """Holds one part of a model and the same part of every cache."""

    def __init__(self, part: Part, connection: Connection) -> None:
        self.part, self.connection = part, connection
        self._model: Qwen2VL | None = None
        self._caches: dict[int, KVCache] = {}

    def answer(self, call: calls.Call) -> Any:
        """What to reply with. Every worker computes it; where it is the same, the first one sends it."""
        if isinstance(call, calls.Load):
            return self._load(call)
        if isinstance(call, calls.FreeMemory):
            self._forget(call.dropped)
            return available_bytes()
        if isinstance(call, calls.PeakMemory):
            return peak_bytes()
        assert self._model is not None
        if isinstance(call, calls.Encode):
            return self._model.features(call.patches, call.grids).numpy()
        if isinstance(call, calls.Fill):
            return self._cache(self._model, call.cache).fill(call.tokens, call.dtype)
        return self._forward(self._model, call)

    def _load(self, call: calls.Load) -> None:
        def report(done: int, total: int) -> None:
            self.connection.send(calls.Progress(done, total))

        self._model = load_model(
            Path(call.folder),
            call.config,
            dtype=call.dtype,
            attention=call.attention,
            layout=call.layout,
            part=self.part,
            on_progress=report if self.part.rank == 0 else None,
        )
        for adapter, scale in call.adapters:
            apply_adapter(self._model, Adapter.open(adapter), scale)

    def _forward(self, model: Qwen2VL, call: calls.Forward) -> npt.NDArray[np.float32]:
        self._forget(call.dropped)
        inputs = {name: None if array is None else paddle.to_tensor(array) for name, array in call.inputs.items()}
        caches = None if call.caches is None else [self._cache(model, state) for state in call.caches]
        logits: npt.NDArray[np.float32] = model(ModelInputs(lengths=call.lengths, **inputs), caches).numpy()
        return logits

    def _forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._caches.pop(number, None)

    def _cache(self, model: Qwen2VL, state: calls.CacheState) -> KVCache:
        cache = self._caches.get(state.number)
        if cache is None:
            cache = KVCache(self.part.share(model.config), state.capacity, state.dtype)
            self._caches[state.number] = cache
        cache.truncate(state.tokens)
        cache.reserve(state.capacity)
        return cache

    def run(self) -> None:
        """Answer calls until the connection ends."""
        while True:
            try:
                call = self.connection.recv()
            except (EOFError, OSError):
                return
            try:
                with paddle.no_grad():
                    value = self.answer(call)
            except QvlError as error:
                self.connection.send(calls.Failure(str(error), error.exit_code, True))
                return
            except Exception as error:
                traceback.print_exc()
                self.connection.send(calls.Failure(f"{type(error).__name__}: {error}", 1, False))
                return
            is_wanted = self.part.rank == 0 or isinstance(call, calls.OF_EACH)
            self.connection.send(calls.Reply(value if is_wanted else None))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the engine's process, which ends us if it means to
    _end_without(int(os.environ[calls.PARENT]))
    connection = Client(os.environ[calls.ADDRESS], authkey=bytes.fromhex(os.environ.pop(calls.KEY)))
    part = Part(int(os.environ[calls.RANK]), int(os.environ[calls.SIZE]))
    connection.send(part.rank)
    paddle.set_device(os.environ[calls.DEVICE])
    paddle.distributed.init_parallel_env()
    Worker(part, connection).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # at once: gloo aborts a process whose neighbour's connection ends before its own


def _end_without(parent: int) -> None:
    """End this process when the engine's is gone, also in the middle of a sum that will never come."""

    def watch() -> None:
        while psutil.pid_exists(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="qvl-parent", daemon=True).start()


if __name__ == "__main__":
    main()
