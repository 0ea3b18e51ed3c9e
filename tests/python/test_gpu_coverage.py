"""The sampled selector on a GPU. `pytest tests/python -m gpu`."""

from __future__ import annotations

import pytest
import torch

import bsfa
from gpu import CUDA_BACKENDS, needs_gpu
from test_gpu_hf import gpu_model, logits
from tiny import tokens

pytestmark = [
    *needs_gpu,
    pytest.mark.skipif("cuda-sm90" not in CUDA_BACKENDS, reason="NOT RUN: needs cuda-sm90"),
]


def uneven_operands(head_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(2, 1500, heads, head_dim) for heads in (8, 2, 2))
    q[..., 0] = head_dim**0.5
    k[..., 0] = (-12 * torch.rand(24)).repeat_interleave(64)[:1500, None]
    return tuple(t.to(torch.bfloat16) for t in (q, k, v))  # type: ignore[return-value]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("rows", [16, 32])
def test_it_chooses_what_the_cpu_chooses(head_dim: int, rows: int, no_waiting: object) -> None:
    q, k, v = uneven_operands(head_dim)
    own = {"coverage": 0.9, "sampled_rows": rows, "mass_floor": 1.0, "return_stats": True}
    expected, its = bsfa.flash_attn_func(q, k, v, causal=True, **own)
    operands = [t.cuda() for t in (q, k, v)]
    with no_waiting:
        out, stats = bsfa.flash_attn_func(*operands, causal=True, **own)
    # A block at the level may be chosen otherwise.
    assert (stats.kept_blocks.cpu() - its.kept_blocks).abs().max() <= 1
    assert (its.density < 0.9).all()
    assert (out.cpu().float() - expected.float()).abs().mean() < 2e-3


def test_what_is_left_out_is_told() -> None:
    q, k, v = (t.cuda() for t in uneven_operands(128))
    left_out = torch.full((2, 8, 12), -1.0, device="cuda")

    def workspace(num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")

    bsfa.attention_forward(
        q, k, v, torch.empty_like(q), causal=True, coverage=0.8, mass_floor=1.0,
        left_out=left_out, workspace=workspace,
    )  # fmt: skip
    torch.cuda.synchronize()
    assert ((left_out >= 0) & (left_out <= 0.2 + 1e-6)).all()
    assert left_out.max() > 0.05


def test_a_model_and_a_graph() -> None:
    model = gpu_model("llama")
    ids = tokens(1, 900).cuda()
    bsfa.enable(model)
    dense = logits(model, ids)
    bsfa.enable(model, coverage=1.0)
    assert (logits(model, ids) - dense).abs().max() <= 0.03 * dense.abs().max()
    stats = bsfa.stats(model)
    assert stats.fallbacks == {}
    assert stats.left_out == pytest.approx(0, abs=1e-6)
    bsfa.enable(model, coverage=0.5)
    eager = logits(model, ids)
    assert 0 <= bsfa.stats(model).left_out <= 0.5  # of a uniform attention the floor keeps all

    q, k, v = (t.cuda() for t in uneven_operands(64))
    expected = bsfa.flash_attn_func(q, k, v, causal=True, coverage=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bsfa.flash_attn_func(q, k, v, causal=True, coverage=0.9)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert eager.isfinite().all()


def test_what_it_does_not_serve_is_refused_by_name() -> None:
    q, k, v = (torch.randn(1, 300, 4, 96, device="cuda", dtype=torch.float16) for _ in range(3))
    with pytest.raises(bsfa.UnsupportedError, match=r"head_dim 96.*cuda-sm80"):
        bsfa.flash_attn_func(q, k, v, causal=True, coverage=0.9)
