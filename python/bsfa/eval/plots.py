"""The figures of the report, by matplotlib, each on a light and on a dark ground.

Colours are those of Okabe and Ito and the map cividis, which readers with any colour vision tell
apart; a mode also has a marker and a line of its own. A figure is one panel, wide enough for a
column of a screen and no wider than a phone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image  # matplotlib needs it too

from bsfa.eval.report_ablations import ARROW, AblationRow
from bsfa.eval.report_analysis import Cell, Group, setting_name
from bsfa.eval.results import Map, Number
from bsfa.policies import ATTENTIONS, EXACT, METHOD, POLICIES

__all__ = [
    "DARK",
    "LIGHT",
    "NeedleGrid",
    "Theme",
    "ablation_dots",
    "accuracy_curve",
    "density_heat_map",
    "kept_blocks",
    "needle_grid",
    "predicted_measured",
    "render",
]


@dataclass(frozen=True)
class Theme:
    """Colours of one ground."""

    name: str
    ground: str
    ink: str
    faint: str
    modes: dict[str, str]


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1a1a1a",
    "#c8c8c8",
    {name: policy.look.light for name, policy in ATTENTIONS.items()},
)
DARK = Theme(
    "dark",
    "#15181c",
    "#e8e8e8",
    "#50565e",
    {name: policy.look.dark for name, policy in ATTENTIONS.items()},
)
MARKERS = {name: policy.look.marker for name, policy in ATTENTIONS.items()}
LINES = {name: policy.look.line for name, policy in ATTENTIONS.items()}
MODE_NAMES = {name: policy.label for name, policy in ATTENTIONS.items()}
WIDTH = 4.6
"""Inches."""
TALLEST = 40.0
"""Inches; whatever a file holds, a picture has a size."""

Draw = Callable[[Theme], Figure]


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "figure.constrained_layout.use": True,
        # Names come from files: what looks like mathematics in them is drawn as it stands.
        "text.parse_math": False,
        "text.usetex": False,
    }


def render(draw: Draw, theme: Theme, shaded: bool = False) -> bytes:
    """A figure as PNG. Unless it is shaded, 64 colours show it as well, in a third of the size."""
    raw, packed = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_style(theme)):
        draw(theme).savefig(raw, format="png", dpi=160)
    image = Image.open(raw).convert("RGB")
    if not shaded:
        image = image.quantize(64, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def _spread(cell: Cell, against: str) -> tuple[float, float]:
    """How far the interval of a speedup reaches to either side."""
    speedup = cell.ttft_speedup if against == "ttft" else cell.attention_speedup
    if speedup is None:
        return 0.0, 0.0
    return max(0.0, speedup.value - speedup.low), max(0.0, speedup.high - speedup.value)


def accuracy_curve(group: Group, against: str, theme: Theme) -> Figure:
    """Accuracy against "ttft" or "attention" speedup over dense, or against "density"."""

    def x_of(cell: Cell) -> float | None:
        if against == "density":
            return cell.density
        speedup = cell.ttft_speedup if against == "ttft" else cell.attention_speedup
        return None if speedup is None else speedup.value

    figure, axes = _panel(3.5)
    dense = group.dense
    if dense is not None:
        accuracy = dense.accuracy
        axes.axhspan(accuracy.low, accuracy.high, color=theme.ink, alpha=0.08, linewidth=0)
        axes.axhline(
            accuracy.value, color=theme.ink, linestyle=LINES["dense"], linewidth=1, label="dense"
        )
        if against != "density":
            axes.axvline(1, color=theme.faint, linewidth=0.8, zorder=0)
    for mode in MODE_NAMES:
        if mode == "dense":
            continue
        placed = [(x, cell) for cell in group.of(mode) if (x := x_of(cell)) is not None]
        if not placed:
            continue
        colour = theme.modes[mode]
        xs = [x for x, _ in placed]
        ys = [cell.accuracy.value for _, cell in placed]
        below = [cell.accuracy.value - cell.accuracy.low for _, cell in placed]
        above = [cell.accuracy.high - cell.accuracy.value for _, cell in placed]
        spread = None if against == "density" else [_spread(cell, against) for _, cell in placed]
        axes.errorbar(
            xs,
            ys,
            [below, above],
            None if spread is None else [[s[0] for s in spread], [s[1] for s in spread]],
            fmt="none",
            ecolor=colour,
            elinewidth=0.8,
            alpha=0.45,
        )
        axes.plot(
            xs,
            ys,
            color=colour,
            linestyle=LINES[mode],
            marker=MARKERS[mode],
            markersize=5,
            linewidth=1.3 if against == "density" else 0.7,
            label=MODE_NAMES[mode],
        )
    labels = {
        "ttft": "speedup of the time to the first token over dense (times)",
        "attention": "speedup of the attention over dense (times)",
        "density": "measured density (kept / visible blocks)",
    }
    axes.set_xlabel(labels[against])
    axes.set_ylabel(f"accuracy ({'mean score' if len(group.tasks) > 1 else 'score'})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bounds = [(cell.accuracy.low, cell.accuracy.high) for cell in group.cells]
    axes.set_ylim(
        max(-0.06, min(low for low, _ in bounds) - 0.06),
        min(1.03, max(high for _, high in bounds) + 0.03),
    )
    if against == "density":
        axes.set_xlim(0, 1.02)
    else:
        axes.margins(x=0.12)
    for mode in MODE_NAMES:
        _label_budgets(
            axes,
            [(x, cell) for cell in group.of(mode) if (x := x_of(cell)) is not None],
            above=mode == METHOD,
            colour=theme.modes[mode],
        )
    note = "" if group.informative or dense is None else "\nuninformative: dense is below 50 %"
    prompts = max(cell.accuracy.n for cell in group.cells)
    axes.set_title(f"{group.title}, {group.length:,} tokens, n = {prompts}{note}")
    axes.legend(loc="best")
    return figure


def _label_budgets(
    axes: Axes, placed: Sequence[tuple[float, Cell]], above: bool, colour: str
) -> None:
    """Budgets beside their points, left out where they would stand upon each other."""
    width, height = 270, 190  # of the axes in points, about
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float]] = []
    for x, cell in placed:
        y = cell.accuracy.value
        at = ((x - left) / (right - left) * width, (y - bottom) / (top - bottom) * height)
        if cell.budget is None or any(
            abs(at[0] - other[0]) < 13 and abs(at[1] - other[1]) < 10 for other in taken
        ):
            continue
        taken.append(at)
        axes.annotate(
            str(cell.budget),
            (x, y),
            xytext=(4, 4 if above else -11),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )


def _matrix(
    axes: Axes,
    values: Sequence[Sequence[float]],
    colour_map: Any,
    limits: tuple[float, float],
) -> Any:
    image = axes.imshow(
        values,
        aspect="auto",
        cmap=colour_map,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def density_heat_map(title: str, densities: Sequence[Sequence[float]], theme: Theme) -> Figure:
    """densities: [layers][query heads]; rows may be empty where a layer is not gated."""
    heads = max(len(row) for row in densities)
    values = [list(row) if row else [float("nan")] * heads for row in densities]
    figure, axes = _panel(min(6.5, 1.9 + 0.115 * len(values)))
    image = _matrix(axes, values, "cividis", (0, 1))
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=35, pad=0.02)
    bar.set_label("measured density (kept / visible blocks)")
    bar.outline.set_visible(False)
    axes.set_xlabel("query head")
    axes.set_ylabel("layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_title(title)
    return figure


def predicted_measured(cells: Sequence[tuple[int, Cell]], theme: Theme) -> Figure:
    """Cells with the lengths that they were measured at; the bars are the range over prompts."""
    figure, axes = _panel(3.8)
    axes.plot(
        [0, 1], [0, 1], color=theme.ink, alpha=0.4, linewidth=0.9, zorder=0, label="as predicted"
    )
    lengths = sorted({length for length, _ in cells})
    shapes = dict(zip(lengths, "osD^vP*Xdh" * len(lengths), strict=False))
    for mode in MODE_NAMES:
        for length in lengths:
            chosen = [
                (cell.density_predicted, cell)
                for at, cell in cells
                if at == length and cell.mode == mode and cell.density_predicted is not None
            ]
            if not chosen:
                continue
            axes.errorbar(
                [x for x, _ in chosen],
                [cell.density for _, cell in chosen],
                [
                    [max(0.0, cell.density - cell.density_low) for _, cell in chosen],
                    [max(0.0, cell.density_high - cell.density) for _, cell in chosen],
                ],
                fmt=shapes[length],
                color=theme.modes[mode],
                markersize=4.5,
                elinewidth=0.8,
                label=f"{MODE_NAMES[mode]}, {length:,} tokens",
            )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted density (kept / visible blocks)")
    axes.set_ylabel("measured density")
    axes.legend(loc="lower right", handletextpad=0.2)
    return figure


def kept_blocks(kept: Map, block: tuple[int, int], theme: Theme) -> Figure:
    """The kept blocks of a head; block: the gate grid, query rows and keys."""
    figure, axes = _panel(4.1)
    values = [
        [
            1.0 if bit else (0.5 if j * block[1] < (i + 1) * block[0] else 0.0)
            for j, bit in enumerate(row)
        ]
        for i, row in enumerate(kept.kept())
    ]
    colours = ListedColormap([theme.ground, theme.faint, theme.modes[METHOD]])
    _matrix(axes, values, colours, (0, 1))
    axes.set_xlabel(f"key block (of {block[1]} tokens)")
    axes.set_ylabel(f"query block (of {block[0]} tokens)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    shown = [sum(value == v for row in values for value in row) for v in (0.5, 1.0)]
    density = shown[1] / max(1, sum(shown))
    axes.set_title(
        f"layer {kept.layer}, head {kept.head}, {setting_name(kept.mode, kept.budget)}\n"
        f"{kept.task}, {kept.length:,} tokens: density {density:.2f}"
    )
    for level, (colour, name) in enumerate(
        ((theme.modes[METHOD], "kept"), (theme.faint, "left out"))
    ):
        axes.text(
            0.98,
            0.95 - 0.07 * level,
            f"■ {name}",
            transform=axes.transAxes,
            ha="right",
            color=colour if level == 0 else theme.ink,
            alpha=1.0 if level == 0 else 0.65,
        )
    return figure


@dataclass(frozen=True)
class NeedleGrid:
    """Accuracy by depth and length of one setting."""

    mode: str
    budget: Number | None
    lengths: list[int]
    depths: list[float]
    accuracy: list[list[float | None]]
    """[depths][lengths]; None where there is no prompt."""
    tasks: tuple[str, ...]
    fewest: int
    """Prompts in a cell."""
    most: int


def needle_grid(grid: NeedleGrid, theme: Theme) -> Figure:
    """One setting; the numbers in the cells are per cent."""
    figure, axes = _panel(1.3 + 0.25 * len(grid.depths))
    values = [[float("nan") if v is None else v for v in row] for row in grid.accuracy]
    _matrix(axes, values, "cividis", (0, 1))
    for i, row in enumerate(grid.accuracy):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                "" if value is None else f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="#ffffff" if value is not None and value < 0.55 else "#000000",
            )
    axes.set_xticks(range(len(grid.lengths)), [f"{length:,}" for length in grid.lengths])
    axes.set_yticks(range(len(grid.depths)), [f"{100 * depth:.0f} %" for depth in grid.depths])
    axes.tick_params(length=0)
    axes.set_xlabel("prompt length (tokens)")
    axes.set_ylabel("depth of the needle")
    setting = POLICIES[grid.mode].setting if grid.mode in POLICIES else "budget"
    number = "" if grid.budget is None else f", {setting} {grid.budget}"
    axes.set_title(MODE_NAMES.get(grid.mode, grid.mode) + number)
    return figure


def _shift(level: int, levels: int) -> float:
    """Budgets of one setting stand a little apart."""
    return (level - (levels - 1) / 2) * 0.22


def _mark_predicted(
    axes: Axes,
    rows: Sequence[AblationRow],
    settings: Sequence[str],
    budgets: Sequence[int],
    theme: Theme,
) -> None:
    placed = [
        (row.density_predicted, settings.index(row.setting) + _shift(level, len(budgets)))
        for level, budget in enumerate(budgets)
        for row in rows
        if row.budget == budget and row.density_predicted is not None
    ]
    if placed:
        axes.plot(
            [x for x, _ in placed],
            [y for _, y in placed],
            "|",
            color=theme.ink,
            markersize=9,
            label="predicted",
        )


def ablation_dots(
    title: str, rows: Sequence[AblationRow], quantity: str, label: str, theme: Theme
) -> Figure:
    """One quantity by setting, a colour and marker for each budget; bars are 95 % intervals."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    budgets = sorted({row.budget for row in rows})
    figure, axes = _panel(min(TALLEST, 1.3 + 0.16 * len(settings) * max(2, len(budgets))))
    # Those of the modes, exact ones last.
    palette = [theme.modes[mode] for mode in sorted(POLICIES, key=lambda mode: mode in EXACT)]
    for level, budget in enumerate(budgets):
        chosen = [(row, row.quantities.get(quantity)) for row in rows if row.budget == budget]
        shown = [(row, value) for row, value in chosen if value is not None]
        if not shown:
            continue
        shift = _shift(level, len(budgets))
        axes.errorbar(
            [value.value for _, value in shown],
            [settings.index(row.setting) + shift for row, _ in shown],
            xerr=[
                [min(value.value - value.low, 1e9) for _, value in shown],
                [min(value.high - value.value, 1e9) for _, value in shown],
            ]
            if all(value.n > 1 for _, value in shown)
            else None,
            fmt="os^Dv"[level % 5],
            color=palette[level % len(palette)],
            markersize=4.5,
            elinewidth=0.9,
            label=f"budget {budget}",
        )
    if quantity == "density":
        _mark_predicted(axes, rows, settings, budgets, theme)
    axes.set_yticks(range(len(settings)), [name.replace(ARROW, " → ") for name in settings])
    axes.set_ylim(len(settings) - 0.4, -0.6)
    axes.grid(axis="x", color=theme.faint, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=len(budgets) + 1, handletextpad=0.1)
    return figure
