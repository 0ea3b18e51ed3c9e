"""The command line, end to end on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import bsfa
from bsfa.cli import main
from bsfa.files import Lock
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
            ("run", "--model", "none.gguf", "--prompt-file", "{}/text.txt", "--thresholds",
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


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that gets as far as loading a model, the first of the work, fails the test."""

    def load(*arguments: object, **options: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("bsfa.loading.load_model", load)


def commands_that_write(folder: Path, out: Path) -> list[list[str]]:
    """Every verb that has an --out, with everything else sound."""
    model, text, table = folder / "model", folder / "text.txt", folder / "t.safetensors"
    listed = [
        ["calibrate", "--model", model, "--data", text, "--out", out],
        ["eval", "sweep", "--dirty", "--model", model, "--thresholds", table, "--out", out],
        ["eval", "ablate", "--dirty", "--model", model, "--domain", f"a={text}", "--ablations",
         "position", "--out", out],
        ["thresholds", "merge", folder / "sums", "--out", out],
        ["thresholds", "convert", table, out.with_suffix(".pt")],
        ["thresholds", "show", table, "--plot", out],
    ]  # fmt: skip
    return [[str(part) for part in command] for command in listed]


COMMANDS = ["calibrate", "sweep", "ablate", "merge", "convert", "show"]


@pytest.mark.parametrize("which", range(len(COMMANDS)), ids=COMMANDS)
def test_out_is_looked_at_first(
    folder: Path, no_model: None, capsys: pytest.CaptureFixture[str], which: int
) -> None:
    for out, message in (
        (folder / "none" / "x.pt", "there is no folder"),
        (folder / "text.txt" / "x.pt", "there is no folder"),
        (folder / "is.pt", "is a directory"),
        (folder / "pipe.pt", "is not a regular file"),
    ):
        if out.name == "is.pt":
            out.mkdir(exist_ok=True)
        if out.name == "pipe.pt" and not out.exists():
            os.mkfifo(out)
        code, said = refused(capsys, *commands_that_write(folder, out)[which])
        assert code == 1
        assert message in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("which", range(len(COMMANDS)), ids=COMMANDS)
def test_a_folder_that_may_not_be_written_to(
    folder: Path, no_model: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, which: int
) -> None:
    tmp_path.chmod(0o500)
    code, said = refused(capsys, *commands_that_write(folder, tmp_path / "x.pt")[which])
    tmp_path.chmod(0o700)
    assert code == 1
    assert "Permission denied" in said


@pytest.mark.parametrize("which", [0, 1, 2, 5], ids=[COMMANDS[i] for i in (0, 1, 2, 5)])
def test_out_is_none_of_the_inputs(
    folder: Path, no_model: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, which: int
) -> None:
    for name in ("text.txt", "t.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    read = tmp_path / ("text.txt" if which in (0, 2) else "t.safetensors")
    (tmp_path / "link").symlink_to(read.name)
    before = read.read_bytes()
    for out in (read, tmp_path / "link"):
        command = commands_that_write(tmp_path, out)[which]
        code, said = refused(capsys, *command)
        assert code == 2
        assert "one would be lost" in said
    assert read.read_bytes() == before


def test_a_sweep_beside_another_is_told_before_the_model_is_loaded(
    folder: Path, no_model: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Lock(tmp_path / "r.jsonl"):
        for which in (1, 2):
            code, said = refused(capsys, *commands_that_write(folder, tmp_path / "r.jsonl")[which])
            assert code == 1
            assert "is being written by process" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"before\0 after. What comes then?", "holds a NUL at byte 6; expected text"),
        (b"before \xff after", "is not UTF-8 at byte 7; expected text"),
    ],
)
def test_a_prompt_is_taken_whole_or_refused(
    folder: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: bytes,
    message: str,
) -> None:
    (tmp_path / "prompt").write_bytes(content)
    command = ["run", "--model", folder / "model", "--thresholds", folder / "t.safetensors"]
    code, said = refused(capsys, *command, "--prompt-file", tmp_path / "prompt")
    assert code == 2
    assert "--prompt-file: " in said
    assert message in said
    command += ["--prompt-file", folder / "text.txt"]
    for question in ("before\0after", "\udcff"):
        code, said = refused(capsys, *command, "--question", question)
        assert code == 2
        assert "--question " in said
    command = ["calibrate", "--model", folder / "model", "--out", tmp_path / "o", "--data"]
    (tmp_path / "prompt").rename(tmp_path / "prompt.txt")
    code, said = refused(capsys, *command, tmp_path / "prompt.txt")
    assert code == 2


def test_an_api_caller_s_nul_is_taken_whole(folder: Path) -> None:
    """What tokenizers do with a NUL: what stands behind it is not cut off."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    text = words(40)
    whole = tokenizer(text + " \0 " + text)["input_ids"]
    assert whole[-len(tokenizer(text)["input_ids"]) + 1 :] == tokenizer(text)["input_ids"][1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--needle", "nan"], "argument --needle: 'nan'; accepted: a number, 0 to 1"),
        (["run", "--needle", "1.5"], "argument --needle: '1.5'; accepted"),
        (["run", "--needle", "0_1"], "argument --needle: '0_1'; accepted"),
        (
            ["run", "--budget", str(2**63)],
            "argument --budget: '9223372036854775808'; accep",
        ),
        (["run", "--budget", "9" * 5000], "argument --budget: '999"),
        (
            ["run", "--threads", "1000000"],
            "argument --threads: '1000000'; accepted: a whole",
        ),
        (["run", "--runs", "1_0"], "argument --runs: '1_0'; accepted"),
        (["run", "--runs", "\u0661"], "accepted: a whole number, 1 to"),
        (
            ["calibrate", "--budgets", f"4,{2**63}"],
            "argument --budgets: '4,9223372036854775808'; ",
        ),
        (["calibrate", "--budgets", ","], "argument --budgets: ','; accepted"),
        (["calibrate", "--budgets", "4,0"], "argument --budgets: '4,0'; accepted"),
        (
            ["thresholds", "check", "f", "--softmax-scale", "nan"],
            "accepted: a finite number",
        ),
        (["thresholds", "check", "f", "--softmax-scale", "1e999"], "accepted: a finite number"),
        (["thresholds", "check", "f", "--layers", "4294967297"], "argument --layers: '4294967297'"),
        (
            ["eval", "sweep", "--seed", str(2**63)],
            "argument --seed: '9223372036854775808'; ",
        ),
        (["eval", "sweep", "--map", "1:x"], "argument --map: '1:x'; accepted: LAYER:HEAD"),
        (["eval", "sweep", "--ttft-runs", "-1"], "argument --ttft-runs: '-1'; accepted"),
    ],
)
def test_numbers_that_no_option_takes(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said) < 8000
