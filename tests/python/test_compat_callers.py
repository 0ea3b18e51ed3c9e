"""Public programs that import `flash_attn`, unchanged, over `bsfa.compat.install()`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu import needs_gpu

CALLERS = Path(__file__).parent / "callers"
CANNOT_RUN = 77


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=CALLERS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_transformers() -> str:
    process = start(CALLERS / "transformers_model.py")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card")
def test_transformers_path_on_the_cpu() -> None:
    output = run_transformers()
    for version in (2, 3):
        assert f"flash_attention_{version}: the package is found, the device refused" in output
    assert output.count(": agrees") == 12


@pytest.mark.gpu
@needs_gpu[1]
def test_transformers_path_on_a_card() -> None:
    assert run_transformers().count(": agrees") == 16


@pytest.mark.parametrize(("package", "comparisons"), [("ring_flash_attn", 5), ("yunchang", 7)])
def test_rings_of_two_processes(package: str, comparisons: int, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    processes = [start(CALLERS / "ring.py", package, rank, tmp_path / "meet") for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode == CANNOT_RUN:
            pytest.skip(output.splitlines()[-1])
        assert process.returncode == 0, output
        assert output.count(": agrees") == comparisons, output
        assert "backward: refused" in output
