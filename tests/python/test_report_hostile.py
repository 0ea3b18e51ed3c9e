"""Results files with values that are wrong but of the right type: a message, not a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import bsfa
import synthetic_results as made
from bsfa import _core
from bsfa.cli import main
from bsfa.eval import plots, report
from bsfa.eval import results as r
from bsfa.eval.report_analysis import analyse

MATHEMATICS = "$x^{"
"""matplotlib takes it for mathematics and then refuses it; it is a name like any other."""
ODD = [
    *(0, -1, 1, 2, 7, 2**31, 2**53, 2**63 - 1, -(2**63), 10**19, 10**5000),
    *(0.5, -0.5, 1.5, 1e-300, 1e300, -1e300, float("nan"), float("inf"), -float("inf")),
    *("", "x", MATHEMATICS, "$$", "\\frac{", "_x", "../../x", "\x1b[31m", "\u202e", "\ud800", "\0"),
    *("x" * 190, "x" * 10**5, "<script>", "&", '"', "dense", "threshold", "stock", "\n"),
    *(None, True, [], {}, [[]], [1], ["a"], {"a": {}}, [[1, 2], [3]]),
]


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small results file with records of all kinds."""
    path = tmp_path_factory.mktemp("hostile") / "r.jsonl"
    made.sweep(path, tasks=("niah_single",), lengths=(2048,), budgets=(4, 8), prompts=4)
    r.append(path, made.ablation("position", "per query block", 8, [0.1, 0.2]))
    r.append(path, r.Failed("niah_single", 2048, "sliding_window", 16, "out of memory"))
    return path.read_text().splitlines()


def index_of(lines: list[str], kind: str) -> int:
    return next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == kind)


def with_value(values: Any, path: list[Any], value: Any) -> Any:
    """A copy with another value at a path of names and indices."""
    values = copy.deepcopy(values)
    inner = values
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return values


def encode(values: Any) -> str:
    """JSON with numbers of any length."""
    text = json.dumps(values, default=str).replace('"HUGE"', "9" * 5000)
    return text.replace('"DEEP"', "[" * 100_000 + "]" * 100_000)


def put(lines: list[str], kind: str, path: list[Any], value: Any, to: Path) -> Path:
    number = index_of(lines, kind)
    changed = list(lines)
    changed[number] = encode(with_value(json.loads(lines[number]), path, value))
    to.write_text("\n".join(changed) + "\n", encoding="utf-8", errors="surrogatepass")
    return to


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("point", ["prompts", 0, "score"], 1.5, "point.prompts[0].score is 1.5; expected 0 to 1"),
        ("point", ["prompts", 0, "score"], -0.5, "point.prompts[0].score is -0.5; expected 0 to 1"),
        ("point", ["prompts", 0, "score"], float("nan"), "holds the number NaN; expected finite"),
        ("point", ["prompts", 0, "id"], "HUGE", "holds a number of 5000 digits; expected finite"),
        ("point", ["length"], "HUGE", "holds a number of 5000 digits; expected finite"),
        ("point", ["length"], 0, "point.length is 0; expected 1 to"),
        ("point", ["budget"], -4, "point.budget is -4; expected a number above 0"),
        ("point", ["density", "measured"], 2, "point.density.measured is 2.0; expected 0 to 1"),
        ("point", ["density_by_head"], [[0.5], [0.5, 1]], "density_by_head has rows of several"),
        ("point", ["ttft_s", 0], -1, "point.ttft_s[0] is -1.0; expected 0 to"),
        ("point", ["peak_memory_bytes"], 10**19, "point.peak_memory_bytes is 1000000000000000000"),
        ("point", ["task"], "x" * 10**6, "point.task is \"xxx"),
        ("point", ["task"], "\x1b[31m", "expected a text of one line"),
        ("point", ["task"], "\ud800", "expected text"),
        ("map", ["rows", 0], "xyz", "map.rows[0] is 'xyz'; expected 8 hexadecimal digits"),
        ("map", ["rows"], [], "map.rows has 0 entries; expected 16, q_blocks"),
        ("map", ["k_blocks"], 2**53, "hexadecimal digits"),
        ("ablation", ["prompts", 0, "error"], 1e300, "ablation.prompts[0].error is 1e+300; "),
        ("header", ["settings", "lengths"], "DEEP", "expected a first line of kind 'header'"),
        ("point", ["answers"], "DEEP", "is nested too deeply"),
        ("header", ["settings", "x"], deep(6), "nested in each other at most 4 times"),
        ("header", ["settings", "lengths"], list(range(1, 200_000)), "accepted: 100000 points"),
        ("header", ["model", "layers"], -1, "header.model.layers is -1; expected 1 to"),
        ("header", ["label"], "x\n" * 10**6, "header.label is \"x\\"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(
    lines: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    path: list[Any],
    value: Any,
    message: str,
) -> None:
    file = put(lines, kind, path, value, tmp_path / "r.jsonl")
    assert main(["eval", "report", str(file), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"bsfa: error: {file}")
    assert said.count("\n") == 1
    assert len(said) < 1000


def test_settings_of_any_kind_are_shown(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "render", draw_only)
    value = {"modes": [3, None, ["dense"]], "lengths": [None, True, -4], "x": {"<b>": ["&"]}}
    file = put(lines, "header", ["settings"], value, tmp_path / "r.jsonl")
    report.write(file, tmp_path / "out")
    assert "&lt;b&gt;" in (tmp_path / "out" / "report.html").read_text()


def drawn(name: str) -> Any:
    """The pixels of a title and a tick label of this name."""
    pixels = []

    def draw(theme: plots.Theme) -> Any:
        figure = plots.ablation_dots(name, [made_row(name)], "density", "density", theme)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels.append(np.asarray(canvas.buffer_rgba()).copy())
        return figure

    plots.render(draw, plots.LIGHT)
    return pixels[0]


def made_row(name: str) -> Any:
    from bsfa.eval.report_ablations import ablation_rows

    record = made.ablation(name, name, 8, [0.1, 0.2])
    results = r.Results("", made.header(["a"], [512], [8], []))
    results.add(record)
    return ablation_rows(results)[name][0]


def test_names_are_drawn_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a dollar at both ends looks the same as one whose dollars cannot be markup."""
    from matplotlib import mathtext

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a name was taken for mathematics")

    monkeypatch.setattr(mathtext.MathTextParser, "parse", refuse)
    for name in (MATHEMATICS + "$", "$a$", "$$", r"$\frac{$", "a $b$ c"):
        assert drawn(name).size > 0


def test_a_page_of_odd_names(lines: list[str], tmp_path: Path) -> None:
    """Markup of two kinds, long names, and names that are alike but for what files cannot have."""
    path = tmp_path / "r.jsonl"
    r.create(path, made.header(["a"], [1024], [8], []))
    names = [MATHEMATICS, "$x^$", "<b>&amp;", "a/b", "a:b", "w" * 200, "é" * 100, "..", "_"]
    for name in names:
        r.append(path, made.point(name, 1024, "dense", None, [1.0, 0.5]))
        r.append(path, made.point(name, 1024, "threshold", 8, [1.0, 0.5], density=0.5))
    r.append(path, made.ablation("$x^{$", "$x^{$", 8, [0.1, 0.2]))
    summary = report.write(path, tmp_path / "out")
    files = list((tmp_path / "out" / "figures").iterdir())
    assert len(files) == summary["figures"]  # none replaced another
    assert all(file.parent == tmp_path / "out" / "figures" for file in files)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>&amp;amp;" not in page
    assert "&lt;b&gt;&amp;amp;" in page


def mutated(lines: list[str], generator: random.Random) -> bytes:
    """The file with a few values replaced, or a few bytes."""
    changed = list(lines)
    for _ in range(generator.choice((1, 1, 2))):
        number = generator.randrange(len(changed))
        values = json.loads(lines[number])
        path: list[Any] = []
        inner = values
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            path.append(generator.choice(keys))
            inner = inner[path[-1]]
            if not isinstance(inner, (dict, list)) or not inner or generator.random() < 0.1:
                break
        value = generator.choice(ODD)
        if isinstance(value, int) and abs(value) > 10**100:
            value = "HUGE"
        changed[number] = encode(with_value(values, path, value))
    content = bytearray(("\n".join(changed) + "\n").encode("utf-8", "surrogatepass"))
    if generator.random() < 0.3:
        for _ in range(generator.choice((1, 3, 30))):
            content[generator.randrange(len(content))] = generator.randrange(256)
    if generator.random() < 0.1:
        del content[generator.randrange(len(content)) :]
    return bytes(content)


def attack(lines: list[str], folder: Path, seeds: range) -> list[int]:
    """Reports of mutated files; returns [made, refused]."""
    outcomes = [0, 0]
    for seed in seeds:
        path = folder / "m.jsonl"
        path.write_bytes(mutated(lines, random.Random(seed)))
        try:
            report.write(path, folder / "out")
            outcomes[0] += 1
        except bsfa.Error as error:
            message = str(error)
            assert len(message) <= 4096, seed
            assert _core.printable(message) == message, seed
            assert str(path) in message, (seed, message)
            outcomes[1] += 1
    return outcomes


def draw_only(
    draw: Callable[[plots.Theme], Any], theme: plots.Theme, shaded: bool = False
) -> bytes:
    """A figure as the report draws it, without the time that packing pixels takes."""
    import matplotlib

    if theme is plots.LIGHT:
        with matplotlib.rc_context({**plots._style(theme), "figure.dpi": 30}):
            FigureCanvasAgg(draw(theme)).draw()
    return b""


def test_mutated_files_make_a_report_or_a_message(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "render", draw_only)
    written, refused = attack(lines, tmp_path, range(60))
    assert written > 2
    assert refused > 20


def test_times_of_zero_have_no_ratio(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    r.create(path, made.header(["a"], [1024], [8], []))
    for mode, budget in (("dense", None), ("threshold", 8)):
        r.append(path, made.point("a", 1024, mode, budget, [1.0], density=0.5, seconds=0.0))
    (group,) = analyse(r.read(path)).tasks
    assert [cell.ttft_speedup for cell in group.cells] == [None, None]
