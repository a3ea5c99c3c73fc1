"""A profile: which model to run, where, and within which limits. Frozen records read from short YAML files.

A file may build on another (`extends:`); an unknown key is an error that names its neighbour. Finding the files is
`qvl.profile_files`' part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from qvl.errors import QvlError, UsageError
from qvl.profile_files import ProfileFile, find, find_parent, known_files
from qvl.profile_training import TrainingOptions
from qvl.schema import Pattern, Range, build, revise, takes_text

_Count = Annotated[int, Range(at_least=1)]
_SOURCES = r"(auto|huggingface|hf|modelscope|ms|bos|aistudio)(,(auto|huggingface|hf|modelscope|ms|bos|aistudio))*"
_Pixels = Annotated[int, Range(at_least=1)] | None


@dataclass(frozen=True)
class VideoLimits:
    """How clips are read. Pixels count per frame, `total_pixels` over all frames; the defaults are the reference's."""

    fps: Annotated[float, Range(above=0)] = 2.0
    min_frames: _Count = 4
    max_frames: _Count = 768
    min_pixels: _Count = 128 * 28 * 28
    max_pixels: _Count = 768 * 28 * 28
    total_pixels: _Count = 24576 * 28 * 28


@dataclass(frozen=True)
class Generation:
    """How answers are drawn; None leaves it to the checkpoint's `generation_config.json`. See `Sampling`."""

    max_new_tokens: _Count = 512
    min_new_tokens: Annotated[int, Range(at_least=0)] | None = None
    temperature: Annotated[float, Range(at_least=0.001, at_most=100, or_zero=True)] | None = None
    top_p: Annotated[float, Range(above=0, at_most=1)] | None = None
    top_k: Annotated[int, Range(at_least=0)] | None = None
    min_p: Annotated[float, Range(at_least=0, at_most=1)] | None = None
    repetition_penalty: Annotated[float, Range(at_least=0.01, at_most=100)] | None = None
    seed: Annotated[int, Range(at_least=0)] | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_loops: bool = False
    speculate: Literal["auto", "on", "off"] | None = None


@dataclass(frozen=True)
class MemoryNeed:
    """GiB for the weights and a full context's KV cache, by dtype; what pictures need in passing comes on top.

    For people to read (`qvl profiles`): before a run the true shape of the checkpoint is measured. bfloat16: of float16
    as well, which takes as much.
    """

    float32: Annotated[float, Range(above=0)] | None = None
    bfloat16: Annotated[float, Range(above=0)] | None = None


@dataclass(frozen=True)
class Profile:
    """Everything about a run that is not the question itself.

    name: what the profile is called, by default the name of its file.
    command: the subcommand it is for.
    model: a hub id such as "Qwen/Qwen2-VL-2B-Instruct", a folder, or "demo".
    source: where `qvl download` gets the model: "auto", one source, or several in order with commas between.
    tensor_parallel: in how many equal parts the language model is split, each on a device of its own.
    devices: the GPUs they are on, such as "0,1"; None takes them from the first. One of them alone splits nothing.
    dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
    min_pixels, max_pixels: limits of a picture after resizing, of which a token covers 28*28; None: the checkpoint's.
    raw_pixels: the reference's bytes: EXIF rotation ignored and alpha dropped.
    template: "chat" for instruct models; "none" hands the bare content to a base model.
    add_vision_id: write "Picture 1: " or "Video 1: " before each of them.
    system: the system turn of a conversation that has none; None: the template's own.
    max_context: tokens of prompt and answer together; None: the checkpoint's.
    feature_cache_mib: MiB of encoded pictures and clips that are kept in case they come again; 0: none.
    quantize: what the weights are turned into as they are loaded; "auto" takes them as they are stored.
    cache_dtype: of keys and values; "auto" is that of the model.
    weight_layout: "auto" trusts the metadata of the files.
    training: what `qvl finetune` does; see TrainingOptions.
    allow_pickle: read `.pdparams`, which can run code of whoever made the file.
    """

    name: str = ""
    description: str = ""
    command: Literal["infer", "finetune"] = "infer"
    model: str = "demo"
    source: Annotated[str, Pattern(_SOURCES, "auto or sources in order, such as modelscope,huggingface")] = "auto"
    device: Annotated[str, Pattern(r"auto|cpu|gpu(:\d+)?", "auto, cpu, gpu or gpu:N")] = "auto"
    tensor_parallel: _Count = 1
    devices: Annotated[str, Pattern(r"\d+(,\d+)*", "numbers of GPUs such as 0,1")] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    min_pixels: _Pixels = None
    max_pixels: _Pixels = None
    video: VideoLimits = field(default_factory=VideoLimits)
    raw_pixels: bool = False
    template: Literal["chat", "none"] = "chat"
    add_vision_id: bool = False
    system: str | None = None
    max_context: _Count | None = None
    feature_cache_mib: Annotated[int, Range(at_least=0)] = 256
    generation: Generation = field(default_factory=Generation)
    quantize: Literal["auto", "none", "bf16", "int8", "int4"] = "auto"
    cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    weight_layout: Literal["auto", "hf", "paddle"] = "auto"
    allow_pickle: bool = False
    memory_gib: MemoryNeed = field(default_factory=MemoryNeed)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def revised(self, changes: Mapping[str, Any], where: str) -> Profile:
        """A copy with `changes` (nested for sections), checked. Raises UsageError that begins with `where`."""
        profile = revise(self, changes, where)
        _check_pairs(profile, where)
        return profile


@dataclass(frozen=True)
class ProfileInfo:
    """A profile as a list shows it. source: "shipped" or the user's file. usable: whether it can be loaded."""

    name: str
    description: str
    command: str
    source: str
    memory_gib: MemoryNeed
    usable: bool = True


def load_profile(profile: str | Path, settings: Sequence[str] = ()) -> Profile:
    """Read a profile and apply `settings`.

    profile: a path (a Path, or text with a separator or ending in .yaml or .yml), else a name that is looked for in
        the user's `profiles` folder and then among the shipped ones.
    settings: "key=value" or "section.key=value", the value in YAML.
    Raises UsageError: no such profile, an unreadable file, an unknown key, a wrong value, a cycle of `extends`.
    """
    file = find(profile)
    loaded = build(Profile, {"name": file.stem, **_read(file, ())}, file.label)
    _check_pairs(loaded, file.label)
    for setting in settings:
        path, _, text = setting.partition("=")
        loaded = revise(loaded, _parse_setting(setting), "--set", {path.strip(): text.strip()})
        _check_pairs(loaded, "--set")
    return loaded


def list_profiles() -> list[ProfileInfo]:
    """All profiles that can be named: the user's own, then the shipped ones they do not hide."""
    return [_info(file) for file in known_files()]


def _info(file: ProfileFile) -> ProfileInfo:
    source = "shipped" if file.shipped else file.label
    try:
        profile = load_profile(file.path)
    except QvlError as error:  # one broken file of the user's does not hide the others
        return ProfileInfo(file.stem, f"cannot be used: {error}", "", source, MemoryNeed(), usable=False)
    return ProfileInfo(file.stem, profile.description, profile.command, source, profile.memory_gib)


def _read(file: ProfileFile, below: tuple[ProfileFile, ...]) -> dict[str, Any]:
    """The values of `file` over those of what it extends. `below`: the files that led here, outermost first."""
    data = dict(file.load())
    parent_name = data.pop("extends", None)
    build(Profile, data, file.label)  # so that a mistake is reported for the file that has it
    if parent_name is None:
        return data
    if not isinstance(parent_name, str):
        raise UsageError(f"{file.label}: extends is {parent_name!r}; expected the name of one profile")
    parent = find_parent(parent_name, file)
    chain = (*below, file)
    if parent in chain:
        names = " -> ".join(link.stem for link in (*chain, parent))
        raise UsageError(f"{file.label}: extends goes round in a circle: {names}")
    inherited = _read(parent, chain)
    for own in ("name", "description"):
        inherited.pop(own, None)
    return _merge(inherited, data)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _parse_setting(setting: str) -> dict[str, Any]:
    import yaml

    path, equals, text = setting.partition("=")
    path = path.strip()
    if not equals or not path:
        raise UsageError(f"--set {setting}: expected key=value, such as max_pixels=802816")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if takes_text(Profile, path) and value is not None and not isinstance(value, str):
        value = text.strip()  # `system=12` and `system=Note: be brief` are text, whatever YAML makes of them
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def _check_pairs(profile: Profile, where: str) -> None:
    """Limits that only make sense together."""
    video = profile.video
    pairs = [
        ("min_pixels", profile.min_pixels, "max_pixels", profile.max_pixels),
        ("video.min_pixels", video.min_pixels, "video.max_pixels", video.max_pixels),
        ("video.min_frames", video.min_frames, "video.max_frames", video.max_frames),
    ]
    for low_name, low, high_name, high in pairs:
        if low is not None and high is not None and low > high:
            raise UsageError(f"{where}: {low_name} {low} is over {high_name} {high}")
