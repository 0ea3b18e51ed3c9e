"""Which GPU tests can run here, and why they are skipped where they cannot."""

from __future__ import annotations

import pytest
import torch

import bsfa

CUDA_BACKENDS = [b.name for b in bsfa.backends() if b.device == "cuda" and b.available]


def _missing() -> str:
    if not torch.cuda.is_available():
        return "NOT RUN: torch sees no CUDA device here"
    built = [b.name for b in bsfa.backends() if b.device == "cuda"]
    return f"NOT RUN: no CUDA backend for this card; this build has {built or 'none'}"


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA_BACKENDS, reason=_missing())]
