"""The command line, end to end on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bsfa
from bsfa.cli import main
from tiny import save_model, table_for, tiny_model, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a word tokenizer, a text and a threshold file."""
    path = tmp_path_factory.mktemp("cli")
    save_model(path / "model", tiny_model("llama"))
    (path / "text.txt").write_text(words(500))
    values = torch.full((2, 2, 4, 4), -torch.inf)
    table = table_for(None, values, [4, 9])
    table.recommended_budget = 4
    table.save(str(path / "t.safetensors"))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """A command with --json that succeeds."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The exit code and the message of a command that is refused."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "info")
    assert result["version"] == bsfa.__version__
    assert "cpu" in [backend["name"] for backend in result["backends"]]
    assert main(["info"]) == 0
    assert "Backends" in capsys.readouterr().out


def test_calibrate_run_and_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model"
    out = folder / "made.safetensors"
    result = run(
        capsys, "calibrate", "--model", model, "--data", folder / "text.txt", "--out", out,
        "--budgets", "1,2", "--recommend", "1", "--partial", folder / "sums", "--max-tokens", "400",
    )  # fmt: skip
    assert (result["num_samples"], result["max_seqlen"]) == (1, 400)
    assert result["model"] == "model"
    assert (folder / "made.svg").read_text().startswith("<svg")

    (folder / "other.txt").write_text(words(300, seed=8))
    run(
        capsys, "calibrate", "--model", model, "--data", folder / "other.txt",
        "--out", folder / "other.safetensors", "--budgets", "1,2", "--partial", folder / "more",
    )  # fmt: skip
    merged = folder / "merged.safetensors"
    parts = [folder / "sums", folder / "more"]
    result = run(capsys, "thresholds", "merge", *parts, "--out", merged)
    assert result["num_samples"] == 2
    made = bsfa.ThresholdTable.load(str(out))
    assert bsfa.ThresholdTable.load(str(merged)).fingerprint == made.fingerprint
    assert made.fingerprint.startswith("torch:")
    (folder / "link").symlink_to("sums")
    (folder / "copy").write_bytes(parts[0].read_bytes())
    for part, message in (("sums", "given twice"), ("link", "same file"), ("copy", "in common")):
        code, said = refused(capsys, "thresholds", "merge", *parts, folder / part, "--out", merged)
        assert code == 2
        assert message in said
    for target in (folder / "sums", folder / "link"):
        code, said = refused(capsys, "thresholds", "merge", *parts, "--out", target)
        assert code == 2
        assert "would be lost" in said
    assert run(capsys, "thresholds", "show", folder / "sums")["kind"] == "partial calibration"
    assert run(capsys, "thresholds", "check", merged, "--model", model, "--budget", 2)["sound"]

    result = run(
        capsys, "run", "--model", model, "--prompt-file", folder / "text.txt", "--thresholds", out,
        "--compare", "stock,dense,sliding_window", "--runs", 2, "--answer-tokens", 3,
        "--prompt-tokens", 390,
    )  # fmt: skip
    assert result["prompt_tokens"] == 390
    assert result["budget"] == 1
    names = [c["name"] for c in result["contestants"]]
    assert names == ["stock", "dense", "sliding_window", "bsfa"]
    by_name = dict(zip(names, result["contestants"], strict=True))
    assert by_name["stock"]["answer"] == by_name["dense"]["answer"]
    assert by_name["dense"]["density"] == 1
    assert by_name["bsfa"]["density"] < 1
    assert len(by_name["bsfa"]["layers"]) == 2
    assert all(len(c["ttft"]) == 2 for c in result["contestants"])
    assert result["verdict"] in ("same answer", "different answers")

    command = ["run", "--model", model, "--prompt-file", folder / "text.txt", "--thresholds", out]
    command += ["--runs", 1, "--answer-tokens", 1, "--needle", 0.5, "--prompt-tokens", 390]
    assert main([*map(str, command), "--by-layer"]) == 0
    text = capsys.readouterr().out
    assert "verdict" in text
    assert "layer   1: threshold" in text


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "thresholds", "show", folder / "t.safetensors", "--length", "256,512")
    assert result["recommended_budget"] == 4
    cells = result["budgets"][0]["predicted"]
    assert [cell["seqlen"] for cell in cells] == [256, 512]
    assert cells[1]["predicted_density"] == bsfa.predicted_density(4, 512)
    assert main(["thresholds", "show", str(folder / "t.safetensors")]) == 0
    assert "100 % dense" in capsys.readouterr().out


def test_convert(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = folder / "t.pt", folder / "back.safetensors"
    run(capsys, "thresholds", "convert", folder / "t.safetensors", there)
    run(capsys, "thresholds", "convert", there, back, "--model", folder / "model")
    table = bsfa.ThresholdTable.load(str(back))
    assert table.budgets == [4, 9]
    assert table.softmax_scale == pytest.approx(0.25)
    code, message = refused(capsys, "thresholds", "convert", there, folder / "x.safetensors")
    assert code == 2
    assert "--softmax-scale" in message


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("thresholds", "show", "none.safetensors"), 1, "none.safetensors"),
        (("thresholds", "show", "{}/text.txt"), 2, "text.txt"),
        (("thresholds", "check", "{}/t.safetensors", "--layers", "7"), 2, "7"),
        (("thresholds", "check", "{}/t.safetensors", "--budget", "7"), 2, "budget is 7"),
        (("thresholds", "convert", "a.txt", "b.pt"), 2, "cannot convert"),
        (("run", "--model", "m", "--prompt-file", "p"), 2, "--thresholds is missing"),
        (
            ("run", "--model", "m", "--prompt-file", "p", "--thresholds", "{}/t.safetensors",
             "--compare", "fast"),
            2,
            "'fast'; accepted: stock",
        ),
        (
            ("run", "--model", "m", "--prompt-file", "p", "--thresholds", "{}/t.safetensors",
             "--budget", "5"),
            2,
            "budget is 5",
        ),
        (
            ("run", "--model", "{}/model", "--prompt-file", "{}/text.txt", "--thresholds",
             "{}/t.safetensors", "--device", "cpu", "--compare", "sparge"),
            2,
            "spas_sage_attn",
        ),
        (
            ("run", "--model", "none.gguf", "--prompt-file", "p", "--thresholds",
             "{}/t.safetensors"),
            1,
            "none.gguf",
        ),
        (
            ("run", "--model", "{}/model", "--prompt-file", "{}/none", "--thresholds",
             "{}/t.safetensors"),
            1,
            "--prompt-file",
        ),
        (
            ("run", "--model", "{}/model", "--prompt-file", "{}/text.txt", "--thresholds",
             "{}/t.safetensors", "--prompt-tokens", "9999"),
            2,
            "--prompt-tokens is 9999",
        ),
        (("calibrate", "--model", "m", "--data", "{}/none", "--out", "x"), 1, "none"),
    ],
)  # fmt: skip
def test_refusals(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    found, text = refused(capsys, *(a.format(folder) for a in arguments))
    assert message in text
    assert found == code


def test_unknown_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--fast"])
    assert exit_.value.code == 2
    assert "--model" in capsys.readouterr().err
