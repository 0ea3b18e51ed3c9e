"""JSON into records: every field of its type and in its range, or a refusal that names the field.

A record is a dataclass; the annotations of its fields say what they take. Ranges leave room for
whatever can be measured and keep out what would break arithmetic or a picture: a share is 0 to 1, a
number is finite, a name is short and shows nothing but itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from bsfa.errors import FormatError
from bsfa.text import is_text, printable, shown

__all__ = [
    "Change",
    "Count",
    "Name",
    "Positive",
    "Seconds",
    "Setting",
    "Share",
    "Whole",
    "Words",
    "build",
    "parse",
]


@dataclass(frozen=True)
class Range:
    """What a number may be."""

    least: float
    most: float

    def fault(self, value: Any) -> str | None:
        """What is expected instead; None if it is in the range."""
        return None if self.least <= value <= self.most else f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Above:
    """A number above 0."""

    most: float

    def fault(self, value: Any) -> str | None:
        """What is expected instead; None if it is in the range."""
        return None if 0 < value <= self.most else f"a number above 0, at most {self.most:g}"


@dataclass(frozen=True)
class Plain:
    """A text that shows as itself on one line."""

    longest: int
    """Bytes of UTF-8."""

    def fault(self, value: Any) -> str | None:
        """What is expected instead; None if it is such a text."""
        if len(value) <= self.longest and printable(value, self.longest) == value:
            return None
        return f"a text of one line and at most {self.longest} bytes, without control characters"


Share = Annotated[float, Range(0, 1)]
Seconds = Annotated[float, Range(0, 1e9)]
Change = Annotated[float, Range(-1e12, 1e12)]
Count = Annotated[int, Range(0, 2**53)]
Positive = Annotated[int, Range(1, 2**53)]
Whole = Annotated[int, Range(-(2**63), 2**63)]
Setting = Annotated[int | float, Above(2**53)]
Name = Annotated[str, Plain(200)]
Words = Annotated[str, Plain(4096)]

_MOST_DIGITS = 20
_DEEPEST = 4
"""Lists and objects in each other, in a field of any type."""


class _OddNumberError(Exception):
    """A number that JSON allows and no field takes."""


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _OddNumberError(f"a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _OddNumberError(f"the number {shown(text)}")
    return value


def _constant(text: str) -> float:
    raise _OddNumberError(f"the number {text}")


def parse(line: str, where: str) -> dict[str, Any]:
    """One JSON object; where: what refusals begin with."""
    try:
        values = json.loads(line, parse_int=_integer, parse_float=_real, parse_constant=_constant)
    except _OddNumberError as error:
        raise FormatError(f"{where}: holds {error}; expected finite numbers of 64 bits") from None
    except RecursionError:
        raise FormatError(f"{where}: is nested too deeply; expected a record") from None
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {printable(str(error), 200)}") from None
    if not isinstance(values, dict):
        raise FormatError(f"{where}: is of type {type(values).__name__}; expected an object")
    return values


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value of any type is small enough to be shown."""
    if isinstance(value, (list, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(item, depth - 1) for item in inner)
    return not isinstance(value, str) or is_text(value)


def _refuse(where: str, value: Any, expected: str) -> FormatError:
    try:
        found = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        found = type(value).__name__
    return FormatError(f"{where} is {printable(found, 80)}; expected {expected}")


def convert(kind: Any, value: Any, where: str) -> Any:
    """The JSON value as the annotated type of a field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = convert(inner[0], value, where)
        for limit in inner[1:]:
            expected = limit.fault(value)
            if expected is not None:
                raise _refuse(where, value, expected)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        options = [option for option in inner if option is not type(None)]
        exact = next((option for option in options if type(value) is option), options[-1])
        return convert(exact, value, where)
    if origin is list and isinstance(value, list):
        return [convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        for name in value:
            convert(Name, name, f"a name in {where}")
        return {name: convert(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(typing.cast(type, kind), value, where)
    if kind is Any:
        if not _is_plain(value, _DEEPEST):
            raise _refuse(where, value, "values nested in each other at most 4 times, of text")
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str) and not is_text(value):
        raise _refuse(where, value, "text")
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
    ):
        return value
    raise _refuse(where, value, getattr(kind, "__name__", str(kind)))


_HINTS: dict[type, dict[str, Any]] = {}


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A record of a dataclass from its fields; what it has no field for is left out."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls, include_extras=True)
    hints = _HINTS[cls]
    arguments = {}
    for entry in dataclasses.fields(cls):
        name = f"{where}.{entry.name}"
        if entry.name in values:
            arguments[entry.name] = convert(hints[entry.name], values[entry.name], name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise FormatError(f"{name} is missing")
    return cls(**arguments)
