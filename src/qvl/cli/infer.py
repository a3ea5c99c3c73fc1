"""`qvl infer`: a question about pictures and clips, and its answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.cli import boxes, render
from qvl.cli.answer import answer_fields
from qvl.cli.batch_options import BatchOptions
from qvl.cli.media import conversation, has_media
from qvl.cli.options import MediaOptions, ModelOptions, OutputOptions, QuestionOptions, SamplingOptions, flattened
from qvl.errors import UsageError
from qvl.hub.locate import DEMO, find
from qvl.hub.names import full_name
from qvl.profile import Profile, list_profiles, load_profile

if TYPE_CHECKING:
    from qvl.messages import Message
    from qvl.processing.prompt import Prompt
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import FinishReason, Sampling, Stats

_FALLBACK = "2b"
_DOWNLOADABLE = ("2b", "7b", "72b")  # when no profile is named, the first of these that is here
# Keys of a profile that have an option of their own, and that option's field: those of `qvl doctor` too, which looks at
# one device, and those of a run.
PLACED = {"device": "device", "dtype": "dtype", "quantize": "quant", "cache_dtype": "cache_dtype"}
_RUN = {**PLACED, "devices": "devices"}
_DEMO_WORDS = "it knows simple shapes, numbers and words"


@dataclass(frozen=True)
class Outcome:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats


@flattened
def infer(
    media: MediaOptions,
    question: QuestionOptions,
    batch: BatchOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    output: OutputOptions,
) -> None:
    """Answer a question about pictures and clips. The answer goes to standard output, all else to standard error."""
    if output.quiet:
        warnings.simplefilter("ignore")
    if batch.wanted:
        from qvl.cli.batch import Options, run_batch

        run_batch(Options(batch, media, question, model, sampling, output))
        return
    writer = render.AnswerWriter(silent=output.as_json)
    with render.manners(writer):
        profile, remark = chosen_profile(model, media)
        messages = conversation(question, media)
        target = None
        if output.boxes is not None:
            messages, target = boxes.prepare(output.boxes, messages, profile.raw_pixels)
        engine = open_engine(profile, model)
        drawn = engine.sampling(**sampling.overrides())
        with render.status("reading pictures and clips", output.quiet or not has_media(messages)):
            prompt = engine.prompt(messages)
        if not model.no_memory_check:
            engine.check_memory(prompt, drawn)
        # Last, so that a bad picture or too large a run is known before gigabytes are read.
        load_weights(engine, model, output.quiet)
        if remark is not None:
            render.note(remark, output.quiet)
        what = "pictures, clips and the prompt" if prompt.visions else "the prompt"
        with render.status(f"encoding {what}, {len(prompt)} tokens", output.quiet) as done:
            outcome = _answer(engine, prompt, drawn, writer, done)
        writer.end()
        _finish(engine, messages, prompt, outcome, output, target)


def default_profile() -> tuple[str, str | None]:
    """The profile when none is named, and what to tell the user about the choice."""
    for name in _DOWNLOADABLE:
        if find(load_profile(name).model) is not None:
            return name, None
    return (
        DEMO,
        f"nothing is downloaded, so the small demo model answers ({_DEMO_WORDS}); a real one: qvl download 2b",
    )


def chosen_profile(options: ModelOptions, media: MediaOptions) -> tuple[Profile, str | None]:
    """The profile named, or the one that suits, with every flag that is about it laid over; what to say of the choice.

    Raises UsageError, also for a profile that is for another command.
    """
    name, model, settings = options.profile, options.model, list(options.settings)
    if name is None and options.adapter:
        from qvl.hub.adapters import template_of

        template = template_of(options.adapter[0])
        settings = [f"template={template}", *settings] if template else settings
    if model is None and options.adapter:  # what an adapter was trained on is not a matter of the profile
        from qvl.hub.adapters import base_name

        model = base_name(options.adapter[0])
    if name is None and model is not None:
        name = _profile_of(model)
    if name is None:
        name, note = default_profile()
    else:
        note = None
    profile = load_profile(name, settings)
    if profile.command != "infer":
        other = _profile_of(profile.model)
        raise UsageError(f"profile '{name}' is for qvl {profile.command}; take one such as {other}")
    if model is not None:
        profile = profile.revised({"model": model}, "--model")
    for key, flag in _RUN.items():
        value = getattr(options, flag)
        if value is not None:
            profile = profile.revised({key: value}, f"--{flag.replace('_', '-')}")
    switches = {
        "raw_pixels": media.raw_pixels,
        "add_vision_id": media.add_vision_id,
        "allow_pickle": options.allow_pickle,
    }
    return profile.revised({key: True for key, on in switches.items() if on}, "flags"), note


def _profile_of(model: str) -> str:
    """A published model brings its own profile; any other checkpoint takes the limits of the 2B one.

    A user's profile comes last: one of the same model with other limits is meant when it is named.
    """
    model = full_name(model)
    for info in sorted(list_profiles(), key=lambda info: info.source != "shipped"):
        if info.usable and info.command == "infer" and load_profile(info.name).model == model:
            return info.name
    return _FALLBACK


def open_engine(profile: Profile, options: ModelOptions) -> Engine:
    """Import Paddle and read everything of the model but its weights."""
    from qvl.environment import set_threads

    if options.threads is not None:
        set_threads(options.threads)
    from qvl.runtime.engine import Engine

    return Engine.open(profile, adapters=options.adapter) if options.adapter else Engine.open(profile)


def load_weights(engine: Engine, options: ModelOptions, quiet: bool) -> None:
    """Read the weights, with a bar on stderr."""
    with render.progress(f"loading {Path(engine.profile.model).name}", quiet) as on_progress:
        engine.load_weights(on_progress=on_progress, check_memory=not options.no_memory_check)


def _answer(
    engine: Engine, prompt: Prompt, sampling: Sampling, writer: render.AnswerWriter, begun: Callable[[], None]
) -> Outcome:
    texts: list[str] = []
    token_ids: list[int] = []
    for chunk in engine.stream(prompt, sampling):
        begun()
        texts.append(chunk.text)
        token_ids += chunk.token_ids
        writer.write(chunk.text)
        if chunk.finish_reason is not None and chunk.stats is not None:
            return Outcome("".join(texts), tuple(token_ids), chunk.finish_reason, chunk.stats)
    raise RuntimeError("the stream ended without its last chunk")


def _finish(
    engine: Engine,
    messages: tuple[Message, ...],
    prompt: Prompt,
    outcome: Outcome,
    output: OutputOptions,
    target: boxes.Target | None,
) -> None:
    """What follows the text: the drawing, the figures, the JSON object."""
    found, picture = boxes.located(engine.marked_text(outcome.token_ids), messages, prompt)
    if target is not None:
        target.write(found)
        if not found:
            render.note(f"the answer has no boxes; {target.path} is the picture alone", output.quiet)
    if outcome.finish_reason == "loop":
        render.note("the answer went round in a loop and was ended there", output.quiet)
    if output.stats:
        render.stats(outcome.stats, outcome.finish_reason)
    if output.as_json:
        render.json_object(answer_fields(engine, prompt, outcome, boxes.as_json(found, picture)))
