"""bsfa eval: accuracy, time and density of the method against its baselines, on your model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bsfa.cli.common import (
    Progress,
    add_json,
    add_model_options,
    load_model,
    need,
    numbers,
    positive,
    print_json,
)
from bsfa.errors import InvalidArgumentError
from bsfa.eval import ablation, report
from bsfa.policies import ATTENTIONS, OPTIONS, SWEPT, SWEPT_BY_DEFAULT
from bsfa.provenance import add_dirty, refuse_changes

DEFAULT_LENGTHS = [4096, 8192]
DEFAULT_BUDGETS = [16, 32, 64, 96, 128]


def add(verbs: Any) -> None:
    """Adds the verb and its own verbs."""
    parser = verbs.add_parser(
        "eval", help="accuracy, time to the first token and density, against the baselines"
    )
    inner = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_sweep(inner)
    for name, module, text in (
        ("report", report, "a results file as one page and figures"),
        ("ablate", ablation, "what the thresholds depend on, measured on your model"),
    ):
        verb = inner.add_parser(name, help=text)
        module.add_arguments(verb)
        verb.set_defaults(function=module.run)
    _add_harness(inner)


def _names(text: str) -> list[str]:
    """a,b,c as a list."""
    listed = [part.strip() for part in text.split(",") if part.strip()]
    if not listed:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names")
    return listed


def _layer_head(text: str) -> tuple[int, int]:
    """LAYER:HEAD."""
    layer, _, head = text.partition(":")
    if not (layer.isdecimal() and head.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER:HEAD")
    return int(layer), int(head)


def _reals(text: str) -> list[float]:
    """Numbers between commas; what a mode makes of them it says itself."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from None


def _count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _add_sweep(inner: Any) -> None:
    parser = inner.add_parser(
        "sweep",
        help="RULER-like tasks over modes, budgets and lengths, into one results file",
        description="Needs no download: prompts are made here, of the exact length by the model's "
        "own tokenizer, and scored by RULER's rule. Started again with the same arguments it goes "
        "on where it was interrupted, and tries again what failed.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--out", required=True, metavar="FILE.jsonl", help="the results file, new or to go on with"
    )
    parser.add_argument(
        "--tasks",
        type=_names,
        metavar="NAME,...",
        help="default: the needle tasks (those over a text only with --haystack); `--tasks help` "
        "lists all",
    )
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=DEFAULT_LENGTHS,
        metavar="N,...",
        help="tokens of prompt and answer together; default: 4096,8192",
    )
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=DEFAULT_BUDGETS,
        metavar="K,...",
        help="blocks kept beside the diagonal; default: " + ",".join(map(str, DEFAULT_BUDGETS)),
    )
    parser.add_argument(
        "--modes",
        type=_names,
        default=list(SWEPT_BY_DEFAULT),
        metavar="NAME,...",
        help="; ".join(f"{name} ({ATTENTIONS[name].summary})" for name in SWEPT)
        + "; default: "
        + ",".join(SWEPT_BY_DEFAULT),
    )
    for option, takers in OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            type=_reals,
            default=[],
            metavar=takers[0].setting[0].upper() + ",...",
            help=f"of {', '.join(p.name for p in takers)}; default: {takers[0].default:g}",
        )
    parser.add_argument(
        "--haystack",
        nargs="+",
        metavar="PATH",
        help="texts, files or folders, to hide things in; their first third is for calibration",
    )
    parser.add_argument(
        "--prompts", type=positive, default=100, metavar="N", help="of each point; default: 100"
    )
    parser.add_argument("--seed", type=_count, default=0, help="of the prompts; default: 0")
    parser.add_argument(
        "--thresholds",
        metavar="FILE",
        help="default: calibrate, into a file beside --out, on categories that are not evaluated",
    )
    parser.add_argument(
        "--calibrated-on",
        type=_names,
        metavar="CATEGORY,...",
        help="what --thresholds was calibrated on, if the file does not say",
    )
    parser.add_argument(
        "--calibrate-on",
        type=_names,
        metavar="CATEGORY,...",
        help="of retrieval, tracing, aggregation, text; default: all that no task is in",
    )
    parser.add_argument(
        "--calibration-samples",
        type=positive,
        default=16,
        metavar="N",
        help="of each length; default: 16",
    )
    parser.add_argument(
        "--ttft-runs",
        type=_count,
        default=10,
        metavar="N",
        help="timed prefills of a point, after warm-up, of held-out prompts; default: 10; 0: none",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="prompts at once; default: as many as fit on a GPU, one on the CPU",
    )
    parser.add_argument(
        "--no-chat-template",
        action="store_true",
        help="prompts as plain text although the tokenizer has a chat template",
    )
    parser.add_argument(
        "--skip-uninformative",
        action="store_true",
        help="leave out the other modes where dense attention scores below 50 %%",
    )
    parser.add_argument(
        "--map",
        type=_layer_head,
        action="append",
        metavar="LAYER:HEAD",
        help="keep the blocks of this head over a prompt, for the report; default: one head",
    )
    parser.add_argument(
        "--keep-answers", action="store_true", help="keep the generated texts in the results"
    )
    add_dirty(parser)
    add_json(parser)
    parser.set_defaults(function=sweep)


def _describe(record: Any) -> str:
    """A finished point on one line."""
    name = f"{record.task:16s} {record.length:7d} {record.mode:21s} {record.budget or '':>5}"
    if record.kind == "failed":
        return f"{name}  failed: {record.error.splitlines()[0]}"
    line = f"{name}  accuracy {record.accuracy:6.1%}  density {record.density.measured:.3f}"
    if record.density.predicted is not None:
        line += f" (predicted {record.density.predicted:.3f})"
    if record.ttft_s:
        times = sorted(record.ttft_s)
        line += f"  TTFT {times[len(times) // 2]:.4f} s"
    return line


def sweep(options: argparse.Namespace) -> None:
    """Runs what is missing in the results file."""
    from bsfa.eval.tasks import TASKS

    if options.tasks == ["help"]:
        for task in TASKS.values():
            text = ", needs --haystack" if task.needs_text else ""
            print(f"{task.name:16s} {task.category:12s} {task.summary}{text}")
        return
    refuse_changes(options.dirty)
    need("torch", "transformers")
    from bsfa.eval import sweep as sweeping
    from bsfa.eval.text import load as load_text

    haystack = load_text(options.haystack) if options.haystack else None
    names = options.tasks or [
        task.name
        for task in TASKS.values()
        if task.category == "retrieval" and (haystack is not None or not task.needs_text)
    ]
    plan = sweeping.Plan(
        tasks=names,
        lengths=options.lengths,
        budgets=options.budgets,
        modes=options.modes,
        parameters={
            policy.name: getattr(options, option.replace("-", "_"))
            for option, takers in OPTIONS.items()
            for policy in takers
        },
        prompts=options.prompts,
        seed=options.seed,
        chat_template=not options.no_chat_template,
        thresholds=options.thresholds,
        calibrated_on=options.calibrated_on,
        calibrate_on=options.calibrate_on,
        calibration_samples=options.calibration_samples,
        ttft_runs=options.ttft_runs,
        batch=options.batch,
        skip_uninformative=options.skip_uninformative,
        maps=options.map,
        keep_answers=options.keep_answers,
    )
    model, tokenizer = load_model(options)
    progress = Progress("RULER-like")

    def finished(record: Any) -> None:
        if not options.json:
            progress.clear()
            print(_describe(record), flush=True)

    found = sweeping.run(
        model,
        tokenizer,
        plan,
        options.out,
        haystack,
        progress,
        Progress("calibrating"),
        finished,
    )
    failed = list(found.failed.values())
    if options.json:
        print_json(
            {
                "file": options.out,
                "label": found.header.label,
                "points": len(found.points),
                "failed": [{**vars(record)} for record in failed],
            }
        )
        return
    print(f"{options.out}: {len(found.points)} points (RULER-like tasks), {len(failed)} failed")


def _add_harness(inner: Any) -> None:
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
    run_command(arguments)
