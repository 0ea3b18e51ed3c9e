"""bsfa eval sweep: tasks over modes, budgets and lengths, into one results file."""

from __future__ import annotations

import argparse
from typing import Any

from bsfa._core import MAX_TOKENS
from bsfa.cli.common import Progress, add_dirty, add_json, add_model_options, load_model, names
from bsfa.cli.numbers import MAX_SEED, layer_head, numbers, positive, positive_reals, whole
from bsfa.cli.output import print_json, say
from bsfa.eval import results
from bsfa.files import check_apart, check_writable
from bsfa.packages import need
from bsfa.policies import ATTENTIONS, OPTIONS, SWEPT, SWEPT_BY_DEFAULT
from bsfa.provenance import refuse_changes
from bsfa.text import path_text, printable

DEFAULT_LENGTHS = [4096, 8192]
DEFAULT_BUDGETS = [16, 32, 64, 96, 128]


def add(inner: Any) -> None:
    """Adds the verb."""
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
        type=names,
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
        type=names,
        default=list(SWEPT_BY_DEFAULT),
        metavar="NAME,...",
        help="; ".join(f"{name} ({ATTENTIONS[name].summary})" for name in SWEPT)
        + "; default: "
        + ",".join(SWEPT_BY_DEFAULT),
    )
    for option, takers in OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            type=positive_reals,
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
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, help="of the prompts; default: 0"
    )
    parser.add_argument(
        "--thresholds",
        metavar="FILE",
        help="default: calibrate, into a file beside --out, on categories that are not evaluated",
    )
    parser.add_argument(
        "--calibrated-on",
        type=names,
        metavar="CATEGORY,...",
        help="what --thresholds was calibrated on, if the file does not say",
    )
    parser.add_argument(
        "--calibrate-on",
        type=names,
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
        type=whole(0, MAX_TOKENS),
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
        type=layer_head,
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
        return f"{name}  failed: {printable(record.error.splitlines()[0])}"
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
            say(f"{task.name:16s} {task.category:12s} {task.summary}{text}")
        return
    refuse_changes(options.dirty)
    need("torch", "transformers")
    from bsfa.eval import sweep as sweeping
    from bsfa.eval.text import load as load_text

    inputs = [("--model", options.model)]
    inputs += [("--haystack", path) for path in options.haystack or []]
    inputs += [("--thresholds", options.thresholds)] if options.thresholds else []
    check_writable("--out", options.out)
    check_apart([("--out", options.out)], inputs)
    haystack = load_text(options.haystack) if options.haystack else None
    tasks = options.tasks or [
        task.name
        for task in TASKS.values()
        if task.category == "retrieval" and (haystack is not None or not task.needs_text)
    ]
    plan = sweeping.Plan(
        tasks=tasks,
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
    with results.Writer(options.out) as writer:
        model, tokenizer = load_model(options)
        progress = Progress("RULER-like")

        def finished(record: Any) -> None:
            if not options.json:
                progress.clear()
                say(_describe(record))

        found = sweeping.run(
            model,
            tokenizer,
            plan,
            writer,
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
    say(
        f"{path_text(options.out)}: {len(found.points)} points (RULER-like tasks), {len(failed)} "
        "failed"
    )
