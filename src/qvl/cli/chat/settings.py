"""What `/set` can set: how answers are drawn, and how pictures and clips are brought to size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qvl.cli.media import LIMITS, limited
from qvl.errors import UsageError, suggest
from qvl.messages import Message
from qvl.runtime.records import Sampling

DEFAULT = "default"
_SAMPLING = tuple(entry.name for entry in fields(Sampling))
NAMES = (*_SAMPLING, *LIMITS)
_SECONDS = ("fps", "video_start", "video_end")  # numbers; every other limit is a whole number
_MAY_BE_ZERO = ("video_start", "video_end")
_PAIRS = {"fps": "nframes", "nframes": "fps"}
_TRUTH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """What was set over the profile. sampling: names of `Sampling`. limits: names of `Image` and `Video`."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, name: str, values: Sequence[str], resolve: Callable[[Mapping[str, Any]], Sampling]) -> Settings:
        """Set one by the words that follow its name; `default` takes it back.

        resolve: what makes a whole `Sampling` of overrides and raises UsageError where they mean nothing.
        Raises UsageError for an unknown name or a wrong value.
        """
        name = name.lower().replace("-", "_")
        if name not in NAMES:
            begun = next((f", did you mean '{known}'?" for known in NAMES if known.startswith(name)), "")
            raise UsageError(f"/set: there is no setting {name!r}{suggest(name, NAMES) or begun}; /set lists them")
        if not values:
            raise UsageError(f"/set {name}: give a value, or 'default' to take it back")
        group = "sampling" if name in _SAMPLING else "limits"
        new = dict(getattr(self, group))
        new.pop(name, None)
        if list(values) != [DEFAULT]:
            new[name] = _value(name, values)
            new.pop(_PAIRS.get(name, ""), None)
        changed = replace(self, **{group: new})
        if group == "sampling":
            resolve(changed.sampling)
        return changed

    def applied(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the limits for their pictures and clips."""
        return tuple(
            replace(message, parts=tuple(limited(part, self.limits) for part in message.parts)) for message in messages
        )

    def shown(self, sampling: Sampling) -> list[tuple[str, str]]:
        """Every setting and its value, for people. sampling: what comes of the overrides."""
        rows = [(name, getattr(sampling, name), name in self.sampling) for name in _SAMPLING]
        rows += [(name, self.limits.get(name), name in self.limits) for name in LIMITS]
        return [(name, f"{_words(name, value)}{'  (set)' if own else ''}") for name, value, own in rows]


def _words(name: str, value: object) -> str:
    if value is None:
        return "drawn anew each time" if name == "seed" else "as the profile says"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, values: Sequence[str]) -> Any:
    hint = get_type_hints(Sampling)[name] if name in _SAMPLING else float if name in _SECONDS else int
    if get_origin(hint) is tuple:
        return tuple(values)
    if len(values) > 1:
        raise UsageError(f"/set {name}: one value was expected, not {len(values)}")
    text = values[0]
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise UsageError(f"/set {name}: {text!r} is none of {', '.join(get_args(hint))}")
        return text
    if hint is bool:
        if text.lower() not in _TRUTH:
            raise UsageError(f"/set {name}: on or off was expected, not {text!r}")
        return _TRUTH[text.lower()]
    return _number(name, text, float if float in (hint, *get_args(hint)) else int)


def _number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    words = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(f"/set {name}: {words} was expected, not {text!r}") from None
    if name in LIMITS:
        bound = "of at least 0" if name in _MAY_BE_ZERO else "above 0"
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))):
            raise UsageError(f"/set {name}: {words} {bound} was expected, not {text!r}")
    return value
