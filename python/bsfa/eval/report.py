"""`bsfa eval report`: a results file as one HTML page and PNG figures."""

from __future__ import annotations

import os
from typing import Any

from bsfa._core import write_file
from bsfa.errors import FileError
from bsfa.eval import results as results_file
from bsfa.files import check_apart, check_folder, check_writable, write_text
from bsfa.packages import need
from bsfa.text import quote_path, said

__all__ = ["FIGURES", "PAGE", "write"]

PAGE = "report.html"
FIGURES = "figures"


def write(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes the page and the figures; returns what `--json` prints."""
    need("matplotlib")
    from bsfa.eval import plots
    from bsfa.eval.report_ablations import ablation_rows
    from bsfa.eval.report_analysis import analyse
    from bsfa.eval.report_figures import pictures
    from bsfa.eval.report_page import Drawn, page

    out = os.fspath(out)
    folder, target = os.path.join(out, FIGURES), os.path.join(out, PAGE)
    check_folder("--out", folder)
    if os.path.isdir(out):
        check_writable("--out", target)
    check_apart([("--out", target)], [("the results file", os.fspath(path))])
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
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise FileError(f"--out: {quote_path(out)} cannot be made: {said(error)}") from error
    for one in drawn:
        write_file(os.path.join(folder, one.picture.name + ".png"), one.light)
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
