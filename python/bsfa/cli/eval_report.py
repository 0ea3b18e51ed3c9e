"""bsfa eval report: a results file as one HTML page and PNG figures."""

from __future__ import annotations

import argparse
from typing import Any

from bsfa.cli.common import add_json
from bsfa.cli.output import print_json, say
from bsfa.eval import report
from bsfa.policies import ATTENTIONS
from bsfa.text import path_text, printable


def add(inner: Any) -> None:
    """Adds the verb."""
    parser = inner.add_parser("report", help="a results file as one page and figures")
    parser.add_argument("results", metavar="FILE.jsonl", help="a results file of `bsfa eval`")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help=f"folder for {report.PAGE} and {report.FIGURES}/*.png; made if it is not there",
    )
    add_json(parser)
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> None:
    """Makes the report and says where it is, and what the target table says."""
    summary = report.write(options.results, options.out)
    if options.json:
        print_json(summary)
        return
    figures = f"{summary['figures']} figures beside it in {report.FIGURES}/"
    say(f"{path_text(summary['page'])} ({figures})")
    for target in summary["targets"]:
        found = "no setting that was run"
        if target["budget"] is not None:
            policy = ATTENTIONS.get(target["mode"])
            setting = "budget" if policy is None else policy.setting
            named = "" if setting == target["mode"] else f"{setting} "
            found = f"{named}{target['budget']}, density {target['density']:.3f}"
        note = "" if target["informative"] else " (uninformative: dense is below 50 %)"
        say(
            f"  99 % of dense on {printable(target['at'], 64)}, {target['length']} tokens: "
            f"{printable(target['mode'], 64)}: {found}{note}"
        )
    for what, count in (("not there", summary["missing"]), ("failed", summary["failed"])):
        if count:
            say(f"  points {what}: {count}; the page lists them")
    if summary["torn"]:
        say(f"  {printable(summary['torn'])}")
