"""qvl's side of a benchmark: the child process that loads, answers and decodes while its parent keeps the figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qvl.bench.peers import peer_wire
from qvl.bench.question import fitting_text
from qvl.errors import PADDLE_MISSING, DeviceError, UsageError

if TYPE_CHECKING:
    from qvl.processing.prompt import Prompt
    from qvl.runtime.answering import Answering
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import Sampling

_GIB = 1024**3
_BARE = {"feature_cache_mib": 0, "template": "none", "add_vision_id": False, "system": None}


class Own:
    """What `peer_wire.serve` calls. Times are seconds."""

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def hello(self, threads: int | None) -> dict[str, Any]:
        """Import everything. Raises DeviceError when Paddle is missing."""
        from qvl.environment import set_threads

        if threads is not None:
            set_threads(threads)
        try:
            from qvl import environment
            from qvl.ops import native, status
            from qvl.runtime import engine as _engine  # noqa: F401 -- what takes its time
        except ModuleNotFoundError as error:
            if error.name != "paddle":
                raise
            raise DeviceError(PADDLE_MISSING) from None
        found, library = status.status(), native.library()
        ops: dict[str, Any] = {"body": "composed" if library is None else "native", "reason": found.reason}
        if library is not None:
            ops |= {"level": library.level(), "threads": library.threads()}
        from qvl.bench.here import versions

        return {"versions": versions(), "threads": environment.threads(), "ops": ops, "contexts": True, "batches": True}

    def check(self, question: dict[str, Any], **opened: Any) -> dict[str, Any]:
        """Lay out the question and see that it would fit in memory, before any weight is read.

        Gives its `text`, `prompt_tokens`, `vision_tokens`, the `device` and the `dtype`. Raises QvlError.
        """
        engine = _open(opened["profile"], opened["adapters"])
        picture = question["path"]

        def count(text: str) -> int:
            prompt = _prompt(engine, picture, text)
            return len(prompt) - prompt.vision_tokens(engine.config)

        text = fitting_text(question["text_tokens"], count)
        prompt = _prompt(engine, picture, text)
        engine.room(prompt, _sampling(question["new_tokens"]))
        if opened["check_memory"]:
            engine.check_memory(prompt, _sampling(question["new_tokens"]))
        return {
            "text": text,
            "prompt_tokens": len(prompt),
            "vision_tokens": prompt.vision_tokens(engine.config),
            "device": engine.placement.device,
            "dtype": engine.placement.dtype,
        }

    def load(self, profile: dict[str, Any], adapters: Sequence[str], check_memory: bool) -> dict[str, Any]:
        """Open the model and read its weights."""
        begun = time.perf_counter()
        engine = _open(profile, adapters)
        engine.load_weights(check_memory=check_memory)
        self._engine = engine
        return {"seconds": time.perf_counter() - begun}

    def question(self, path: str | None, text: str, new_tokens: int) -> dict[str, Any]:
        """Answer, greedily and without drafts, to the last token."""
        engine = self._loaded()
        prompt = _prompt(engine, path, text)
        answering = engine.begin(prompt, _sampling(new_tokens))
        _finish(engine, [answering])
        stats = answering.stats(engine.config, 0.0, 0)
        times = {
            "preprocess": stats.preprocess_seconds,
            "vision": stats.vision_seconds,
            "prefill": stats.prefill_seconds,
            "first_token": stats.time_to_first_token,
            "answer": stats.decode_seconds,
        }
        return peer_wire.question(times, {"prompt": stats.prompt_tokens, "answer": list(answering.drawn)})

    def decode(self, context: int, batch: int, new_tokens: int) -> dict[str, Any]:
        """`batch` answers together, each behind `context` tokens, which are put into its cache without being run.

        Gives the `seconds` of `tokens`, or why it is `skipped`.
        """
        engine = self._loaded()
        if context + new_tokens > engine.max_context:
            return {"skipped": f"the context holds {engine.max_context} tokens"}
        from qvl.runtime import memory

        # Asked of a cache, which knows how it stores its tokens; on a GPU it does not tell, and the GPU itself will.
        token = engine.cache(1).untouched * (len(engine.split) or 1)
        need, free = batch * (context + new_tokens) * token, memory.available_bytes()
        if need > free:
            return {"skipped": f"the caches take {need / _GIB:.1f} GiB, {free / _GIB:.1f} GiB are free"}
        going = [_behind(engine, context, new_tokens) for _ in range(batch)]
        begun = time.perf_counter()
        _finish(engine, going)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "tokens": sum(len(answering.drawn) - 1 for answering in going)}

    def memory(self) -> dict[str, Any]:
        """Peaks up to now, in bytes: of the process, and of the GPU where one is used."""
        engine = self._loaded()
        on_gpu = engine.placement.device.startswith("gpu")
        gpu = engine.peak_memory() if on_gpu else None
        process = engine.peak_memory() if engine.split and not on_gpu else peer_wire.peak_bytes()
        return {"process": process, "gpu": gpu}

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise UsageError("nothing is loaded")
        return self._engine


def _open(data: dict[str, Any], adapters: Sequence[str]) -> Engine:
    """The engine of a profile as JSON. Nothing is kept from one question to the next.

    Without a template, which has another length in every vocabulary and which not every peer lets go of.
    """
    from qvl.profile import Profile
    from qvl.runtime.engine import Engine
    from qvl.schema import build

    profile: Profile = build(Profile, data, "bench").revised(_BARE, "bench")
    return Engine.open(profile, adapters=list(adapters)) if adapters else Engine.open(profile)


def _prompt(engine: Engine, picture: str | None, text: str) -> Prompt:
    from qvl.messages import Image, Message

    parts = (text,) if picture is None else (Image(picture), text)
    return engine.prompt([Message.of("user", *parts)])


def _sampling(new_tokens: int) -> Sampling:
    """The same for every model, whatever it or its profile prefers."""
    from qvl.runtime.records import Sampling

    return Sampling(max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True, speculate="off")


def _behind(engine: Engine, context: int, new_tokens: int) -> Answering:
    """An answer that has its first token, behind a cache filled with random keys and values and one token that was run.

    Attention takes the same time whatever the numbers are, and a long prompt would take minutes to run.
    """
    import numpy as np

    from qvl.processing.prompt import Prompt

    ids = np.random.Generator(np.random.PCG64(context)).integers(0, 256, context)
    places = np.broadcast_to(np.arange(context), (3, context))
    prompt = Prompt(ids.astype(np.int64), places.astype(np.int64), context)
    cache = engine.cache(context + new_tokens)
    if context > 1:
        with engine.computing():
            cache.fill(context - 1, engine.placement.dtype)
    return engine.begin(prompt, _sampling(new_tokens), cache)


def _finish(engine: Engine, going: Sequence[Answering]) -> None:
    while any(answering.finish_reason is None for answering in going):
        engine.step(going)
        for answering in going:
            if answering.error is not None:
                raise answering.error


def main() -> None:
    peer_wire.serve(Own())
