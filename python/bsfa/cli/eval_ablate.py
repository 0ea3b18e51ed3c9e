"""bsfa eval ablate: what the thresholds depend on, on one's own model and texts."""

from __future__ import annotations

import argparse
from typing import Any

from bsfa.cli.common import Progress, add_dirty, add_json, add_model_options, load_model, names
from bsfa.cli.numbers import numbers, positive
from bsfa.cli.output import print_json, say
from bsfa.eval import ablation, results
from bsfa.files import check_apart, check_folder, check_writable
from bsfa.packages import need
from bsfa.provenance import refuse_changes
from bsfa.text import path_text


def add(inner: Any) -> None:
    """Adds the verb."""
    parser = inner.add_parser(
        "ablate", help="what the thresholds depend on, measured on your model"
    )
    add_arguments(parser)
    parser.set_defaults(function=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    add_model_options(parser)
    parser.add_argument(
        "--domain",
        required=True,
        action="append",
        metavar="NAME=PATH[,PATH...]",
        help="texts of one kind: files, folders of them, or .json lists of {'input_text'}; the "
        "first is the one for everything but the ablation 'domain', which takes all",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.jsonl",
        help="a results file; what is there of the same settings is not measured again",
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        help="folder for calibrated samples, so that an interruption loses one at most; "
        "default: FILE.jsonl with .work",
    )
    parser.add_argument(
        "--ablations",
        type=names,
        default=list(ablation.NAMES),
        metavar="NAME,...",
        help="default: " + ",".join(ablation.NAMES),
    )
    parser.add_argument(
        "--length", type=positive, default=4096, metavar="N", help="tokens; default: 4096"
    )
    parser.add_argument(
        "--prompts", type=positive, default=8, metavar="N", help="evaluated; default: 8"
    )
    parser.add_argument(
        "--samples",
        type=numbers,
        default=[4, 8, 16, 32],
        metavar="N,...",
        help="calibration samples to compare; default: 4,8,16,32",
    )
    parser.add_argument(
        "--calibrate-on",
        type=positive,
        default=16,
        metavar="N",
        help="samples in the other ablations; default: 16",
    )
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=[8, 16, 32],
        metavar="K,...",
        help="in blocks of 64 keys; default: 8,16,32",
    )
    add_dirty(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Calibrates, measures, and appends a record for each setting and budget."""
    refuse_changes(options.dirty)
    need("torch", "transformers")
    plan = ablation.Plan(
        domains=options.domain,
        ablations=options.ablations,
        length=options.length,
        prompts=options.prompts,
        samples=options.samples,
        calibrate_on=options.calibrate_on,
        budgets=options.budgets,
    )
    work = options.work or options.out + ".work"
    check_writable("--out", options.out)
    check_folder("--work", work)
    texts = [path for domain in plan.domains for path in ablation.paths_of(domain)]
    check_apart(
        [("--out", options.out)],
        [("--model", options.model), *(("--domain", path) for path in texts)],
    )
    with results.Writer(options.out) as writer:
        model, tokenizer = load_model(options)
        done = ablation.run(
            model, tokenizer, plan, writer, work, Progress("calibrating"), Progress("measuring")
        )
    if options.json:
        print_json({"file": options.out, "measured": done.measured, "settings": done.settings})
    else:
        say(f"{path_text(options.out)}: {done.measured} points measured, {done.there} were there")
