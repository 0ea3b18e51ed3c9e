"""Text from elsewhere (a file, an argument, a model), fit for a message or a terminal.

The functions of the library, which the native commands use too, and what they do with Python's own
values. What a message says of such text passes through one of them.
"""

from __future__ import annotations

import reprlib
from typing import Any

from bsfa._core import is_text, path_text, printable, quote, quote_path
from bsfa.errors import FormatError, InvalidArgumentError

__all__ = [
    "is_text",
    "path_text",
    "printable",
    "quote",
    "quote_path",
    "require_text",
    "said",
    "shown",
]

LONGEST_VALUE = 100
LONGEST_SAID = 1000

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = LONGEST_VALUE


def shown(value: Any) -> str:
    """Any value, as Python writes it, but short: at most 100 bytes."""
    try:
        text = _REPR.repr(value)
    except Exception:  # integers of thousands of digits, for one
        text = f"of type {type(value).__name__}"
    return printable(text, LONGEST_VALUE)


def said(error: BaseException) -> str:
    """What another package's exception says, on one line: at most 1000 bytes."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()), LONGEST_SAID)


def require_text(argument: str, text: str) -> str:
    """Text that is taken whole wherever it goes; refuses a NUL, and bytes that are not UTF-8."""
    if not is_text(text):
        at = text.find("\0")
        what = f"holds a NUL at character {at}" if at >= 0 else "is not UTF-8"
        raise InvalidArgumentError(f"{argument} {what}: {quote(text)}; accepted: text")
    return text


def decode_text(argument: str, path: str, content: bytes) -> str:
    """The text of a file, whole; refuses what is none, as the native commands do."""
    at = content.find(b"\0")
    if at >= 0:
        raise FormatError(f"{argument}: {quote_path(path)} holds a NUL at byte {at}; expected text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{argument}: {quote_path(path)} is not UTF-8 at byte {error.start}; expected text"
        ) from error
