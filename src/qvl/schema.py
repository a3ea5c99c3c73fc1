"""Plain data (a YAML file, `--set key=value`) into a frozen dataclass: every key known, every value of the right type.

YAML reads `1e-5` as text and `yes` as true, so the field's type decides what a value means, not the type that YAML saw.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from qvl.errors import UsageError, suggest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
R = TypeVar("R", bound="DataclassInstance")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, written beside its type: `Annotated[int, Range(1)]`.

    above: exclusive. or_zero: 0 is allowed beside what the bounds allow.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    or_zero: bool = False

    def holds(self, value: float) -> bool:
        return (self.or_zero and value == 0) or (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
        )

    def expected(self, base: str) -> str:
        bounds = (("of at least", self.at_least), ("above", self.above), ("at most", self.at_most))
        words = f"{base} " + " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{words}, or 0" if self.or_zero else words


@dataclass(frozen=True)
class Pattern:
    """What a text must match in full, and how to say that to a user."""

    regex: str
    words: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.regex, value) is not None

    def expected(self, base: str) -> str:  # noqa: ARG002 -- the words say it all
        return self.words


class _MismatchError(Exception):
    """A value is not of its field's type; the text says what was expected."""


def build(cls: type[T], data: Any, where: str) -> T:
    """Make a `cls` from `data`, section by section.

    where: the file or flag, for messages. Raises UsageError that names it, the key's path, the value and what was
    expected; for an unknown key, the nearest known one.
    """
    return cls(**_values(cls, data, where, None, ""))


def revise(record: R, data: Any, where: str, typed: Mapping[str, str] | None = None) -> R:
    """A copy of `record` with the values in `data`; sections keep what `data` does not name. Raises like `build`.

    typed: what the user wrote for a dotted key, for messages to show in place of what YAML made of it.
    """
    return dataclasses.replace(record, **_values(type(record), data, where, record, "", typed or {}))


def section_of(cls: type, key: str) -> type | None:
    """The dataclass behind the key of `cls`, or None for a plain value and for an unknown key."""
    hint = _fields(cls).get(key)
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def takes_text(cls: type, path: str) -> bool:
    """Whether the dotted key may hold any text, so that what YAML makes of `--set system=12` can be undone."""
    *sections, key = path.split(".")
    holder: type | None = cls
    for section in sections:
        holder = section_of(holder, section) if holder else None
    hint = _fields(holder).get(key) if holder else None
    return hint is str or (get_origin(hint) is not tuple and str in get_args(hint))


@cache
def _fields(cls: type) -> Mapping[str, Any]:
    """Keys and their types. Kept: hints are text that is worked out anew each time, which takes milliseconds."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _values(
    cls: type, data: Any, where: str, record: Any, path: str, typed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The checked values of one section. `record` is what sections are revised from, or None to build them anew."""
    typed = typed or {}
    if not isinstance(data, Mapping):
        inside = f"{path.rstrip('.')}: " if path else ""
        shown = _shown(typed.get(path.rstrip("."), data))
        raise UsageError(f"{where}: {inside}keys with values were expected, not {shown}")
    hints = _fields(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in hints:
            raise UsageError(f"{where}: unknown key '{path}{key}'{suggest(str(key), hints)}")
        section = section_of(cls, key)
        if section is not None:
            inner = None if record is None else getattr(record, key)
            found = _values(section, value, where, inner, f"{path}{key}.", typed)
            values[key] = section(**found) if inner is None else dataclasses.replace(inner, **found)
            continue
        try:
            values[key] = _coerce(hints[key], value)
        except _MismatchError as mismatch:
            shown = _shown(typed.get(f"{path}{key}", value))
            raise UsageError(f"{where}: {path}{key} is {shown}; expected {mismatch}") from None
    return values


def _coerce(hint: Any, value: Any) -> Any:
    """Bring `value` to the type `hint`. Raises _MismatchError that says what was expected."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, note = get_args(hint)
        try:
            checked = _coerce(base, value)
        except _MismatchError as mismatch:
            raise _MismatchError(note.expected(str(mismatch))) from None
        if not note.holds(checked):
            raise _MismatchError(note.expected(_NAMES[base]))
        return checked
    if origin is Literal:
        if isinstance(value, bool):  # what YAML makes of on and off
            value = "on" if value else "off"
        if value not in get_args(hint):
            raise _MismatchError("one of " + ", ".join(map(str, get_args(hint))))
        return value
    if _is_union(hint):
        return _coerce_union(hint, value)
    if origin is tuple:
        return _coerce_list(get_args(hint)[0], value)
    return _COERCIONS[hint](value)


def _is_union(hint: Any) -> bool:
    # `int | None` evaluates to types.UnionType, `Annotated[int, ...] | None` to typing.Union.
    return get_origin(hint) is Union or type(hint).__name__ == "UnionType"


def _coerce_union(hint: Any, value: Any) -> Any:
    """Only `X | None` occurs in our records."""
    if value is None:
        return None
    (inner,) = (member for member in get_args(hint) if member is not type(None))
    try:
        return _coerce(inner, value)
    except _MismatchError as mismatch:
        raise _MismatchError(f"{mismatch}, or null") from None


def _coerce_list(item: Any, value: Any) -> tuple[Any, ...]:
    """A single value stands for a list of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise _MismatchError(f"a list, each item {_NAMES[item]}")
    return tuple(_coerce(item, part) for part in value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _MismatchError(_NAMES[bool])
    return value


def _int(value: Any) -> int:
    number = _number(value, int)
    if not number.is_integer():
        raise _MismatchError(_NAMES[int])
    return value if isinstance(value, int) else int(number)


def _float(value: Any) -> float:
    return _number(value, float)


def _number(value: Any, kind: type) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _MismatchError(_NAMES[kind])
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _MismatchError(_NAMES[kind]) from None
    if number - number != 0:  # nan and inf fit no field of ours
        raise _MismatchError(_NAMES[kind])
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise _MismatchError(_NAMES[str])
    return value


def _shown(value: Any) -> str:
    """As YAML would write it, where that differs from Python."""
    text = _YAML[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_YAML = {None: "null", True: "true", False: "false"}
_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes if it looks like a number)",
}
_COERCIONS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, str: _str}
