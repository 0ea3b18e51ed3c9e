"""What the command line prints, and what becomes of it: closed pipes, full disks, terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bsfa
from bsfa.cli import main, output
from tiny import table_for

COMMAND = [sys.executable, "-m", "bsfa"]
WRITERS = [["info"], ["info", "--json"], ["--help"], ["eval", "sweep", "--tasks", "help"]]
WRITERS[3] += ["--model", "m", "--out", "o"]
ESCAPE = "\x1b[31m\x9b2J\u202e"
"""Red, the screen cleared, and the direction of writing turned."""


def run(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND + command, stderr=subprocess.PIPE, text=True, timeout=120, **how)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_a_full_disk_is_one_line(command: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(command, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    message = "bsfa: error: standard output cannot be written: No space left on device\n"
    assert done.stderr == message


@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_a_closed_pipe_is_quiet(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(command, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (output.CLOSED_PIPE, "")


def test_a_pipe_closed_after_a_line() -> None:
    """As `| head -1`: the shell's own pipe, and the exit code of a program that SIGPIPE ended."""
    code = "import bsfa.cli.output as o, bsfa.cli as c; " + (
        "c.info.info = lambda _: [o.say('x' * 1000) for _ in range(10000)]; "
        "import sys; sys.exit(c.main(['info']))"
    )
    script = f'"{sys.executable}" -c "{code}" | head -1 | wc -c; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1001", str(output.CLOSED_PIPE)]
    assert done.stderr == ""


def test_a_closed_stdout_is_refused() -> None:
    script = f'"{sys.executable}" -m bsfa info >&-'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "bsfa: error: standard output is closed\n")


def test_a_closed_stderr_is_no_file_of_ours(tmp_path: Path) -> None:
    """What is opened later does not become descriptor 2, and nothing for stderr reaches stdout."""
    script = f'"{sys.executable}" -m bsfa thresholds show none 2>&-'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_an_encoding_that_lacks_a_sign() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from bsfa.cli import output as o; o.check_streams(); o.say('→é')"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "\\u2192\\xe9\n"), done.stderr


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A sound threshold file whose name and texts hold what a terminal acts upon."""
    table = table_for(None, torch.zeros(1, 2, 4, 4), [4])
    name = tmp_path / f"t{ESCAPE}.safetensors"
    bsfa.ThresholdTable(
        table.values(), budgets=[4], softmax_scale=0.25, max_seqlen=512, model="m" + ESCAPE,
        num_samples=1, producer=ESCAPE * 2000,
    ).save(name)  # fmt: skip
    return name


def fit_for_a_terminal(text: str) -> bool:
    return all(bsfa._core.printable(line, 10**6) == line for line in text.splitlines())


def test_nothing_from_files_acts_on_a_terminal(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["thresholds", "show", str(hostile)],
        ["thresholds", "show", str(hostile), "--json"],
        ["thresholds", "check", str(hostile)],
        ["thresholds", "check", str(hostile), "--layers", "7"],
        ["thresholds", "show", str(hostile) + ESCAPE],
        ["thresholds", "merge", str(hostile), "--out", str(hostile) + "/" + ESCAPE],
        ["thresholds", "convert", str(hostile), ESCAPE],
        ["run", "--model", ESCAPE, "--prompt-file", ESCAPE, "--thresholds", str(hostile)],
        ["run", "--model", ESCAPE, "--prompt-file", ESCAPE, "--thresholds", str(hostile),
         "--compare", ESCAPE],
        ["calibrate", "--model", ESCAPE, "--data", ESCAPE, "--out", ESCAPE + "/o"],
        ["eval", "report", str(hostile), "--out", str(hostile) + ESCAPE],
        ["eval", "ablate", "--dirty", "--model", "m", "--domain", ESCAPE, "--out", "o"],
    ):  # fmt: skip
        main(command)
        said = "".join(capsys.readouterr())
        assert said
        assert fit_for_a_terminal(said), command
        assert len(said) < 10_000 or "--json" in command, command  # there it is whole


@pytest.mark.parametrize(
    "command",
    [
        [ESCAPE],
        ["info", ESCAPE * 1000],
        ["run", "--budget", ESCAPE * 1000],
        ["thresholds", "show", "x", "--length", ESCAPE],
        ["eval", "sweep", "--map", ESCAPE],
        ["run", "--dtype", ESCAPE],
    ],
)
def test_refused_arguments_are_printed_safely(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert fit_for_a_terminal(said)
    assert len(said) < 10_000


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"x": [ESCAPE + "é\ud800", float("nan"), {"y": float("inf")}]}
    output.print_json(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert fit_for_a_terminal(text)
    assert json.loads(text) == {"x": [ESCAPE + "é\ud800", None, {"y": None}]}
