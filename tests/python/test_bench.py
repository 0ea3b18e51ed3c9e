"""The benchmark of the time to first token, rehearsed on the CPU: no test looks at its times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench/python/ttft.py"
CONTESTANTS = {"flash2", "cudnn", "dense", "gated 0.5", "gated 0.24", "gated 0.1"}


def run(out: Path, *arguments: str) -> str:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--layers", "1", "--out", out, *arguments]
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
