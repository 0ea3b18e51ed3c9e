"""Fixtures of the Python tests. Those marked gpu need a card; none needs a network."""

from __future__ import annotations

import pytest
import torch

import bsfa
from gpu import CUDA_BACKENDS

CPU_BACKENDS = [b.name for b in bsfa.backends() if b.device == "cpu" and b.available]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def of_a_commit(monkeypatch: pytest.MonkeyPatch) -> str:
    """The package as if it were built from a commit without changes; returns that commit."""
    commit = "c" * 40
    monkeypatch.setattr("bsfa._core.source_tree", lambda: (commit, False))
    return commit


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that this build has for the CPU, by name."""
    return request.param


@pytest.fixture(params=CUDA_BACKENDS or ["cuda"])
def cuda_backend(request: pytest.FixtureRequest) -> str:
    """Every backend that this build has for the card, by name."""
    return request.param


@pytest.fixture
def no_waiting() -> object:
    """Turns every wait of torch for the device into an error while it is entered."""

    class Guard:
        def __enter__(self) -> None:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *error: object) -> None:
            torch.cuda.set_sync_debug_mode("default")

    return Guard()
