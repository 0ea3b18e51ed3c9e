"""The quickstart, and the Python of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import table_for, tiny_model, tokens

ROOT = Path(__file__).parents[2]


def test_quickstart() -> None:
    script = ROOT / "examples/python_quickstart.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dense: (1, 1024, 8, 64), density 1.00\n")
    rows = re.findall(r"budget (\d): density predicted (\S+), measured (\S+)\n", done.stdout)
    assert [row[0] for row in rows] == ["8", "4", "2"]
    measured = [float(row[2]) for row in rows]
    assert sorted(measured, reverse=True) == measured
    assert measured[-1] < 1


SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_documentation(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each snippet runs by itself, given a model, its tokens and a threshold file."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model("llama")
    table = table_for(model, torch.zeros(2, 2, 4, 8), [64, 96])
    table.save("thresholds.safetensors")
    ids = tokens(1, 600)
    names = {"model": model, "input_ids": ids, "samples": [ids[0]], "torch": torch}
    exec(compile(SNIPPETS[number], f"docs/python.md[{number}]", "exec"), names)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3
