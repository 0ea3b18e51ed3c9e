"""The evaluation with modes that are set by a number instead of a budget."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import bsfa
import synthetic_results as made
from bsfa.cli import main
from bsfa.eval import plots, report, results, sweep
from bsfa.eval.report_analysis import analyse
from bsfa.eval.sweep import Plan
from bsfa.policies import POLICIES
from eval_setup import haystack, model, tokenizer

pytestmark = pytest.mark.model

PLAN = Plan(
    tasks=["niah_single_1"],
    lengths=[640],
    budgets=[1],
    modes=["dense", "sliding_window", "mass", "skip_softmax", "skip_softmax_outwards"],
    prompts=2,
    seed=2,
    ttft_runs=0,
)


def run(out: Path, plan: Plan = PLAN) -> results.Results:
    return sweep.run(model(), tokenizer(), plan, str(out))


def settings(found: results.Results) -> set[tuple[str, Any]]:
    return {(mode, number) for _, _, mode, number in found.points}


def test_modes_run_at_their_numbers(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    found = run(out)
    assert found.failed == {}
    expected: set[tuple[str, Any]] = {
        ("dense", None),
        ("sliding_window", 1),
        ("mass", 0.1),
        ("skip_softmax", 0.03),
        ("skip_softmax_outwards", 0.03),
    }
    assert settings(found) == expected
    for point in found.points.values():
        with_prediction = point.mode in ("dense", "sliding_window")
        assert (point.density.predicted is not None) == with_prediction
        assert 0 < point.density.measured <= 1
        assert len(point.density_by_head) == 2
    maps = {(kept.mode, kept.budget): kept for kept in found.maps.values()}
    assert set(maps) == expected - {("dense", None)}

    # What a map shows are the blocks that the point counts.
    kept = maps["mass", 0.1].kept()
    assert all(row[0] for row in kept)
    assert kept[4][8:10] == [True, True]

    # Read again, and gone on with at other numbers.
    assert settings(results.read(out)) == expected
    grown = dataclasses.replace(
        PLAN, modes=["mass", "skip_softmax"], parameters={"mass": [0.1, 1e-30], "skip_softmax": [1]}
    )
    found = run(out, grown)
    assert settings(found) == expected | {("mass", 1e-30), ("skip_softmax", 1.0)}
    assert found.header.settings["parameters"] == {
        "mass": [0.1, 1e-30],
        "skip_softmax": [0.03, 1.0],
        "skip_softmax_outwards": [0.03],
    }
    assert results.read(out).header == found.header
    assert found.points["niah_single_1", 640, "mass", 1e-30].density.measured == 1


def test_the_number_reaches_the_model() -> None:
    for mode, number in (("mass", 0.02), ("skip_softmax_outwards", 0.5)):
        sweep._use(model(), mode, number, None)
        stats = bsfa.stats(model())
        assert (stats.mode, stats.parameter) == (mode, number)
    sweep._use(model(), "stock", None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"mass": [0.0]}}, "parameter is 0.0; mode 'mass' takes a finite c above 0"),
        ({"parameters": {"skip_softmax": [2.0]}}, "parameter is 2.0; .* at most 1"),
        ({"parameters": {"dense": [2.0]}}, "parameter is 2.0 with mode 'dense'"),
        ({"parameters": {"fast": [2.0]}}, "mode is 'fast'; accepted: dense, "),
    ],
)
def test_bad_numbers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        run(tmp_path / "r.jsonl", dataclasses.replace(PLAN, **change))
    assert not (tmp_path / "r.jsonl").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], of_a_commit: str) -> None:
    model().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(haystack().text)
    out = tmp_path / "r.jsonl"
    command = ["eval", "sweep", "--model", str(tmp_path / "model"), "--out", str(out)]
    command += ["--tasks", "niah_single_1", "--lengths", "320", "--prompts", "1"]
    command += ["--modes", "dense,mass,skip_softmax", "--ttft-runs", "0", "--json"]
    assert main([*command, "--mass-c", "0.1,0.02", "--skip-lambda", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 4
    assert settings(results.read(out)) == {
        ("dense", None),
        ("mass", 0.1),
        ("mass", 0.02),
        ("skip_softmax", 0.5),
    }
    with pytest.raises(SystemExit):
        main([*command, "--mass-c", "much"])
    assert "'much'; accepted: a list of finite numbers above 0" in capsys.readouterr().err


def test_a_report_has_their_curves_and_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    header = made.header(["a"], [1024], [8], ["dense", "threshold", "mass"])
    header.settings["parameters"] = {"mass": [0.1, 0.3, 0.9]}
    results.create(path, header)
    for mode, number, density, scores in (
        ("dense", None, 1.0, [1, 1, 1, 1]),
        ("threshold", 8, 0.5, [1, 1, 0, 0]),
        ("mass", 0.1, 0.6, [1, 1, 1, 1]),
        ("mass", 0.3, 0.4, [1, 1, 1, 0]),
    ):
        results.append(
            path,
            made.point("a", 1024, mode, number, scores, density=density, seconds=density),
        )
    analysis = analyse(results.read(path))
    assert analysis.missing == [("a", 1024, "mass", 0.9, "not measured")]
    (comparison,) = analysis.equal_density
    assert (comparison.other, set(comparison.between)) == ("mass", {0.1, 0.3})
    assert comparison.difference.value < 0
    report.write(path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mass 0.1" in page
    assert "mass 0.9" in page


def test_every_mode_has_a_look() -> None:
    modes = {"stock", *POLICIES}
    for looks in (plots.LIGHT.modes, plots.DARK.modes, plots.MARKERS, plots.LINES):
        assert set(looks) == modes
    assert set(plots.MODE_NAMES) == modes
    assert len(set(plots.LIGHT.modes.values())) == len(modes)
