"""From the command line to a conversation: what each MEDIA is and where the question comes from."""

from __future__ import annotations

import dataclasses
import glob
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from qvl.cli.options import MediaOptions, QuestionOptions
from qvl.cli.paths import local
from qvl.errors import MediaError, UsageError
from qvl.messages import Image, Message, Part, Text, Video
from qvl.messages_json import interleave, messages_from_text

STDIN = "-"
_TEXT_BYTES = 1 << 30  # a conversation may hold clips as data: URIs
CLIP_ENDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"}
)
PICTURE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}
)
# Pictures that nothing here reads, by what cameras and phones call them.
UNREAD_ENDINGS = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".pdf", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)
_ANIMATION_ENDINGS = frozenset({".gif", ".webp", ".png", ".apng"})
_IMAGE_LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
LIMITS = (*_IMAGE_LIMITS, "fps", "nframes", "max_frames", "video_start", "video_end")


class StandardInput:
    """Standard input, which can be one thing only."""

    def __init__(self) -> None:
        self._taken_by: str | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is piped in that nobody has read yet."""
        return self._taken_by is None and sys.stdin is not None and not sys.stdin.isatty()

    def read(self, what: str, limit: int = _TEXT_BYTES) -> bytes:
        """All of it, as `what`.

        Raises UsageError when it was read before or is a terminal, MediaError when it is over `limit` bytes.
        """
        if self._taken_by == what:
            raise UsageError(f"standard input is {what} only once: '-' was given twice")
        if self._taken_by is not None:
            raise UsageError(f"standard input cannot be both {self._taken_by} and {what}")
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(f"{what} was to come from standard input, but nothing is piped in")
        self._taken_by = what
        data = sys.stdin.buffer.read(limit + 1)
        if len(data) > limit:
            size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit} bytes"
            raise MediaError(f"{what} from standard input is larger than the limit of {size}")
        return data

    def read_text(self, what: str) -> str:
        try:
            return self.read(what).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UsageError(f"{what} from standard input is not UTF-8 text") from None


def conversation(question: QuestionOptions, media: MediaOptions) -> tuple[Message, ...]:
    """The messages to answer. Local files are known to exist; nothing is decoded. Raises UsageError and MediaError."""
    check_limits(media)
    stdin = StandardInput()
    if question.messages is not None:
        messages = _messages_file(question, media, stdin)
    else:
        messages = _single_turn(question, media, stdin)
    _check_limits_matter(messages, media)
    messages = with_limits(messages, media)
    for part in parts(messages):
        if not isinstance(part, Text):
            check_source(part)
    return messages


def has_media(messages: Sequence[Message]) -> bool:
    """Whether there is anything to read and encode beside the text."""
    return any(not isinstance(part, Text) for part in parts(messages))


def parts(messages: Sequence[Message]) -> Iterator[Part]:
    """Every part of a conversation in order."""
    return (part for message in messages for part in message.parts)


def _messages_file(question: QuestionOptions, media: MediaOptions, stdin: StandardInput) -> tuple[Message, ...]:
    rivals = {
        "MEDIA": media.media,
        "--video": media.video,
        "--prompt": question.prompt is not None,
        "--system": question.system is not None,
    }
    given = [name for name, value in rivals.items() if value]
    if given:
        raise UsageError(f"--messages holds the whole conversation: leave out {', '.join(given)}")
    if question.messages == STDIN:
        return with_content(messages_from_text(stdin.read_text("the conversation"), "--messages -"), "--messages -")
    path = local(question.messages or "")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--messages {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise UsageError(f"--messages {path}: not UTF-8 text") from None
    return with_content(messages_from_text(text, str(path)), str(path))


def with_content(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages themselves. Raises UsageError for a user's turn that says nothing."""
    for index, message in enumerate(messages):
        if message.role == "user" and all(isinstance(part, Text) and not part.text for part in message.parts):
            raise UsageError(f"{where}: message {index}: the content is empty")
    return messages


def _single_turn(question: QuestionOptions, media: MediaOptions, stdin: StandardInput) -> tuple[Message, ...]:
    items = [*(medium(source, stdin) for source in media.media), *(clip(source, stdin) for source in media.video)]
    user = Message("user", interleave(question_text(question, stdin), items))
    if not user.parts:
        raise UsageError("the question is empty")
    system = [] if question.system is None else [Message.of("system", question.system)]
    return (*system, user)


def question_text(question: QuestionOptions, stdin: StandardInput) -> str:
    """What -p or a pipe asks. Raises UsageError when neither does."""
    if question.prompt is not None and question.prompt != STDIN:
        return question.prompt
    if question.prompt is None and not stdin.waiting:
        raise UsageError("no question: give one with -p, or pipe it in")
    text = stdin.read_text("the question").rstrip("\r\n")
    if not text:
        raise UsageError("no question: standard input is empty; give one with -p")
    return text


def medium(source: str, stdin: StandardInput) -> Image | Video:
    """A positional MEDIA, a picture unless its name or type says that it is a clip."""
    if source == STDIN:
        return Image(_some(stdin.read("a picture", _media().PICTURE_BYTES), "picture"))
    if _is_clip(source):
        return Video(source)
    if not _is_data(source) and "://" not in source and _is_folder(source):
        raise UsageError(f"{source} is a folder; if it holds the frames of a clip, give it as --video {source}")
    return Image(source)


def clip(source: str, stdin: StandardInput) -> Video:
    """What --video names. Raises UsageError and MediaError."""
    if source == STDIN:
        return Video(_some(stdin.read("a clip", _media().CLIP_BYTES), "clip"))
    if _is_remote(source) or _exists(source):
        if _ending(source) in PICTURE_ENDINGS and not _may_move(source):
            # What a shell makes of an unquoted --video frames/*.png: the rest would pass for pictures.
            raise UsageError(f"--video {source} is a picture; give the frames as a folder or as a glob in quotes")
        return Video(source)
    if not glob.has_magic(source):
        raise MediaError(f"{source}: no such file or folder")
    # Not Path.glob, which takes no absolute patterns.
    frames = sorted(glob.glob(str(local(source)), recursive=True), key=natural)  # noqa: PTH207
    if not frames:
        raise MediaError(f"--video {source}: no file matches")
    return Video(tuple(frames))


def _may_move(source: str) -> bool:
    """Whether a source with the name of a picture can be a clip: a folder, or an animation."""
    ending = _ending(source)
    if _is_remote(source):
        return ending in (".gif", ".webp")  # known when it is read; of other pictures few move
    if _is_folder(source):
        return True
    if ending not in _ANIMATION_ENDINGS:
        return False
    from PIL import Image as PILImage

    try:
        with PILImage.open(local(source)) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        return True  # damaged: whoever reads it says how


def _some(data: bytes, what: str) -> bytes:
    if not data:
        raise MediaError(f"standard input is empty; a {what} was expected")
    return data


def _media() -> ModuleType:
    """What reads the sources later, and therefore knows them; not needed for `--help`."""
    from qvl.processing import media

    return media


def kind_of(source: str) -> Literal["image", "video"] | None:
    """What a path, URL or data: URI is by its name or type; None for anything else. Nothing is opened."""
    is_picture = source[:11].lower() == "data:image/" or _ending(source) in PICTURE_ENDINGS
    return "video" if _is_clip(source) else "image" if is_picture else None


def _is_data(source: str) -> bool:
    return source[:5].lower() == "data:"


def _is_remote(source: str) -> bool:
    return _is_data(source) or bool(_media().is_url(source))


def _is_clip(source: str) -> bool:
    return source[:11].lower() == "data:video/" or _ending(source) in CLIP_ENDINGS


def _ending(source: str) -> str:
    if _is_data(source):
        return ""
    return Path(urlsplit(source).path if _is_remote(source) else source).suffix.lower()


def _exists(source: str | Path) -> bool:
    try:
        return local(source).exists()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        reason = getattr(error, "strerror", None) or error
        what = "cannot be read" if isinstance(error, PermissionError) else "not a file name"
        raise MediaError(f"{str(source)[:80]}: {what} ({reason})") from None


def _is_folder(source: str | Path) -> bool:
    return _exists(source) and local(source).is_dir()


def natural(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(digits or -1), rest) for digits, rest in re.findall(r"(\d*)(\D*)", name)]


def check_limits(media: MediaOptions) -> None:
    """Raise UsageError for options of pictures and clips that do not go together."""
    if media.fps is not None and media.nframes is not None:
        raise UsageError("--fps and --nframes exclude each other")
    if (media.resized_height is None) != (media.resized_width is None):
        raise UsageError("--resized-height and --resized-width go together")


def _check_limits_matter(messages: tuple[Message, ...], media: MediaOptions) -> None:
    """Raise UsageError for an option that is for a kind of medium which the conversation does not have."""
    clips = [part for part in parts(messages) if isinstance(part, Video)]
    has_clip = bool(clips)
    if media.fps is not None and clips and all(_is_frames(part) for part in clips):
        raise UsageError("--fps was given, but of a folder, a glob or a list of frames all are used")
    for name in limits_given(media):
        if not (has_media(messages) if name in _IMAGE_LIMITS else has_clip):
            lacking = "picture or clip" if name in _IMAGE_LIMITS else "clip"
            raise UsageError(f"--{name.replace('_', '-')} was given, but there is no {lacking}")


def _is_frames(part: Video) -> bool:
    """Whether the frames are pictures, which are all used, and not chosen from a clip."""
    if not isinstance(part.source, (str, Path)):
        return not isinstance(part.source, bytes)
    if _is_remote(str(part.source)):
        return False
    return _is_folder(part.source) or (not _exists(part.source) and glob.has_magic(str(part.source)))


def limits_given(media: MediaOptions) -> dict[str, Any]:
    """The pixel and frame options that were given, by name."""
    return {name: value for name in LIMITS if (value := getattr(media, name)) is not None}


def with_limits(messages: tuple[Message, ...], media: MediaOptions) -> tuple[Message, ...]:
    """Give the pixel and frame options to every picture and clip that does not say otherwise itself."""
    given = limits_given(media)
    return tuple(Message(m.role, tuple(limited(part, given) for part in m.parts)) for m in messages)


def limited(part: Part, given: Mapping[str, Any]) -> Part:
    """The part with the limits of `given` that are for its kind and that it does not set itself."""
    if isinstance(part, Text):
        return part
    own = {name for name in LIMITS if getattr(part, name, None) is not None}
    if own & {"fps", "nframes"}:
        own |= {"fps", "nframes"}
    names = _IMAGE_LIMITS if isinstance(part, Image) else LIMITS
    return dataclasses.replace(part, **{name: given[name] for name in names if name in given and name not in own})


def check_source(part: Image | Video) -> None:
    """Find a missing file now, rather than after a model of many gigabytes was loaded."""
    frames = part.source if isinstance(part.source, (list, tuple)) else [part.source]
    for source in frames:
        if not isinstance(source, (str, Path)) or (isinstance(source, str) and (_is_remote(source) or "://" in source)):
            continue
        if isinstance(part, Video) and len(frames) == 1 and not _exists(source) and glob.has_magic(str(source)):
            continue  # a pattern of frames
        if not _exists(source):
            raise MediaError(f"{source}: no such file")
        if _is_folder(source) and (isinstance(part, Image) or len(frames) > 1):
            raise UsageError(f"{source} is a folder; a picture was expected")
