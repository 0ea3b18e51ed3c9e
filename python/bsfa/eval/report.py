"""`bsfa eval report`: a results file as one HTML page and PNG figures."""

from __future__ import annotations

import argparse
import os
from typing import Any

from bsfa._core import write_file
from bsfa.cli.common import add_json, need, print_json
from bsfa.cli.thresholds import write_text
from bsfa.errors import FileError
from bsfa.eval import results as results_file

__all__ = ["add_arguments", "run", "write"]

PAGE = "report.html"
FIGURES = "figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("results", metavar="FILE.jsonl", help="a results file of `bsfa eval`")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help=f"folder for {PAGE} and {FIGURES}/*.png; made if it is not there",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Makes the report and says where it is, and what the target table says."""
    summary = write(options.results, options.out)
    if options.json:
        print_json(summary)
        return
    print(f"{summary['page']} ({summary['figures']} figures beside it in {FIGURES}/)")
    for target in summary["targets"]:
        found = "no budget that was run"
        if target["budget"] is not None:
            found = f"budget {target['budget']}, density {target['density']:.3f}"
        note = "" if target["informative"] else " (uninformative: dense is below 50 %)"
        print(
            f"  99 % of dense on {target['at']}, {target['length']} tokens: "
            f"{target['mode']}: {found}{note}"
        )
    for what, count in (("not there", summary["missing"]), ("failed", summary["failed"])):
        if count:
            print(f"  points {what}: {count}; the page lists them")
    if summary["torn"]:
        print(f"  {summary['torn']}")


def write(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes the page and the figures; returns what `--json` prints."""
    need("matplotlib")
    from bsfa.eval import plots
    from bsfa.eval.report_ablations import ablation_rows
    from bsfa.eval.report_analysis import analyse
    from bsfa.eval.report_figures import pictures
    from bsfa.eval.report_page import Drawn, page

    results = results_file.read(path)
    analysis = analyse(results)
    ablations = ablation_rows(results)
    drawn = [
        Drawn(
            picture,
            plots.render(picture.draw, plots.LIGHT, picture.shaded),
            plots.render(picture.draw, plots.DARK, picture.shaded),
        )
        for picture in pictures(analysis, ablations)
    ]
    out = os.fspath(out)
    folder = os.path.join(out, FIGURES)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise FileError(f"--out: {out}: cannot be written: {error.strerror}") from error
    for one in drawn:
        write_file(os.path.join(folder, one.picture.name + ".png"), one.light)
    target = os.path.join(out, PAGE)
    write_text(target, page(analysis, ablations, drawn))
    return {
        "page": target,
        "figures": len(drawn),
        "targets": [
            {
                "at": row.group.title,
                "length": row.group.length,
                "informative": row.group.informative,
                "mode": row.mode,
                "budget": None if row.cell is None else row.cell.budget,
                "density": None if row.cell is None else row.cell.density,
                "accuracy": None if row.cell is None else row.cell.accuracy.value,
                "smallest": row.smallest,
            }
            for row in analysis.targets
        ],
        "missing": len(analysis.missing),
        "failed": len(results.failed),
        "torn": results.torn,
    }
