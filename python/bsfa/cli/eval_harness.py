"""bsfa eval harness: the lm-evaluation-harness, which knows the model type `bsfa` here."""

from __future__ import annotations

import argparse
import errno
import json
from typing import Any

from bsfa.cli.output import ClosedPipeError
from bsfa.errors import FileError, InvalidArgumentError
from bsfa.packages import need
from bsfa.text import said


def add(inner: Any) -> None:
    """Adds the verb."""
    parser = inner.add_parser(
        "harness",
        help="the lm-evaluation-harness with the model type 'bsfa'",
        description="The same as the command lm_eval, whose options follow. Model arguments beside "
        "those of its type 'hf': thresholds, budget, mode.",
        add_help=False,
        prefix_chars="\0",  # nothing is an option of this parser: all is passed on
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(function=harness)


def harness(options: argparse.Namespace) -> None:
    """Runs lm_eval."""
    need("torch", "transformers", "lm_eval")
    from bsfa.eval.harness import run_command

    arguments = options.arguments
    if not arguments:
        raise InvalidArgumentError(
            "harness has no arguments; for instance: harness --model bsfa --model_args "
            + json.dumps("pretrained=MODEL,thresholds=FILE,budget=96,mode=threshold")
            + " --tasks ruler_vt"
        )
    try:
        run_command(arguments)
    except OSError as error:  # the harness prints by itself
        if error.errno == errno.EPIPE:
            raise ClosedPipeError from error
        if error.errno != errno.ENOSPC or isinstance(error, FileError):
            raise
        raise FileError(f"the harness could not write: {said(error)}") from error
