"""bsfa thresholds show|convert|merge|check: threshold files and partial calibrations."""

from __future__ import annotations

import argparse
import os
from typing import Any

from bsfa import report
from bsfa._core import Calibration, ThresholdTable, merge_files
from bsfa.cli.common import add_json
from bsfa.cli.numbers import numbers, positive, positive_real
from bsfa.cli.output import print_json, say
from bsfa.errors import FormatError, InvalidArgumentError
from bsfa.files import check_apart, check_writable, write_text
from bsfa.loading import load_config
from bsfa.packages import need
from bsfa.text import path_text, printable, quote_path, require_text


def add(verbs: Any) -> None:
    """Adds the verb and its own verbs."""
    parser = verbs.add_parser("thresholds", help="threshold files: show, convert, merge, check")
    inner = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    shown = inner.add_parser("show", help="what a file holds, and the density that it predicts")
    shown.add_argument("file", help="a threshold file or a partial calibration")
    shown.add_argument(
        "--length",
        type=numbers,
        action="extend",
        metavar="N,...",
        help="prompt lengths in tokens to predict the density for",
    )
    shown.add_argument("--plot", metavar="FILE.svg", help="also draw thresholds and densities")
    add_json(shown)
    shown.set_defaults(function=show)

    converted = inner.add_parser(
        "convert", help="from the published .pt format to a threshold file, or back"
    )
    converted.add_argument("source", help="FILE.pt or FILE.safetensors")
    converted.add_argument("target", help="the file to write; its suffix says which format")
    converted.add_argument("--model", help="name or path of the model, for an import")
    converted.add_argument(
        "--softmax-scale",
        type=positive_real,
        metavar="X",
        help="for an import; default: the model's",
    )
    converted.add_argument(
        "--max-tokens",
        "--max-seqlen",
        type=positive,
        metavar="N",
        help="longest calibrated prompt, for an import; default: all query blocks",
    )
    add_json(converted)
    converted.set_defaults(function=convert)

    merged = inner.add_parser(
        "merge", help="adds partial calibrations, as if one run had seen all their samples"
    )
    merged.add_argument("parts", nargs="+", help="partial calibrations")
    merged.add_argument("--out", required=True, help="the file to write")
    merged.add_argument("--partial", action="store_true", help="write a partial calibration again")
    merged.add_argument(
        "--allow-other-model",
        action="store_true",
        help="merge parts whose fingerprints say that they are of different weights",
    )
    merged.add_argument("--model", help="the model's name in the new file")
    merged.add_argument(
        "--recommend", type=positive, metavar="K", help="the budget used where none is named"
    )
    add_json(merged)
    merged.set_defaults(function=merge)

    checked = inner.add_parser("check", help="whether a file is sound, and fits a model")
    checked.add_argument("file", help="the threshold file")
    checked.add_argument("--model", metavar="NAME_OR_PATH", help="must match: its configuration")
    checked.add_argument("--layers", type=positive, metavar="N", help="layers of the model")
    checked.add_argument("--heads", type=positive, metavar="N", help="query heads of the model")
    checked.add_argument("--softmax-scale", type=positive_real, metavar="X", help="of the model")
    checked.add_argument("--budget", type=positive, metavar="K", help="must be in the file")
    add_json(checked)
    checked.set_defaults(function=check)


def load_either(path: str) -> tuple[ThresholdTable, bool]:
    """A threshold file, or a partial calibration as the table it would be finished to."""
    try:
        return ThresholdTable.load(path), False
    except FormatError as as_table:
        try:
            return Calibration.load(path).finish(), True
        except FormatError as as_partial:
            # What is wrong with it as a threshold file says more, unless it is the other kind.
            raise (as_partial if "'bsfa-calibration'" in str(as_table) else as_table) from None


def model_shape(config: Any) -> tuple[int, int, float]:
    """Attention layers, query heads and softmax scale: of the model, but without its weights."""
    import torch
    import transformers

    from bsfa.hf import models

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = models.model_shape(model)
    return shape.num_layers, shape.num_heads_q, shape.softmax_scale


def show(options: argparse.Namespace) -> None:
    """Prints a file."""
    if options.plot:
        check_writable("--plot", options.plot)
        check_apart([("--plot", options.plot)], [("the file shown", options.file)])
    table, partial = load_either(options.file)
    lengths = options.length or report.default_lengths(table.max_seqlen)
    summary = report.summarise(table, lengths)
    if options.plot:
        write_text(options.plot, report.as_svg(table))
    if options.json:
        kind = "partial calibration" if partial else "thresholds"
        print_json({"file": options.file, "kind": kind, **summary})
        return
    say(
        path_text(options.file)
        + (" (a partial calibration; `merge` makes thresholds of it)" if partial else "")
    )
    say(report.as_text(summary))


def convert(options: argparse.Namespace) -> None:
    """Imports or exports the published format."""
    kinds = [os.path.splitext(path)[1] for path in (options.source, options.target)]
    if sorted(kinds) != [".pt", ".safetensors"]:
        raise InvalidArgumentError(
            f"cannot convert {quote_path(options.source)} to {quote_path(options.target)}; "
            "accepted: a .pt file to .safetensors, or the other way"
        )
    check_writable("the target", options.target)
    need("torch")
    from bsfa.published import load_pt, save_pt

    if kinds[1] == ".pt":
        save_pt(ThresholdTable.load(options.source), options.target)
    else:
        scale, shape = options.softmax_scale, None
        if options.model is None and scale is None:
            raise InvalidArgumentError(
                "a .pt file does not say what it is for: give --model, or --softmax-scale"
            )
        if scale is None:
            shape = model_shape(load_config(options.model))
            scale = shape[2]
        table = load_pt(
            options.source,
            softmax_scale=scale,
            model=printable(options.model or "unknown"),
            max_seqlen=options.max_tokens,
        )
        if shape is not None:
            table.check_model(options.model, *shape)
        table.save(options.target)
    if options.json:
        print_json({"source": options.source, "target": options.target})
    else:
        say(f"wrote {path_text(options.target)}")


def merge(options: argparse.Namespace) -> None:
    """Adds partial calibrations."""
    if options.partial and options.recommend is not None:
        raise InvalidArgumentError("--recommend belongs to thresholds; --partial was given")
    check_writable("--out", options.out)
    total = merge_files(
        options.parts,
        options.out,
        partial=options.partial,
        model=require_text("--model", options.model or ""),
        recommended_budget=options.recommend,
        allow_other_model=options.allow_other_model,
    )
    if options.json:
        print_json({"out": options.out, "num_samples": total.num_samples})
    else:
        say(f"wrote {path_text(options.out)}: {total.num_samples} samples")


def check(options: argparse.Namespace) -> None:
    """Refuses a file that is not sound or not for the model."""
    table = ThresholdTable.load(options.file)
    layers, heads, scale = table.num_layers, table.num_heads_q, table.softmax_scale
    what = "the model"
    if options.model:
        layers, heads, scale = model_shape(load_config(options.model))
        what = printable(options.model)
    table.check_model(
        what, options.layers or layers, options.heads or heads, options.softmax_scale or scale
    )
    if options.budget is not None:
        table.thresholds(options.budget)
    if options.json:
        print_json({"file": options.file, "sound": True})
    else:
        say(f"{path_text(options.file)}: sound" + (f", for {what}" if options.model else ""))
