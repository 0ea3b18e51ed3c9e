"""The command line, `python -m bsfa` and `bsfa-py`.

Verbs and options are those of the native `bsfa` where they mean the same. A verb is one module with
a function `add(verbs)` that adds its parser and sets `function`, which returns nothing and raises
bsfa.Error. torch and transformers are imported by the verbs that need them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bsfa import __version__, errors
from bsfa.cli import calibrate, eval, info, run, thresholds

EXIT_CODES = """\
Exit codes: 0 done; 1 a file could not be read or written, or a failure while running;
            2 the arguments, or the content of an input, were refused."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        options.function(options)
    except (errors.FileError, errors.DeviceError) as error:
        print(f"bsfa: error: {error}", file=sys.stderr)
        return 1
    except errors.Error as error:
        print(f"bsfa: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bsfa: interrupted", file=sys.stderr)
        return 1
    return 0
