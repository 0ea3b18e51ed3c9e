"""`bsfa run` with what needs no thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsfa.cli import main
from tiny import save_model, tiny_model, words

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a text."""
    folder = tmp_path_factory.mktemp("cli")
    save_model(folder / "model", tiny_model("llama"))
    (folder / "text.txt").write_text(words(600))
    return folder


def command(folder: Path, *more: object) -> list[str]:
    first = ["run", "--model", folder / "model", "--prompt-file", folder / "text.txt"]
    first += ["--device", "cpu", "--runs", 1, "--answer-tokens", 2]
    return [str(part) for part in [*first, *more]]


def test_mass_without_thresholds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = "dense,skip_softmax,skip_softmax_outwards"
    options = ["--mode", "mass", "--mass-c", "1e-30", "--skip-lambda", "1", "--compare", compare]
    assert main([*command(folder, *options), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["parameter"], report["budget"]) == ("mass", 1e-30, None)
    assert report["predicted_density"] is None
    by_name = {result["name"]: result for result in report["contestants"]}
    assert [*by_name] == ["dense", "skip_softmax", "skip_softmax_outwards", "bsfa"]
    assert {layer["attention"] for layer in by_name["bsfa"]["layers"]} == {"mass"}
    assert by_name["bsfa"]["density"] == 1
    assert by_name["bsfa"]["answer"] == by_name["dense"]["answer"]
    assert report["verdict"] == "same answer"
    layers = by_name["skip_softmax_outwards"]["layers"]
    assert {layer["attention"] for layer in layers} == {"skip_softmax_outwards"}

    assert main(command(folder, "--mode", "mass", "--by-layer")) == 0
    text = capsys.readouterr().out
    assert "mass, c 0.1, " in text
    assert "layer   1: mass" in text
    assert "predicted" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "--thresholds is missing: `calibrate` makes a threshold file "
            "(--coverage 0.95 needs none)",
        ),
        (["--mode", "skip_softmax", "--skip-lambda", "2"], "--skip-lambda: parameter is 2.0"),
        (["--mode", "mass", "--skip-lambda", "0.1"], "and nothing runs skip_softmax"),
        (["--mode", "mass", "--compare", "sliding_window"], "budget is None"),
        (["--mode", "mass", "--compare", "threshold"], "mode 'threshold' needs thresholds"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(command(folder, *options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "nan", "inf", "-1", "1e999", "much"])
def test_numbers_that_no_policy_takes(
    folder: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    for option in ("--mass-c", "--skip-lambda"):
        with pytest.raises(SystemExit) as exit_:
            main(command(folder, "--mode", "mass", f"{option}={number}"))
        assert exit_.value.code == 2
        message = f"argument {option}: '{number}'; accepted: a finite number above 0"
        assert message in capsys.readouterr().err
