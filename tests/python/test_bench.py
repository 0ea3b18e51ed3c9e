"""The benchmarks of a model, rehearsed on the CPU: no test looks at their times."""

from __future__ import annotations

import json
import random
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench/python"
SCRIPT = BENCH / "ttft.py"
CONTESTANTS = {"flash2", "cudnn", "dense", "gated 0.5", "gated 0.24", "gated 0.1"}


def run(out: Path, *arguments: str) -> str:
    options = ["--device", "cpu", "--layers", "1", "--dirty", "--out", out]
    command = [sys.executable, SCRIPT, *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(out: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return sorted((line["length"], line["contestant"]) for line in lines if "contestant" in line)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "ttft.jsonl"
    run(out, "--stages", "256:1")
    first = samples(out)
    assert {name for _, name in first} == CONTESTANTS
    assert len(first) == 6
    with out.open("a") as file:
        file.write('{"length": 256, "contestant": "fl')  # cut while it was written
    table = run(out, "--stages", "256:1,512:2")
    lines = out.read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    found = sorted((w["length"], w["contestant"]) for w in whole if "contestant" in w)
    assert found == sorted(first + [(512, name) for name in CONTESTANTS for _ in range(2)])
    gated = [w for w in whole if w.get("contestant") == "gated 0.5"]
    assert all(abs(w["density"] - w["predicted_density"]) < 0.2 for w in gated)
    assert table.count("\n") == 2 + 2 * 6
    assert run(out, "--summary") == table


def test_decoding(tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    arguments = ["--shape", "tiny", "--device", "cpu", "--prompt", "40", "--steps", "5", "--dirty"]
    command = [sys.executable, BENCH / "decoding.py", "--out", out, *arguments, "--seconds", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    caches = json.loads(out.read_text())["caches"]
    assert list(caches) == ["dynamic", "static"]
    for cache in caches.values():
        lengths = {len(seconds) for seconds in cache["seconds"].values()}
        assert lengths == {cache["rounds"]}
        assert cache["rounds"] >= 1
        assert {"enabled_over_without", "again_over_before"} <= set(cache)


def test_the_interval_holds_the_median_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    median_with_interval = runpy.run_path(str(BENCH / "decoding.py"))["median_with_interval"]
    assert median_with_interval([3.0, 1.0, 2.0]) == (2.0, None)  # too few
    assert median_with_interval([float(i) for i in range(6)]) == (2.5, [0.0, 5.0])
    draw = random.Random(1)
    held, widths = 0, []
    for _ in range(1000):
        _, (low, high) = median_with_interval([draw.random() for _ in range(60)])
        held += low <= 0.5 <= high
        widths.append(high - low)
    assert 940 <= held <= 985
    assert statistics.mean(widths) < 0.3
