"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from bsfa.eval.report_ablations import ARROW, TITLES, AblationRow, reference_of
from bsfa.eval.report_analysis import (
    INFORMATIVE,
    TARGET,
    Analysis,
    Comparison,
    Group,
    Target,
    setting_name,
)
from bsfa.eval.report_figures import MOST_MAPS, Picture
from bsfa.eval.results import Header
from bsfa.eval.statistics import Interval

__all__ = ["Drawn", "page"]

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Drawn:
    """A picture on both grounds, as PNG."""

    picture: Picture
    light: bytes
    dark: bytes


def _signed(value: float, digits: int = 1) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS)


def _share(interval: Interval) -> str:
    """Accuracy in per cent with its interval."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(interval: Interval | None) -> str:
    """A difference of accuracies in percentage points."""
    if interval is None:
        return NONE
    low, high = _signed(100 * interval.low), _signed(100 * interval.high)
    return f"{_signed(100 * interval.value)} [{low}, {high}]"


def _factor(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _plain(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _with_t(interval: Interval | None, digits: int = 3, signed: bool = False) -> str:
    """A mean with its t interval, which is left out where the file has none."""
    if interval is None:
        return NONE
    show = _signed if signed else (lambda v, d: f"{v:.{d}f}".replace("-", MINUS))
    text = show(interval.value, digits)
    if interval.n > 1:
        text += f" [{show(interval.low, digits)}, {show(interval.high, digits)}]"
    return text


Row = tuple[str, Sequence[str]]
"""(class of the row, cells)."""


def _table(caption: str, heads: Sequence[str], rows: Iterable[Row], text: int = 1) -> str:
    """text: columns from the left that hold words."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if i < text else ''}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "".join(
        f"<tr{f' class={kind}' if kind else ''}>{cells('td', values)}</tr>\n"
        for kind, values in rows
    )
    return (
        f"<div class=wide><table><caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{cells('th', heads)}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _image(drawn: Drawn) -> str:
    light, dark = (base64.b64encode(png).decode() for png in (drawn.light, drawn.dark))
    picture = drawn.picture
    what = picture.name.replace("-", " ").replace("_", " ")
    return (
        "<figure><picture>"
        '<source media="screen and (prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}">'
        f'<img alt="{escape(what)}" src="data:image/png;base64,{light}"></picture>'
        + (f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else "")
        + "</figure>\n"
    )


def _figures(drawn: Sequence[Drawn], section: str, more: str = "More figures") -> str:
    shown = [d for d in drawn if d.picture.section == section]
    parts = []
    for detail in (False, True):
        images = "".join(_image(d) for d in shown if d.picture.detail == detail)
        if images and detail:
            parts.append(
                f"<details><summary>{escape(more)}</summary><div class=figures>{images}</div>"
                "</details>\n"
            )
        elif images:
            parts.append(f"<div class=figures>{images}</div>\n")
    return "".join(parts)


def _where(group: Group) -> str:
    return f"{group.title}, {group.length:,} tokens"


def _value(value: object) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def _setting(header: Header) -> str:
    model, device, table = header.model, header.device, header.thresholds
    thresholds = NONE
    if table is not None:
        thresholds = (
            f"{table.file} (sha256 {table.sha256[:12]}), calibrated on "
            f"{', '.join(table.calibrated_on) or 'nothing that it names'} up to "
            f"{table.max_seqlen:,} tokens"
        )
    entries = {
        "Model": f"{model.name}: {model.layers} layers, {model.heads_q} query and "
        f"{model.heads_kv} key/value heads of {model.head_dim}, context {model.context:,}",
        "Device": " ".join(part for part in (device.type, device.name, device.driver) if part)
        + f", {header.dtype}, {header.threads} threads",
        "Tasks": f"{', '.join(header.tasks)} ({header.label})",
        "Prompts a point": str(header.prompts_per_point),
        "Thresholds": thresholds,
        "Versions": ", ".join(f"{name} {v}" for name, v in header.versions.items() if v),
        "Seed": str(header.seed),
        "Made": header.created,
    }
    if not header.tasks:  # ablations alone
        del entries["Tasks"], entries["Thresholds"]
    names = {"ttft_runs": "Timed prefills a point", "warm_up": "Prefills before timing"}
    entries |= {
        names.get(name, name.replace("_", " ").capitalize()): _value(value)
        for name, value in header.settings.items()
    }
    inner = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
    return f"<dl>{inner}</dl>\n"


def _target(analysis: Analysis) -> str:
    if not analysis.targets:
        return "<p>No point can be compared with a dense one.</p>\n"
    text = _target_table(analysis.targets)
    if analysis.task_targets:
        inner = _target_table(analysis.task_targets)
        text += f"<details><summary>By task</summary>{inner}</details>\n"
    return text


def _target_table(targets: Sequence[Target]) -> str:
    rows: list[Row] = []
    for target in targets:
        group, cell = target.group, target.cell
        dense = group.dense
        assert dense is not None
        kind = "" if group.informative else "uninformative"
        if cell is None:
            found = ["none", NONE, NONE, NONE, NONE]
        else:
            whole = dense.accuracy.value
            found = [
                str(cell.budget),
                _plain(cell.density) if cell.density < 1 else "1: nothing is left out",
                _share(cell.accuracy),
                f"{100 * cell.accuracy.value / whole:.1f} %" if whole else NONE,
                _points(cell.difference),
            ]
            if target.smallest and group.informative:
                kind = "best"
        where = _where(group) + ("" if group.informative else " (uninformative)")
        count = cell.difference.n if cell is not None and cell.difference else dense.accuracy.n
        rows.append(
            (kind, [where, target.mode, *found, f"{100 * dense.accuracy.value:.1f}", str(count)])
        )
    heads = [
        "at",
        "mode",
        "setting",
        "density",
        "accuracy, %",
        "of dense",
        "minus dense, points",
        "dense, %",
        "n",
    ]
    return _table(
        f"The smallest measured density at which a mode has {100 * TARGET:.0f} % of the accuracy "
        "of dense attention or more; none: no setting that was run has it. In bold the smallest of "
        "the modes. In brackets: 95 % intervals.",
        heads,
        rows,
        text=2,
    )


def _cells(group: Group) -> str:
    rows: list[Row] = []
    for cell in group.cells:
        kind = "" if group.informative or group.dense is None else "uninformative"
        density = _plain(cell.density)
        if cell.density_low != cell.density_high:
            density += f" ({cell.density_low:.3f} to {cell.density_high:.3f})"
        changed = NONE if cell.difference is None else f"+{cell.gained} {MINUS}{cell.lost}"
        rows.append(
            (
                kind,
                [
                    setting_name(cell.mode, cell.budget),
                    str(cell.accuracy.n),
                    _share(cell.accuracy),
                    _points(cell.difference),
                    changed,
                    _plain(cell.density_predicted),
                    density,
                    _plain(cell.ttft),
                    _factor(cell.ttft_speedup),
                    _plain(cell.attention),
                    _factor(cell.attention_speedup),
                    f"{cell.peak_memory_bytes / 2**20:,.0f}",
                ],
            )
        )
    heads = [
        "setting",
        "n",
        "accuracy, %",
        "paired difference, points",
        "prompts changed",
        "predicted density",
        "measured density",
        "TTFT, s",
        "speedup",
        "attention, s",
        "speedup",
        "memory, MiB",
    ]
    note = ""
    if group.dense is None:
        note = ". There is no dense point, so nothing can be compared"
    elif not group.informative:
        note = f". Uninformative: dense is below {100 * INFORMATIVE:.0f} %"
    return _table(_where(group) + note, heads, rows)


def _compared(comparisons: Sequence[Comparison], unit: str, digits: int) -> str:
    rows: list[Row] = []
    for one in comparisons:
        low, high = one.between
        between = f"{low}" if low == high else f"{low} and {high}"
        rows.append(
            (
                "" if one.group.informative else "uninformative",
                [
                    _where(one.group) + ("" if one.group.informative else " (uninformative)"),
                    setting_name(one.cell.mode, one.cell.budget),
                    f"{one.at:.{digits}f}",
                    f"{100 * one.cell.accuracy.value:.1f}",
                    one.other,
                    between,
                    f"{100 * one.accuracy:.1f}",
                    _points(one.difference),
                    str(one.difference.n),
                ],
            )
        )
    heads = [
        "at",
        "point",
        unit,
        "accuracy, %",
        "against",
        "budgets",
        "its accuracy there, %",
        "difference, points",
        "n",
    ]
    note = "Interpolated on straight lines between measured points."
    if unit == "seconds":
        note += " The intervals are those of the prompts; the times have a spread of their own."
    return _table(note, heads, rows, text=2)


def _equal(analysis: Analysis) -> str:
    parts = []
    for title, found, unit, digits in (
        ("At equal measured density", analysis.equal_density, "density", 3),
        ("At equal measured attention time", analysis.equal_time, "seconds", 3),
    ):
        parts.append(f"<h3>{title}</h3>\n")
        if not found:
            parts.append("<p>No point of one mode lies between two of another.</p>\n")
            continue
        means = [one for one in found if len(one.group.tasks) > 1]
        single = [one for one in found if len(one.group.tasks) == 1]
        if means:
            parts.append(_compared(means, unit, digits))
        if single:
            table = _compared(single, unit, digits)
            parts.append(
                f"<details{'' if means else ' open'}><summary>By task</summary>{table}</details>\n"
            )
    return "".join(parts)


def _ablation_tables(ablations: dict[str, Sequence[AblationRow]]) -> str:
    parts = []
    heads = [
        "setting",
        "budget",
        "n",
        "predicted density",
        "measured density",
        "output error",
        "error less reference",
        "agreement with dense",
        "perplexity change",
    ]
    for name, rows in ablations.items():
        references = {reference_of(name, row.setting) for row in rows} - {None}
        named = ", ".join(sorted(filter(None, references))).replace(ARROW, " → ")
        note = f"Reference: {named}. " if references else ""
        listed: list[Row] = [
            (
                "",
                [
                    row.setting.replace(ARROW, " → "),
                    str(row.budget),
                    str(row.n),
                    _plain(row.density_predicted),
                    _with_t(row.quantities["density"]),
                    _with_t(row.quantities["error"]),
                    _with_t(row.differences.get("error"), signed=True),
                    _with_t(row.quantities["agreement"]),
                    _with_t(row.quantities["perplexity_change"], signed=True),
                ],
            )
            for row in rows
        ]
        lengths = sorted({row.length for row in rows if row.length is not None})
        tokens = f" ({', '.join(f'{n:,}' for n in lengths)} tokens)" if lengths else ""
        parts.append(f"<h3>{escape(TITLES.get(name, name))}{tokens}</h3>\n")
        parts.append(
            _table(f"{note}In brackets: 95 % t intervals over the prompts.", heads, listed)
        )
    return "".join(parts)


def _absent(analysis: Analysis) -> str:
    results = analysis.results
    parts = []
    if results.torn:
        parts.append(f"<p>{escape(results.torn)}.</p>\n")
    if results.failed:
        rows: list[Row] = [
            ("", [f.task, f"{f.length:,}", setting_name(f.mode, f.budget), f.error])
            for f in results.failed.values()
        ]
        table = _table(f"{len(rows)} points failed.", ["task", "tokens", "setting", "error"], rows)
        parts.append(table)
    if analysis.missing:
        rows = [
            ("", [task, f"{length:,}", setting_name(mode, budget), what])
            for task, length, mode, budget, what in analysis.missing
        ]
        table = _table(
            f"{len(rows)} points are missing.", ["task", "tokens", "setting", "what"], rows
        )
        parts.append(table)
    return "".join(parts) or "<p>Every point of the grid was measured.</p>\n"


CURVES = """\
<p class=soft>Bars and the grey band around dense are 95 % Wilson intervals over the n prompts of a
point; those of speedups are bootstrap intervals. Numbers at the points are what a mode is set by:
its budget, blocks of keys kept beside the diagonal, or a number of its own, as the share of
coverage.</p>
"""

MAPS = """\
<p class=soft>Rows are blocks of queries, columns blocks of keys; right of the diagonal lies the
future.</p>
"""

METHOD = f"""\
<ul>
<li>Accuracy is the mean score over the prompts of a point. Its interval is Wilson's score interval
at 95 %. Where a prompt can score in part, it is computed from the sum of the scores, which makes it
too wide rather than too narrow. In a mean over tasks every task counts the same.</li>
<li>A difference to dense is taken prompt by prompt on the same prompts; its interval is Tango's
score interval for paired proportions, at 95 %, for partial scores likewise on the sums of what was
gained and lost. Intervals by the t distribution or the bootstrap have no width where no prompt
changed, so they are not used.</li>
<li>Speedups are ratios of medians; their intervals are percentiles of 1,000 bootstrap samples. A
mean over tasks is the ratio of the sums of the medians.</li>
<li>Comparisons at equal density or time interpolate the score of each prompt linearly between two
measured budgets of the other mode. Nothing is extrapolated.</li>
<li>Density is kept over visible blocks, the diagonal counted in both. The predicted one follows
from budget and length alone.</li>
<li>A point is uninformative where dense attention itself scores below {100 * INFORMATIVE:.0f} %:
what a model cannot do shows no loss.</li>
<li>Intervals hold for each line by itself; a table of many lines is expected to have some that
miss.</li>
</ul>
"""


def page(
    analysis: Analysis, ablations: dict[str, Sequence[AblationRow]], drawn: Sequence[Drawn]
) -> str:
    """The whole document."""
    header = analysis.results.header
    tables = [_cells(group) for group in analysis.averages]
    single = "".join(_cells(group) for group in analysis.tasks)
    if tables and single:
        tables.append(f"<details><summary>By task</summary>{single}</details>\n")
    else:
        tables.append(single)
    omitted = len(analysis.results.maps) - MOST_MAPS
    maps = _figures(drawn, "maps", "Other modes")
    if maps and omitted > 0:
        maps += f"<p class=soft>{omitted} more maps are in the file.</p>\n"
    has_points = bool(analysis.groups)
    sections = [
        ("setting", "What was run", _setting(header)),
        (
            "target",
            "Smallest density at 99 % of dense accuracy",
            _target(analysis) if has_points else "",
        ),
        (
            "accuracy",
            "Accuracy against speed and density",
            CURVES + _figures(drawn, "accuracy", "By task") if has_points else "",
        ),
        ("points", "All points", "".join(tables) if has_points else ""),
        ("equal", "Against the baselines on equal terms", _equal(analysis) if has_points else ""),
        ("density", "Where the blocks are kept", _figures(drawn, "density", "Other budgets")),
        ("maps", "Kept blocks of a head", MAPS + maps if maps else ""),
        ("needle", "Needle by depth and length", _figures(drawn, "needle", "Other modes")),
        (
            "ablations",
            "Ablations",
            _figures(drawn, "ablations") + _ablation_tables(ablations) if ablations else "",
        ),
        ("absent", "Missing and failed", _absent(analysis)),
        ("method", "How to read this", METHOD),
    ]
    sections = [section for section in sections if section[2]]
    style = resources.files("bsfa.eval").joinpath("report_style.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{escape(title)}</h2>\n{inner}</section>\n'
        for key, title, inner in sections
    )
    title = f"{header.model.name} with block sparse attention"
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        f"<p class=soft>{escape(header.label + ' tasks' if header.tasks else 'Ablations')} on "
        f"{escape(header.device.name)}; bsfa "
        f"{escape(header.versions.get('bsfa', ''))}</p>\n"
        f"<nav>{links}</nav>\n{body}</body></html>\n"
    )
