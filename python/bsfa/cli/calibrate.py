"""bsfa calibrate: makes a model's threshold file from texts, in one pass for all budgets."""

from __future__ import annotations

import argparse
import os
from typing import Any

from bsfa import report
from bsfa.cli.common import Progress, add_json, add_model_options, load_model
from bsfa.cli.numbers import numbers, positive
from bsfa.cli.output import print_json, say
from bsfa.errors import InvalidArgumentError
from bsfa.files import check_apart, check_writable, write_text
from bsfa.packages import need
from bsfa.text import path_text, printable, require_text

DEFAULT_BUDGETS = [4, 8, 16, 32, 64, 96, 128]


def add(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "calibrate",
        help="make a model's threshold file from texts, in one pass for all budgets",
        description="One dense prefill a text. An interrupted calibration that is started again "
        "with the same arguments goes on where it was.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="PATH",
        help="texts: plain text files (one sample each), .json lists and .jsonl lines of strings "
        'or of objects with "input_text", or folders of such files',
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the threshold file to write")
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=DEFAULT_BUDGETS,
        metavar="K,...",
        help="blocks kept beside the diagonal; default: " + ",".join(map(str, DEFAULT_BUDGETS)),
    )
    parser.add_argument(
        "--recommend", type=positive, metavar="K", help="the budget used where none is named"
    )
    parser.add_argument(
        "--samples", type=positive, default=16, metavar="N", help="at most so many; default: 16"
    )
    parser.add_argument(
        "--max-tokens",
        "--max-seqlen",
        type=positive,
        metavar="N",
        help="cut samples to so many tokens; default: the model's context",
    )
    parser.add_argument("--model-name", metavar="NAME", help="the model's name in the file")
    parser.add_argument(
        "--partial", metavar="FILE", help="also write the sums, for `thresholds merge`"
    )
    parser.add_argument(
        "--allow-other-model",
        action="store_true",
        help="go on with the sums of an interrupted calibration although the weights are others",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="default: the threshold file's name with .svg"
    )
    add_json(parser)
    parser.set_defaults(function=calibrate)


def _check_files(options: argparse.Namespace, plot: str) -> None:
    """What could not be written at the end, or would replace something, is refused before."""
    written = [("--out", options.out), ("--plot", plot)]
    if options.partial is not None:
        written.append(("--partial", options.partial))
    for argument, path in written:
        check_writable(argument, path)
    check_apart(written, [("--model", options.model), *(("--data", path) for path in options.data)])


def calibrate(options: argparse.Namespace) -> None:
    """Calibrates, writes, and shows the table."""
    need("torch", "transformers")
    from bsfa import calibration

    plot = options.plot or os.path.splitext(options.out)[0] + ".svg"
    _check_files(options, plot)
    if options.recommend is not None and options.recommend not in options.budgets:
        raise InvalidArgumentError(
            f"--recommend is {options.recommend}; accepted: one of --budgets, "
            + ", ".join(map(str, sorted(options.budgets)))
        )
    name = require_text("--model-name", options.model_name or "")
    samples = calibration.read_samples(options.data)[: options.samples]
    model, tokenizer = load_model(options)
    limit = options.max_tokens or getattr(
        model.config.get_text_config(decoder=True), "max_position_embeddings", None
    )
    table = calibration.calibrate(
        model,
        samples,
        tokenizer=tokenizer,
        budgets=options.budgets,
        max_seqlen=limit,
        recommend=options.recommend,
        model_name=name or printable(os.path.basename(os.path.normpath(options.model))),
        out=options.out,
        partial=options.partial,
        allow_other_model=options.allow_other_model,
        progress=Progress("calibrating"),
    )
    write_text(plot, report.as_svg(table))
    summary = report.summarise(table, report.default_lengths(table.max_seqlen))
    if options.json:
        print_json({"file": options.out, "plot": plot, **summary})
        return
    say(path_text(options.out))
    say(report.as_text(summary))
    say(f"\nA picture of it by layer and head: {path_text(plot)}")
