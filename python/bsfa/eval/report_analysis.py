"""What a results file says: every figure and table of the report, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bsfa.errors import FormatError
from bsfa.eval.results import Key, Number, Point, Results
from bsfa.eval.statistics import (
    Interval,
    bracket,
    paired_difference,
    ratio_of_medians,
    wilson,
)
from bsfa.policies import EXACT, METHOD, POLICIES
from bsfa.text import path_text

__all__ = ["Analysis", "Cell", "Comparison", "Group", "Target", "analyse"]

INFORMATIVE = 0.5
"""Where dense attention scores below this, a difference from it says nothing about the method."""
MOST_POINTS = 100_000
"""Of the grid that a file names: every one that is missing has a line in the report."""
TARGET = 0.99
"""Share of the accuracy of dense attention that the target table asks for."""

Setting = tuple[str, Number | None]
"""(mode, what it is set by: its budget, or its parameter)."""
Scores = dict[tuple[str, int], float]
"""Score by (task, prompt id)."""


@dataclass(frozen=True)
class Cell:
    """One mode and budget over the prompts of a group."""

    mode: str
    budget: Number | None
    accuracy: Interval
    scores: Scores
    density: float
    density_predicted: float | None
    density_low: float
    density_high: float
    peak_memory_bytes: int
    ttft: float | None = None
    """Sum over the tasks of the median seconds to the first token; None if not timed."""
    attention: float | None = None
    """Likewise of the seconds of attention."""
    difference: Interval | None = None
    """Accuracy less that of dense on the same prompts; None for dense, or without it."""
    gained: int = 0
    """Prompts that scored higher than with dense."""
    lost: int = 0
    ttft_speedup: Interval | None = None
    attention_speedup: Interval | None = None

    @property
    def setting(self) -> Setting:
        """(mode, budget)."""
        return self.mode, self.budget


@dataclass(frozen=True)
class Group:
    """Points that may be compared: one task, or the mean of several, at one length."""

    title: str
    tasks: tuple[str, ...]
    length: int
    cells: list[Cell]

    @property
    def dense(self) -> Cell | None:
        """The dense point."""
        return next((cell for cell in self.cells if cell.mode == "dense"), None)

    @property
    def informative(self) -> bool:
        """Whether dense attention is good enough at this to measure a loss by."""
        return self.dense is not None and self.dense.accuracy.value >= INFORMATIVE

    @property
    def compares(self) -> bool:
        """Whether it has both dense attention and a mode that leaves something out."""
        return self.dense is not None and any(cell.mode not in EXACT for cell in self.cells)

    def of(self, mode: str) -> list[Cell]:
        """The cells of a mode, by budget."""
        return [cell for cell in self.cells if cell.mode == mode]


@dataclass(frozen=True)
class Comparison:
    """A measured point against another mode at the same density or time."""

    group: Group
    cell: Cell
    other: str
    at: float
    """Density, or seconds of attention."""
    between: tuple[Number | None, Number | None]
    """The budgets of the other mode that its accuracy is interpolated between."""
    accuracy: float
    """Of the other mode there."""
    difference: Interval
    """Of the cell over the other mode, on the same prompts."""


@dataclass(frozen=True)
class Target:
    """The smallest density of a mode that keeps TARGET of the accuracy of dense."""

    group: Group
    mode: str
    cell: Cell | None
    """None if no budget that was run reaches it."""
    smallest: bool = False
    """Of all modes, and below 1: something is left out."""


@dataclass
class Analysis:
    """All of it."""

    results: Results
    tasks: list[Group] = field(default_factory=list)
    averages: list[Group] = field(default_factory=list)
    equal_density: list[Comparison] = field(default_factory=list)
    equal_time: list[Comparison] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    task_targets: list[Target] = field(default_factory=list)
    """Of each task that is not among those of `targets` itself."""
    missing: list[tuple[str, int, str, Number | None, str]] = field(default_factory=list)
    """(task, length, mode, budget, what is missing)."""

    @property
    def groups(self) -> list[Group]:
        """Means first."""
        return self.averages + self.tasks

    @property
    def main(self) -> list[Group]:
        """The means; at a length with no more than one task, that task.

        Where one task alone is informative, it stands for the mean of the informative ones.
        """
        chosen = list(self.averages)
        for length in sorted({group.length for group in self.tasks}):
            here = [group for group in self.tasks if group.length == length]
            tasks = [group for group in here if group.compares] or here
            informative = [group for group in tasks if group.informative]
            if len(tasks) == 1:
                chosen += tasks
            elif len(informative) == 1:
                chosen += informative
        return sorted(chosen, key=lambda group: group.length)


def mode_order(mode: str) -> tuple[int, str]:
    """Exact modes, the method, then the others by name."""
    first = (*EXACT, METHOD)
    return first.index(mode) if mode in first else len(first), mode


def _setting_order(setting: Setting) -> tuple[tuple[int, str], Number]:
    return mode_order(setting[0]), -1 if setting[1] is None else setting[1]


def setting_name(mode: str, budget: Number | None) -> str:
    """For tables."""
    return mode if budget is None else f"{mode} {budget}"


def _ratio(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> Interval | None:
    if not all(above) or not all(below) or min(map(min, below)) <= 0:
        return None
    return ratio_of_medians(above, below)


def _scores(points: Iterable[Point]) -> Scores:
    return {(point.task, prompt.id): prompt.score for point in points for prompt in point.prompts}


def _weights(keys: Sequence[tuple[str, int]]) -> list[float]:
    """Every task counts the same, however many prompts it has."""
    counts: dict[str, int] = {}
    for task, _ in keys:
        counts[task] = counts.get(task, 0) + 1
    return [1 / counts[task] for task, _ in keys]


def _paired(above: Scores, below: Scores) -> Interval | None:
    """Difference over the prompts that both have."""
    keys = [key for key in above if key in below]
    if not keys:
        return None
    return paired_difference([above[key] - below[key] for key in keys], _weights(keys))


def _cell(points: Sequence[Point], dense: Sequence[Point] | None) -> Cell:
    """The mean over some tasks; dense: its points of the same tasks."""
    scores = _scores(points)
    keys = list(scores)
    count = len(points)
    predicted = [p.density.predicted for p in points if p.density.predicted is not None]
    cell = Cell(
        mode=points[0].mode,
        budget=points[0].budget,
        accuracy=wilson([scores[key] for key in keys], _weights(keys)),
        scores=scores,
        density=sum(p.density.measured for p in points) / count,
        density_predicted=sum(predicted) / count if len(predicted) == count else None,
        density_low=min(p.density.low for p in points),
        density_high=max(p.density.high for p in points),
        peak_memory_bytes=max(p.peak_memory_bytes for p in points),
        ttft=_sum_of_medians([p.ttft_s for p in points]),
        attention=_sum_of_medians([p.attention_s for p in points]),
    )
    if dense is None or cell.mode == "dense":
        return cell
    before = _scores(dense)
    changes = [scores[key] - before[key] for key in keys if key in before]
    # Speedups need times of the same tasks on both sides.
    extra = {
        "difference": _paired(scores, before),
        "gained": sum(change > 0 for change in changes),
        "lost": sum(change < 0 for change in changes),
        "ttft_speedup": _ratio([p.ttft_s for p in dense], [p.ttft_s for p in points]),
        "attention_speedup": _ratio(
            [p.attention_s for p in dense], [p.attention_s for p in points]
        ),
    }
    return Cell(**{**vars(cell), **extra})


def _sum_of_medians(groups: Sequence[Sequence[float]]) -> float | None:
    return sum(median(group) for group in groups) if all(groups) else None


def _group(title: str, tasks: Sequence[str], length: int, points: dict[str, list[Point]]) -> Group:
    """points: by task, those with prompts; settings that lack one of the tasks are left out."""
    by_setting: dict[Setting, dict[str, Point]] = {}
    for task in tasks:
        for point in points[task]:
            by_setting.setdefault((point.mode, point.budget), {})[task] = point
    whole = {
        setting: [found[task] for task in tasks]
        for setting, found in by_setting.items()
        if len(found) == len(tasks)
    }
    dense = whole.get(("dense", None))
    cells = [_cell(whole[setting], dense) for setting in sorted(whole, key=_setting_order)]
    return Group(title, tuple(tasks), length, cells)


def _comparisons(group: Group, x_of: Callable[[Cell], float | None]) -> list[Comparison]:
    """Every point of the method against every other sparse mode that was measured around it."""
    found = []
    for other in sorted({cell.mode for cell in group.cells} - {*EXACT, METHOD}):
        curve = sorted(
            ((x, cell) for cell in group.of(other) if (x := x_of(cell)) is not None),
            key=lambda pair: pair[0],
        )
        for cell in group.of(METHOD):
            x = x_of(cell)
            place = None if x is None else bracket([x for x, _ in curve], x)
            if x is None or place is None:
                continue
            left, right = curve[place[0]][1], curve[place[1]][1]
            if cell.density == left.density == right.density == 1:  # dense against dense
                continue
            there = {
                key: (1 - place[2]) * score + place[2] * right.scores[key]
                for key, score in left.scores.items()
                if key in right.scores
            }
            difference = _paired(cell.scores, there)
            if difference is None:
                continue
            keys = [key for key in there if key in cell.scores]
            accuracy = wilson([there[key] for key in keys], _weights(keys)).value
            budgets = (left.budget, right.budget)
            found.append(Comparison(group, cell, other, x, budgets, accuracy, difference))
    return found


def _targets(group: Group) -> list[Target]:
    if group.dense is None:
        return []
    rows: list[Target] = []
    needed = TARGET * group.dense.accuracy.value - 1e-9  # of rounding
    for mode in sorted({cell.mode for cell in group.cells} - {*EXACT}, key=mode_order):
        reaching = [cell for cell in group.of(mode) if cell.accuracy.value >= needed]
        best = min(reaching, key=lambda cell: (cell.density, -cell.accuracy.value), default=None)
        rows.append(Target(group, mode, best))
    densities = [1.0, *(row.cell.density for row in rows if row.cell is not None)]
    return [
        Target(
            row.group,
            row.mode,
            row.cell,
            row.cell is not None and row.cell.density == min(densities) < 1,
        )
        for row in rows
    ]


def _missing(results: Results) -> list[tuple[str, int, str, Number | None, str]]:
    """Of the grid of the tasks, lengths and settings that the file names: what it does not hold."""
    known = [*results.points, *results.failed]
    planned = results.header.settings
    tasks = list(dict.fromkeys([*results.header.tasks, *(key[0] for key in known)]))
    lengths = sorted({key[1] for key in known} | set(_numbers(planned.get("lengths"))))
    settings = {(key[2], key[3]) for key in known}
    modes = planned.get("modes")
    for mode in _names(modes):
        if mode in EXACT:
            settings.add((mode, None))
            continue
        policy = POLICIES.get(mode)
        if policy is not None and policy.has_parameter:
            parameters = planned.get("parameters")
            numbers = parameters.get(mode) if isinstance(parameters, dict) else None
            settings |= {(mode, n) for n in _list(numbers) if isinstance(n, float)}
        else:
            settings |= {(mode, b) for b in _numbers(planned.get("budgets"))}
    missing: list[tuple[str, int, str, Number | None, str]] = []
    if len(lengths) * len(tasks) * len(settings) > MOST_POINTS:
        raise FormatError(
            f"{path_text(results.path)}: names {len(tasks)} tasks, {len(lengths)} lengths and "
            f"{len(settings)} settings; accepted: {MOST_POINTS} points of all together"
        )
    for length in lengths:
        for task in tasks:
            for mode, budget in sorted(settings, key=_setting_order):
                what = _absence(results, (task, length, mode, budget))
                if what:
                    missing.append((task, length, mode, budget, what))
    return missing


def _absence(results: Results, key: Key) -> str | None:
    """Why the file has no such point; None if it has, or says that it failed."""
    point = results.points.get(key)
    if point is not None:
        return None if point.prompts else "measured on no prompt"
    if key in results.failed:
        return None
    dense = results.points.get((key[0], key[1], "dense", None))
    poor = dense is not None and dense.prompts and dense.accuracy < INFORMATIVE
    if poor and results.header.settings.get("skip_uninformative"):
        return "left out, since dense is below 50 %"
    return "not measured"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _numbers(value: object) -> list[int]:
    return [n for n in _list(value) if isinstance(n, int) and not isinstance(n, bool) and n > 0]


def _names(value: object) -> list[str]:
    return [n for n in _list(value) if isinstance(n, str)]


def analyse(results: Results) -> Analysis:
    """Everything that the report shows."""
    analysis = Analysis(results, missing=_missing(results))
    usable = [point for point in results.points.values() if point.prompts]
    for length in sorted({point.length for point in usable}):
        points: dict[str, list[Point]] = {}
        for point in usable:
            if point.length == length:
                points.setdefault(point.task, []).append(point)
        groups = [_group(task, [task], length, points) for task in sorted(points)]
        analysis.tasks += groups
        # Tasks with nothing to compare are in no mean.
        compared = [group for group in groups if group.compares]
        informative = [group for group in compared if group.informative]
        for title, chosen in (
            (f"mean of {len(compared)} tasks", compared),
            (f"mean of the {len(informative)} informative tasks", informative),
        ):
            if len(chosen) > 1 and (chosen is compared or len(chosen) < len(compared)):
                names = [group.title for group in chosen]
                analysis.averages.append(_group(title, names, length, points))
    for group in analysis.groups:
        analysis.equal_density += _comparisons(group, lambda cell: cell.density)
        analysis.equal_time += _comparisons(group, lambda cell: cell.attention)
    for group in analysis.main:
        analysis.targets += _targets(group)
    for group in analysis.tasks:
        if group not in analysis.main:
            analysis.task_targets += _targets(group)
    return analysis
