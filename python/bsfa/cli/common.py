"""What the verbs share: options, and progress on the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from bsfa import loading
from bsfa._core import MAX_WORKERS
from bsfa.cli.numbers import whole
from bsfa.text import printable

__all__ = ["Progress", "add_dirty", "add_json", "add_model_options", "load_model", "names"]


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag --json of every verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def names(text: str) -> list[str]:
    """a,b,c as a list."""
    listed = [part.strip() for part in text.split(",") if part.strip()]
    if not listed:
        raise argparse.ArgumentTypeError("no name is in it; accepted: a list of names")
    return listed


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --dtype, --device, --threads."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_PATH",
        help="a model of Transformers: a folder, a name, or a .gguf file",
    )
    parser.add_argument(
        "--dtype",
        choices=loading.DTYPES,
        default="auto",
        help="of the weights; auto: as stored (default)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: cuda if any")
    parser.add_argument("--threads", type=whole(1, MAX_WORKERS), metavar="N", help="CPU threads")


def add_dirty(parser: argparse.ArgumentParser) -> None:
    """The option --dirty of every verb that writes a results file."""
    parser.add_argument(
        "--dirty",
        action="store_true",
        help="also with a bsfa that was built from changed source: the results say so",
    )


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the tokenizer that the options name."""
    return loading.load_model(options.model, options.dtype, options.device, options.threads)


class Progress:
    """Samples done and the time left, on stderr: a bar on a terminal, nothing elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begin = time.monotonic()
        self._first: int | None = None
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, done: int, total: int, name: str) -> None:
        """Draws; done == total ends it."""
        if not self._terminal:
            return
        if self._first is None:
            self._first = done
        left = ""
        if done > self._first:
            seconds = (time.monotonic() - self._begin) / (done - self._first) * (total - done)
            left = f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        end = "\n" if done == total else ""
        print(
            f"\r\033[K{self._title} [{bar}] {done}/{total}{left} {printable(name, 64)}",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        """Makes room for a line of text; the next call draws again."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
