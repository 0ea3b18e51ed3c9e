"""What a command prints: its results on stdout, everything else on stderr.

A result that nobody got is a failure: a full disk is an error like any other. Somebody who closed
the other end of a pipe has what they wanted: the command ends without a word, with the exit code of
a program that the closed pipe ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from bsfa.errors import FileError
from bsfa.text import said

__all__ = [
    "CLOSED_PIPE",
    "ClosedPipeError",
    "check_streams",
    "complain",
    "finish",
    "print_json",
    "say",
    "settle",
]

CLOSED_PIPE = 128 + signal.SIGPIPE


class ClosedPipeError(Exception):
    """Nobody reads what is printed."""


def check_streams() -> None:
    """Refuses a closed stdout; gives what else is closed an end, so that no file gets its number.

    A file that was opened as descriptor 2 would take up what was meant for the terminal.
    """
    for descriptor in (0, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        raise FileError("standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        # What the terminal's encoding has no sign for is written as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ClosedPipeError from None
    except OSError as error:
        raise FileError(f"standard output cannot be written: {said(error)}") from error


def say(text: str = "") -> None:
    """Prints lines. Words in them that come from elsewhere have been through `bsfa.text`."""
    with _printing():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON object; numbers that are none become null.

    Nothing but ASCII: JSON leaves some characters alone that a terminal acts upon.
    """
    say(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def finish() -> None:
    """What is on its way to stdout, written."""
    with _printing():
        sys.stdout.flush()


def settle() -> None:
    """Writes what can be written, and forgets the rest, which Python would try again at its end."""
    try:
        if sys.stdout is not None:
            finish()
    except (ClosedPipeError, FileError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def complain(text: str) -> None:
    """A line on stderr, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
