"""Fixtures of the Python tests. No test needs a GPU, a network or a model hub."""

from __future__ import annotations

import pytest
import torch

import bsfa

CPU_BACKENDS = [b.name for b in bsfa.backends() if b.device == "cpu" and b.available]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that this build has for the CPU, by name."""
    return request.param
