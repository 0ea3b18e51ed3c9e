"""The command line, `python -m bsfa` and `bsfa-py`.

Verbs and options are those of the native `bsfa` where they mean the same. A verb is one module with
a function `add(verbs)` that adds its parser and sets `function`, which returns nothing and raises
bsfa.Error. torch and transformers are imported by the verbs that need them. What is printed goes
through `output`, and `eval` and the rest of the package know nothing of what is here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bsfa import __version__, errors
from bsfa.cli import calibrate, eval, info, output, run, thresholds
from bsfa.text import printable

EXIT_CODES = """\
Exit codes: 0 done; 1 a file could not be read or written, or a failure while running;
            2 the arguments, or the content of an input, were refused."""


class Parser(argparse.ArgumentParser):
    """argparse, whose messages hold the arguments as they came."""

    def error(self, message: str) -> NoReturn:
        """Usage, the message and exit code 2."""
        output.complain(f"{self.format_usage()}{self.prog}: error: {printable(message)}")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version; argparse itself ignores that they could not be written."""
        if file is sys.stdout:
            output.say(message.rstrip("\n"))
        elif message:
            output.complain(message.rstrip("\n"))


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="python -m bsfa",
        description="Block Sparse Flash Attention: a language model reads a long prompt faster by\n"
        "leaving out the blocks of the attention that do not matter.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in (run, calibrate, thresholds, eval, info):
        verb.add(verbs)
    return parser


def _run(arguments: Sequence[str] | None) -> None:
    output.check_streams()
    options = make_parser().parse_args(arguments)
    options.function(options)
    output.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    code, message = 0, ""
    try:
        _run(arguments)
    except output.ClosedPipeError:
        code = output.CLOSED_PIPE
    except (errors.FileError, errors.DeviceError) as error:
        code, message = 1, f"bsfa: error: {error}"
    except errors.Error as error:
        code, message = 2, f"bsfa: error: {error}"
    except MemoryError:
        code, message = 1, "bsfa: error: out of memory"
    except KeyboardInterrupt:
        code, message = 1, "bsfa: interrupted"
    if message:
        output.complain(message)
    if code != 0:
        output.settle()
    return code
