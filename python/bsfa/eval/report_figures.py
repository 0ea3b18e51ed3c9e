"""Which figures a report has."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from bsfa.eval import plots
from bsfa.eval.report_ablations import QUANTITIES, TITLES, AblationRow
from bsfa.eval.report_analysis import Analysis, Cell, Group, mode_order
from bsfa.eval.results import Map, Number, Point, Results
from bsfa.policies import EXACT, METHOD

__all__ = ["Picture", "needle_grids", "pictures"]

GATE_BLOCK = (128, 64)
"""Of the sweep: query rows and keys."""
MOST_MAPS = 12
LONGEST_NAME = 150
"""Characters of a file's name."""
DEPTHS = 11
"""Rows of a needle grid at the most."""


@dataclass(frozen=True)
class Picture:
    """One figure: drawn when it is asked for."""

    section: str
    name: str
    """Of its file, without the suffix."""
    caption: str
    draw: plots.Draw
    detail: bool = False
    """Folded away on the page."""
    shaded: bool = False
    """Has a scale of colours."""


def _file_name(*parts: object) -> str:
    text = "-".join(str(part) for part in parts if part is not None)
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)
    if plain == text and len(plain) <= LONGEST_NAME:
        return plain
    # Two names may be alike but for what was replaced or cut off.
    return plain[:LONGEST_NAME] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def _curves(analysis: Analysis) -> list[Picture]:
    found = []
    for group in analysis.groups:
        main = group in analysis.main
        sparse = [cell for cell in group.cells if cell.mode not in EXACT]
        for against, has in (
            ("ttft", main and any(cell.ttft_speedup for cell in sparse)),
            ("attention", main and any(cell.attention_speedup for cell in sparse)),
            ("density", bool(sparse)),
        ):
            if has:
                found.append(
                    Picture(
                        "accuracy",
                        _file_name("accuracy", against, group.title, group.length),
                        "",
                        partial(_draw_curve, group, against),
                        detail=not main,
                    )
                )
    return found


def _draw_curve(group: Group, against: str, theme: plots.Theme) -> plots.Figure:
    return plots.accuracy_curve(group, against, theme)


def _chosen_budget(analysis: Analysis, length: int, densities: dict[int, float]) -> int:
    """The one of the target table if it leaves something out, else the middle one that does."""
    for target in analysis.targets:
        budget = None if target.cell is None else target.cell.budget
        wanted = (target.group.length, target.mode) == (length, METHOD)
        if wanted and isinstance(budget, int) and densities.get(budget, 1) < 1:
            return budget
    sparse = [budget for budget, density in densities.items() if density < 1] or [*densities]
    return sparse[len(sparse) // 2]


def _mean_by_head(points: Sequence[Point]) -> list[list[float]]:
    """Mean over points of [layers][heads]; a layer that a point lacks stays empty."""
    layers = []
    for rows in zip(*(point.density_by_head for point in points), strict=False):
        whole = all(len(row) == len(rows[0]) for row in rows)
        layers.append([fmean(values) for values in zip(*rows, strict=True)] if whole else [])
    return layers


def _heat_maps(analysis: Analysis) -> list[Picture]:
    found = []
    points = [
        point
        for point in analysis.results.points.values()
        if point.mode == METHOD and any(point.density_by_head)
    ]
    for length in sorted({point.length for point in points}):
        here = [point for point in points if point.length == length]
        budgets = sorted({point.budget for point in here if isinstance(point.budget, int)})
        if not budgets:
            continue
        densities = {
            budget: fmean(p.density.measured for p in here if p.budget == budget)
            for budget in budgets
        }
        chosen = _chosen_budget(analysis, length, densities)
        for budget in budgets:
            of_budget = [point for point in here if point.budget == budget]
            found.append(
                Picture(
                    "density",
                    _file_name("density-by-head", length, budget),
                    f"Mean over the prompts of {len(of_budget)} "
                    f"{'task' if len(of_budget) == 1 else 'tasks'}.",
                    partial(
                        plots.density_heat_map,
                        f"threshold, budget {budget}, {length:,} tokens",
                        _mean_by_head(of_budget),
                    ),
                    detail=budget != chosen,
                    shaded=True,
                )
            )
    return found


def _predicted(analysis: Analysis) -> list[Picture]:
    lengths = {group.length for group in analysis.averages}
    widest = {n: max(len(g.tasks) for g in analysis.averages if g.length == n) for n in lengths}
    groups = [g for g in analysis.averages if len(g.tasks) == widest[g.length]]
    groups += [g for g in analysis.tasks if g.length not in lengths]
    cells: list[tuple[int, Cell]] = [
        (group.length, cell)
        for group in groups
        for cell in group.cells
        if cell.mode not in EXACT and cell.density_predicted is not None
    ]
    if not cells:
        return []
    caption = "Mean over the tasks; bars: from the lowest to the highest density of a prompt."
    return [
        Picture(
            "density",
            "density-predicted-measured",
            caption,
            partial(plots.predicted_measured, cells),
        )
    ]


def _keeps_all(kept: Map) -> bool:
    """Whether every block that can be seen is kept."""
    return all(
        bit
        for i, row in enumerate(kept.kept())
        for j, bit in enumerate(row)
        if j * GATE_BLOCK[1] < (i + 1) * GATE_BLOCK[0]
    )


def _maps(results: Results) -> list[Picture]:
    return [
        Picture(
            "maps",
            _file_name(
                "kept",
                kept.task,
                kept.length,
                kept.mode,
                kept.budget,
                kept.layer,
                kept.head,
                kept.prompt,
            ),
            "",
            partial(plots.kept_blocks, kept, GATE_BLOCK),
            detail=kept.mode != METHOD or _keeps_all(kept),
        )
        for kept in sorted(
            results.maps.values(),
            key=lambda kept: (mode_order(kept.mode), kept.length, kept.budget or 0),
        )[:MOST_MAPS]
    ]


def _depth_bins(depths: Sequence[float]) -> Callable[[float], float]:
    """The depths as they are where they are few, else rounded to tenths."""
    if len(set(depths)) <= DEPTHS:
        return lambda depth: depth
    return lambda depth: math.floor(10 * depth + 0.5) / 10


def _shared_tasks(points: Sequence[Point]) -> dict[int, set[str]]:
    """By length, the tasks that every setting of that length has, so that grids compare."""
    tasks: dict[int, dict[tuple[str, Number | None], set[str]]] = {}
    for point in points:
        settings = tasks.setdefault(point.length, {})
        settings.setdefault((point.mode, point.budget), set()).add(point.task)
    return {length: set.intersection(*found.values()) for length, found in tasks.items()}


def needle_grids(results: Results) -> list[plots.NeedleGrid]:
    """By mode and budget, over the tasks whose needle has a depth."""
    points = [
        point
        for point in results.points.values()
        if any(prompt.depth is not None for prompt in point.prompts)
    ]
    shared = _shared_tasks(points)
    scores: dict[tuple[str, Number | None], dict[tuple[float, int], list[float]]] = {}
    found = [
        (point, prompt.depth, prompt.score)
        for point in points
        for prompt in point.prompts
        if prompt.depth is not None and point.task in shared[point.length]
    ]
    place = _depth_bins([depth for _, depth, _ in found])
    for point, depth, score in found:
        cells = scores.setdefault((point.mode, point.budget), {})
        cells.setdefault((place(depth), point.length), []).append(score)
    rows = sorted({place(depth) for _, depth, _ in found})
    tasks = tuple(sorted({point.task for point, _, _ in found}))
    grids = []
    for setting in sorted(scores, key=lambda s: (mode_order(s[0]), s[1] or 0)):
        cells = scores[setting]
        lengths = sorted({length for _, length in cells})
        counts = [len(values) for values in cells.values()]
        accuracy = [
            [fmean(cells[d, n]) if (d, n) in cells else None for n in lengths] for d in rows
        ]
        grids.append(
            plots.NeedleGrid(*setting, lengths, rows, accuracy, tasks, min(counts), max(counts))
        )
    return grids


def _needles(results: Results) -> list[Picture]:
    return [
        Picture(
            "needle",
            _file_name("needle", grid.mode, grid.budget),
            f"{', '.join(grid.tasks)}: mean score in per cent; {grid.fewest}"
            + ("" if grid.fewest == grid.most else f" to {grid.most}")
            + " prompts a cell, too few for a cell alone to mean much.",
            partial(plots.needle_grid, grid),
            detail=grid.mode not in ("dense", METHOD),
            shaded=True,
        )
        for grid in needle_grids(results)
    ]


def _ablations(rows: dict[str, Sequence[AblationRow]]) -> list[Picture]:
    found = []
    for name, listed in rows.items():
        for quantity, label in QUANTITIES.items():
            values = [row.quantities[quantity] for row in listed]
            if all(value is None for value in values):
                continue
            lengths = {row.length for row in listed if row.length is not None}
            tokens = ", ".join(f"{length:,}" for length in sorted(lengths))
            prompts = max(row.n for row in listed)
            found.append(
                Picture(
                    "ablations",
                    _file_name("ablation", name, quantity),
                    f"n = {prompts} prompts a point"
                    + (f" of {tokens} tokens" if tokens else "")
                    + "; bars: 95 % t intervals of the mean.",
                    partial(plots.ablation_dots, TITLES.get(name, name), listed, quantity, label),
                    detail=quantity == "perplexity_change",
                )
            )
    return found


def pictures(analysis: Analysis, ablations: dict[str, Sequence[AblationRow]]) -> list[Picture]:
    """All figures that the results allow, in the order of the page."""
    return [
        *_curves(analysis),
        *_predicted(analysis),
        *_heat_maps(analysis),
        *_maps(analysis.results),
        *_needles(analysis.results),
        *_ablations(ablations),
    ]
