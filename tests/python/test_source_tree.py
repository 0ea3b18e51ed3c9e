"""Results files name the commit they were measured with, and changes are refused or marked."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bsfa import _core
from bsfa.__main__ import main
from bsfa.eval.environment import versions
from bsfa.provenance import built_from

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
OTHER = "f" * 40
WRITERS = sorted(
    path.relative_to(BENCH)
    for path in BENCH.rglob("*.py")
    if '"--out"' in path.read_text() or '"--json"' in path.read_text()
)
NEEDED = {  # what the options of a writer ask for, besides where to write
    "cpu_vs_torch.py": ["--library"],
    "host/host_time.py": ["--device", "cpu", "--program"],
    "cuda/sm80.py": ["8,128,bf16"],
    "python/small_model.py": ["--model", "none"],
}

ENTRIES = re.findall(r"BSFA_ENTRY [^(]*bsfa_bench_(\w+)\(", (BENCH / "cpu_entry.cc").read_text())
"""Every function that the library of cpu_vs_torch.py has."""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, str]:
    """A clone with one file, and its commit."""
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "file").write_text("as committed\n")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder, git(folder, "rev-parse", "HEAD")


def state(folder: Path, output: Path) -> str:
    script = ROOT / "cmake/source_tree/write_state.cmake"
    options = ["-DGIT=" + str(shutil.which("git")), f"-DROOT={folder}", f"-DOUTPUT={output}"]
    subprocess.run(["cmake", *options, "-P", script], check=True, capture_output=True)
    return output.read_text().strip()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_a_build_knows_the_state_of_its_tree(tree: tuple[Path, str], tmp_path: Path) -> None:
    folder, commit = tree
    output = tmp_path / "state.inc"
    assert state(folder, output) == f'"{commit}", false'
    (folder / "another").write_text("nothing that the commit names\n")
    written = output.stat().st_mtime_ns
    assert state(folder, output) == f'"{commit}", false'
    assert output.stat().st_mtime_ns == written  # nothing is compiled again
    (folder / "file").write_text("changed\n")
    assert state(folder, output) == f'"{commit}", true'
    (folder / "inner").mkdir()
    assert state(folder / "inner", output) == '"", false'  # somebody else's repository
    assert state(tmp_path, output) == '"", false'


def test_the_package_says_what_it_was_built_from() -> None:
    commit, changed = _core.source_tree()
    assert len(commit) in (0, 40)
    assert set(commit) <= set("0123456789abcdef")
    assert built_from() == (f"{commit} with changes" if commit and changed else commit)
    assert versions()["commit"] == built_from()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--model", "{}/none", "--out", "{}/r.jsonl"],
        ["ablate", "--model", "{}/none", "--out", "{}/r.jsonl", "--domain", "x={}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_evaluations_refuse_a_package_of_changed_source(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bsfa._core.source_tree", lambda: (OTHER, True))
    assert built_from() == versions()["commit"] == OTHER + " with changes"
    command = ["eval", *(text.format(tmp_path) for text in arguments)]
    if command[1] == "ablate":
        command += ["--ablations", "position"]
    said = f"built from commit {OTHER} with changes"
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--dirty"]) != 0  # there is no such model: that is what is said now
    assert said not in capsys.readouterr().err
    monkeypatch.setattr("bsfa._core.source_tree", lambda: ("", False))
    assert main(command) != 0  # a release
    assert said not in capsys.readouterr().err


@pytest.fixture(scope="module")
def source_tree() -> dict[str, Any]:
    return runpy.run_path(str(BENCH / "source_tree.py"))


def test_a_record_names_the_commit(source_tree: dict[str, Any], tree: tuple[Path, str]) -> None:
    folder, commit = tree
    script = str(folder / "file")
    assert source_tree["record"](script, False, package=(commit, False)) == {"commit": commit}
    (folder / "file").write_text("changed\n")
    marked = source_tree["record"](script, True, package=(commit, False))
    assert marked == {"commit": commit, "dirty": True}


@pytest.mark.parametrize(
    ("changed", "built", "said"),
    [
        (True, (None, False), "the tree has changes that commit"),
        (False, (None, True), "the package was built from a tree with changes"),
        (False, (OTHER, False), "the package was built from commit ffffffffffff, not from"),
        (False, ("", False), "the package was built from no clone"),
    ],
)
def test_a_record_of_something_else_is_refused(
    source_tree: dict[str, Any],
    tree: tuple[Path, str],
    changed: bool,
    built: tuple[str | None, bool],
    said: str,
) -> None:
    folder, commit = tree
    if changed:
        (folder / "file").write_text("changed\n")
    package = (commit if built[0] is None else built[0], built[1])
    with pytest.raises(SystemExit) as refusal:
        source_tree["record"](str(folder / "file"), False, package=package)
    assert said in str(refusal.value)
    assert "--dirty" in str(refusal.value)
    assert source_tree["record"](str(folder / "file"), True, package=package)["dirty"] is True


def test_a_record_outside_a_clone_is_refused(source_tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "script").write_text("")
    with pytest.raises(SystemExit, match="lies in no clone of the repository"):
        source_tree["record"](str(tmp_path / "script"), False)


def stand_in(folder: Path, name: str, commit: str) -> Path:
    """For a program or library that a writer loads: one of this commit, unchanged."""
    if name == "host/host_time.py":
        path = folder / "host_time"
        path.write_text(f"#!/bin/sh\necho '{json.dumps({'commit': commit, 'changed': False})}'\n")
        path.chmod(0o755)
        return path
    source = f"""
        const char* bsfa_bench_commit() {{ return "{commit}"; }}
        int bsfa_bench_changed() {{ return 0; }}
    """
    for function in {*ENTRIES} - {"commit", "changed"}:
        source += f"int bsfa_bench_{function}() {{ return 0; }}\n"
    path = folder / "entry.so"
    command = ["cc", "-w", "-x", "c", "-shared", "-o", path, "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return path


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_every_benchmark_refuses_a_tree_with_changes(
    writer: Path, tree: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = tree
    left_out = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(BENCH, folder / "bench", ignore=left_out)
    git(folder, "add", "bench")
    git(folder, "commit", "--quiet", "-m", "two")
    (folder / "file").write_text("changed\n")
    arguments = list(NEEDED.get(str(writer), []))
    if arguments and arguments[-1] in ("--library", "--program"):
        arguments.append(str(stand_in(tmp_path, str(writer), git(folder, "rev-parse", "HEAD"))))
    out = tmp_path / "results.json"
    option = "--json" if str(writer) == "cpu_vs_torch.py" else "--out"
    command = [sys.executable, folder / "bench" / writer, *arguments, option, out]
    # No card is asked for anything before the refusal.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "the tree has changes that commit" in done.stderr, done.stderr
    assert not out.exists()


def test_there_are_writers() -> None:
    assert {str(path) for path in WRITERS} == {
        "cpu_vs_torch.py",
        "cuda/attention.py",
        "cuda/sm80.py",
        "host/host_time.py",
        "python/decoding.py",
        "python/small_model.py",
        "python/ttft.py",
    }


def test_committed_results_are_of_commits() -> None:
    """Those that were marked stay on the machine that made them."""
    files = [
        path
        for folder in ("bench/results", "docs/results")
        for path in (ROOT / folder).rglob("*.json*")
    ]
    assert files
    for path in files:
        text = path.read_text()
        assert '"dirty": true' not in text, path
        assert " with changes" not in text, path
