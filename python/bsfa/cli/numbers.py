"""What numeric options accept: the whole of a text, no number that wraps around, no "nan".

The functions are types for argparse, which names the option before their message.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from bsfa._core import MAX_TOKENS
from bsfa.text import quote

__all__ = [
    "MAX_SEED",
    "fraction",
    "layer_head",
    "numbers",
    "positive",
    "positive_real",
    "positive_reals",
    "whole",
]

MAX_SEED = 2**63 - 1
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_REAL = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?", re.ASCII)


def _refuse(text: str, accepted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{quote(text)}; accepted: {accepted}")


def _whole(text: str, least: int, most: int) -> int | None:
    value = int(text) if _WHOLE.fullmatch(text) else None
    return value if value is not None and least <= value <= most else None


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number of a range."""

    def convert(text: str) -> int:
        value = _whole(text, least, most)
        if value is None:
            raise _refuse(text, f"a whole number, {least} to {most}")
        return value

    return convert


positive = whole(1, MAX_TOKENS)
"""Of tokens, blocks, samples, runs."""


def numbers(text: str) -> list[int]:
    """32,64,96 as a list."""
    listed = [_whole(part, 1, MAX_TOKENS) for part in text.split(",") if part]
    found = [value for value in listed if value is not None]
    if not found or len(found) < len(listed):
        raise _refuse(text, f"a list of whole numbers, 1 to {MAX_TOKENS}")
    return found


def _real(text: str) -> float:
    return float(text) if _REAL.fullmatch(text) and len(text) <= 100 else math.nan


def fraction(text: str) -> float:
    """0 to 1."""
    value = _real(text)
    if not 0 <= value <= 1:
        raise _refuse(text, "a number, 0 to 1")
    return value


def positive_real(text: str) -> float:
    """A finite number above 0."""
    value = _real(text)
    if not 0 < value < math.inf:
        raise _refuse(text, "a finite number above 0")
    return value


def positive_reals(text: str) -> list[float]:
    """0.1,0.2 as a list."""
    values = [_real(part) for part in text.split(",")]
    if not all(0 < value < math.inf for value in values):
        raise _refuse(text, "a list of finite numbers above 0")
    return values


def layer_head(text: str) -> tuple[int, int]:
    """LAYER:HEAD."""
    layer, _, head = text.partition(":")
    found = (_whole(layer, 0, MAX_TOKENS), _whole(head, 0, MAX_TOKENS))
    if found[0] is None or found[1] is None:
        raise _refuse(text, "LAYER:HEAD, two whole numbers from 0")
    return found[0], found[1]
