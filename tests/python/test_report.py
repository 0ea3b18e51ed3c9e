"""The report from results that are whole, interrupted, failed, or nearly empty."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import synthetic_results as made
from bsfa import errors
from bsfa.cli import main
from bsfa.eval import results as r
from bsfa.eval.report_ablations import ablation_rows
from bsfa.eval.report_analysis import Analysis, analyse
from bsfa.eval.report_figures import needle_grids, pictures

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install bsfa[report]")

from bsfa.eval import plots, report


def _file(path: Path, *records: r.Record, **header: object) -> Path:
    settings: dict = {"tasks": ["a"], "lengths": [1024], "budgets": [8], "modes": []}
    r.create(path, made.header(**{**settings, **header}))
    for record in records:
        r.append(path, record)
    return path


def _analysis(path: Path) -> Analysis:
    return analyse(r.read(path))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sweep of two tasks, one of them beyond the model."""
    path = tmp_path_factory.mktemp("sweep") / "results.jsonl"
    return made.sweep(path, tasks=("niah_single", "cwe"), lengths=(4096,), budgets=(8,))


def test_a_page_needs_nothing_beside_itself(swept: Path, tmp_path: Path) -> None:
    r.append(swept, made.ablation("position", "per query block", 8, [0.1, 0.2]))
    r.append(swept, made.ablation("position", "per head", 8, [0.2, 0.25]))
    summary = report.write(swept, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.findall(r'(?:src|href|srcset)="(?!data:image/png;base64,|#)', page)
    assert "<script" not in page
    assert "url(" not in page
    files = sorted((tmp_path / "out" / "figures").glob("*.png"))
    assert len(files) == summary["figures"] == page.count("<figure>")
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    kinds = {file.name.split("-")[0] for file in files}
    assert kinds == {"accuracy", "density", "kept", "needle", "ablation"}
    # On a dark screen the other set is shown.
    assert page.count('prefers-color-scheme: dark)" srcset=') == len(files)
    assert "made up by a test" in page
    assert page.count("uninformative") > 0
    for opened in ("table", "figure", "details", "section", "div"):
        assert page.count(f"<{opened}") == page.count(f"</{opened}>"), opened


def test_accuracies_are_paired_with_dense(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 1, 1, 0], seconds=2.0),
        made.point("a", 1024, "threshold", 8, [1, 0, 1, 1], density=0.5, seconds=1.0),
    )
    (group,) = _analysis(path).tasks
    dense, sparse = group.cells
    assert dense.difference is None
    assert sparse.difference is not None
    assert sparse.difference.value == 0
    assert sparse.difference.n == 4
    assert (sparse.gained, sparse.lost) == (1, 1)
    assert sparse.ttft_speedup is not None
    assert sparse.ttft_speedup.value == pytest.approx(2)
    assert group.informative


def test_only_shared_prompts_are_compared(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 1]),
        made.point("a", 1024, "threshold", 8, [1, 0, 0, 0], density=0.5),
    )
    sparse = _analysis(path).tasks[0].cells[1]
    assert sparse.difference is not None
    assert (sparse.difference.value, sparse.difference.n) == (-0.5, 2)
    assert sparse.ttft_speedup is None


def test_every_task_counts_the_same_in_a_mean(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1] * 30),
        made.point("b", 1024, "dense", None, [0] * 10),
        made.point("a", 1024, "threshold", 8, [1] * 30, density=0.2),
        made.point("a", 1024, "threshold", 9, [1] * 15 + [0] * 15, density=0.3),
        made.point("b", 1024, "threshold", 9, [1] * 5 + [0] * 5, density=0.5),
        tasks=["a", "b"],
    )
    analysis = _analysis(path)
    (mean,) = analysis.averages
    assert mean.tasks == ("a", "b")
    # Budget 8 is missing for b, so there is no mean of it; and it is listed.
    assert [cell.budget for cell in mean.cells] == [None, 9]
    assert [cell.accuracy.value for cell in mean.cells] == pytest.approx([0.5, 0.5])
    assert mean.cells[1].density == pytest.approx(0.4)
    assert mean.cells[1].difference is not None
    assert mean.cells[1].difference.value == pytest.approx(0)
    assert analysis.missing == [("b", 1024, "threshold", 8, "not measured")]


def test_the_target_is_the_smallest_density(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1] * 100 + [0] * 10),
        made.point("a", 1024, "threshold", 4, [1] * 98 + [0] * 12, density=0.2),
        made.point("a", 1024, "threshold", 8, [1] * 99 + [0] * 11, density=0.4),
        made.point("a", 1024, "threshold", 16, [1] * 100 + [0] * 10, density=0.7),
        made.point("a", 1024, "sliding_window", 16, [1] * 100 + [0] * 10, density=0.6),
        made.point("a", 1024, "sparge", 16, [1] * 10 + [0] * 100, density=0.1),
    )
    rows = {row.mode: row for row in _analysis(path).targets}
    assert rows["threshold"].cell is not None
    assert rows["threshold"].cell.budget == 8
    assert rows["threshold"].smallest
    assert not rows["sliding_window"].smallest
    assert rows["sparge"].cell is None


def test_ties_are_all_named(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1] * 4),
        made.point("a", 1024, "threshold", 8, [1] * 4, density=0.5, seconds=1.0),
        made.point("a", 1024, "threshold", 9, [1] * 4, density=0.5, seconds=1.0),
        made.point("a", 1024, "sliding_window", 8, [1] * 4, density=0.5, seconds=1.0),
        made.point("a", 1024, "sliding_window", 9, [0] * 4, density=0.5, seconds=1.0),
    )
    analysis = _analysis(path)
    assert [row.smallest for row in analysis.targets] == [True, True]
    assert len(analysis.equal_density) == len(analysis.equal_time) == 2
    assert report.write(path, tmp_path / "out")["figures"] > 0


def test_comparisons_interpolate_and_never_extrapolate(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1] * 4, seconds=3.0),
        made.point("a", 1024, "threshold", 4, [1, 1, 0, 0], density=0.1, seconds=1.0),
        made.point("a", 1024, "threshold", 8, [1, 1, 1, 0], density=0.4, seconds=2.0),
        made.point("a", 1024, "threshold", 16, [1, 1, 1, 1], density=0.8, seconds=3.0),
        made.point("a", 1024, "sliding_window", 8, [0, 0, 0, 0], density=0.3, seconds=1.5),
        made.point("a", 1024, "sliding_window", 16, [1, 1, 1, 0], density=0.5, seconds=2.5),
    )
    analysis = _analysis(path)
    for found in (analysis.equal_density, analysis.equal_time):
        (one,) = found
        assert one.cell.budget == 8
        assert one.between == (8, 16)
        assert one.accuracy == pytest.approx(0.375)
        assert one.difference.value == pytest.approx(0.375)
        assert one.difference.n == 4
        assert one.difference.low < 0.375 < one.difference.high


def test_dense_below_one_half_is_uninformative(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        *(
            made.point(task, 1024, mode, budget, scores, density=density)
            for task, scores in (("a", [1, 1, 0]), ("b", [1, 1, 1]), ("c", [0, 0, 1]))
            for mode, budget, density in (("dense", None, 1.0), ("threshold", 8, 0.5))
        ),
        tasks=["a", "b", "c"],
    )
    analysis = _analysis(path)
    assert [group.informative for group in analysis.tasks] == [True, True, False]
    assert [group.tasks for group in analysis.averages] == [("a", "b", "c"), ("a", "b")]
    report.write(path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Uninformative: dense is below 50 %" in page


def test_missing_failed_and_torn(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 0]),
        r.Failed("a", 1024, "threshold", 8, "no memory for <this>"),
        r.Failed("a", 2048, "dense", None, "first try"),
        made.point("a", 2048, "dense", None, [1, 1]),
        modes=["dense", "threshold", "sliding_window"],
        lengths=[1024, 2048],
    )
    with open(path, "a") as file:
        file.write('{"kind":"point","task":"a","len')
    summary = report.write(path, tmp_path / "out")
    assert summary["failed"] == 1
    assert summary["missing"] == 3
    assert summary["torn"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no memory for &lt;this&gt;" in page
    assert "first try" not in page
    assert page.count("not measured") == 3
    assert "not written whole" in page


def test_one_mode_alone(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "threshold", 8, [1, 0], density=0.3, predicted=0.3, seconds=1.0),
    )
    summary = report.write(path, tmp_path / "out")
    assert summary["targets"] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert "There is no dense point, so nothing can be compared" in page
    assert "No point can be compared with a dense one" in page


def test_no_prompts_and_no_points(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1.0]),
        made.point("a", 1024, "threshold", 8, [], density=0.3),
    )
    analysis = _analysis(path)
    assert analysis.missing == [("a", 1024, "threshold", 8, "measured on no prompt")]
    assert report.write(path, tmp_path / "out")["missing"] == 1

    empty = _file(tmp_path / "empty.jsonl", modes=["dense"])
    summary = report.write(empty, tmp_path / "out2")
    assert (summary["figures"], summary["missing"]) == (0, 1)


def test_needles_by_depth_and_length(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 0, 1], depths=[0.0, 0.5, 0.5]),
        made.point("a", 2048, "dense", None, [1, 1], depths=[0.0, 1.0]),
        made.point("b", 1024, "dense", None, [0], depths=[None]),
    )
    (grid,) = needle_grids(r.read(path))
    assert grid.lengths == [1024, 2048]
    assert grid.depths == [0.0, 0.5, 1.0]
    assert grid.accuracy == [[1.0, 1.0], [0.5, None], [None, 1.0]]
    assert (grid.fewest, grid.most) == (1, 2)
    assert grid.tasks == ("a",)


def test_needles_are_of_the_tasks_that_all_settings_have(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1], depths=[0.5]),
        made.point("b", 1024, "dense", None, [0], depths=[0.5]),
        made.point("a", 1024, "threshold", 8, [1], depths=[0.5], density=0.5),
    )
    assert [grid.accuracy for grid in needle_grids(r.read(path))] == [[[1.0]], [[1.0]]]


def test_a_target_that_leaves_nothing_out_is_no_success(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 1]),
        made.point("a", 1024, "threshold", 8, [0, 1], density=0.5),
        made.point("a", 1024, "threshold", 64, [1, 1], density=1.0),
    )
    (target,) = _analysis(path).targets
    assert target.cell is not None
    assert (target.cell.budget, target.smallest) == (64, False)
    report.write(path, tmp_path / "out")
    assert "1: nothing is left out" in (tmp_path / "out" / "report.html").read_text()


def test_tasks_with_nothing_to_compare_are_in_no_mean(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        *(
            made.point(task, 1024, mode, budget, [1, 1], density=density)
            for task in ("a", "b")
            for mode, budget, density in (("dense", None, 1.0), ("threshold", 8, 0.5))
        ),
        made.point("c", 1024, "dense", None, [1, 1]),
        tasks=["a", "b", "c"],
    )
    (mean,) = _analysis(path).averages
    assert mean.tasks == ("a", "b")


def test_many_depths_are_rounded_to_tenths(tmp_path: Path) -> None:
    depths = [i / 29 for i in range(30)]
    path = _file(
        tmp_path / "r.jsonl", made.point("a", 1024, "dense", None, [1] * 30, depths=depths)
    )
    (grid,) = needle_grids(r.read(path))
    assert grid.depths == pytest.approx([i / 10 for i in range(11)])
    assert (grid.fewest, grid.most) == (2, 3)


def test_ablations_are_compared_with_their_reference(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.ablation("samples", "4", 8, [0.3, 0.5]),
        made.ablation("samples", "16", 8, [0.2, 0.3]),
        made.ablation("domain", "x -> y", 8, [0.4, 0.4]),
        made.ablation("domain", "y -> y", 8, [0.1, 0.1]),
        r.Ablation("gate_block", "64x64", 8, 0.5, 0.5, 0.1, None, None, 2),
    )
    rows = ablation_rows(r.read(path))
    few, many = rows["samples"]
    assert many.differences == {}
    assert few.differences["error"].value == pytest.approx(0.15)
    assert few.differences["error"].n == 2
    assert rows["domain"][0].differences["error"].value == pytest.approx(0.3)
    assert rows["gate_block"][0].quantities["agreement"] is None
    assert rows["gate_block"][0].differences == {}
    report.write(path, tmp_path / "out")


def test_the_same_results_give_the_same_pictures(swept: Path) -> None:
    results = r.read(swept)
    first, second = (pictures(analyse(results), {})[0] for _ in range(2))
    assert first.name == second.name
    assert plots.render(first.draw, plots.LIGHT) == plots.render(second.draw, plots.LIGHT)
    assert plots.render(first.draw, plots.LIGHT) != plots.render(first.draw, plots.DARK)


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"kind":"header","format":"bsfa-eval","version":99}\n')
    with pytest.raises(errors.FormatError, match="99"):
        report.write(path, tmp_path / "out")
    with pytest.raises(errors.FileError, match="cannot be read"):
        report.write(tmp_path / "none.jsonl", tmp_path / "out")
    _file(tmp_path / "good.jsonl")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(errors.FileError, match="--out"):
        report.write(tmp_path / "good.jsonl", tmp_path / "taken")


def test_a_task_beyond_the_model_may_be_left_out(tmp_path: Path) -> None:
    header = made.header(["a", "b"], [1024], [8], ["dense", "threshold"])
    header.settings["skip_uninformative"] = True
    path = tmp_path / "r.jsonl"
    r.create(path, header)
    r.append(path, made.point("a", 1024, "dense", None, [0, 0, 1]))
    r.append(path, made.point("b", 1024, "dense", None, [1, 1, 1]))
    missing = _analysis(path).missing
    assert [(key[0], key[-1]) for key in missing] == [
        ("a", "left out, since dense is below 50 %"),
        ("b", "not measured"),
    ]


def test_the_command_line_writes_and_says_what_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(
        tmp_path / "r.jsonl",
        made.point("a", 1024, "dense", None, [1, 1]),
        made.point("a", 1024, "threshold", 8, [1, 1], density=0.25),
        r.Failed("a", 1024, "threshold", 4, "no memory"),
    )
    assert main(["eval", "report", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "threshold: budget 8, density 0.250" in said
    assert "points failed: 1" in said
    assert main(["eval", "report", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    path.write_text("{}\n")
    assert main(["eval", "report", str(path), "--out", str(tmp_path)]) == 2
