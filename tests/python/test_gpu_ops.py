"""The torch functions on a GPU: values, streams, graphs, devices. `pytest tests/python -m gpu`."""

from __future__ import annotations

import pytest
import torch

import bsfa
from gpu import needs_gpu
from operator_arguments import packed, padded
from reference import gated_attention, middling_thresholds

pytestmark = needs_gpu

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


def operands(
    seqlen: int = 600, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64, batch: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """On the CPU, so that the reference computes from the same bits."""
    return tuple(torch.randn(batch, seqlen, heads, head_dim).to(dtype) for heads in (4, 2, 2))


def cuda(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(t.cuda() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_dense(cuda_backend: str, dtype: torch.dtype, head_dim: int, causal: bool) -> None:
    q, k, v = operands(dtype=dtype, head_dim=head_dim)
    out, lse = bsfa.flash_attn_func(
        *cuda(q, k, v), causal=causal, return_lse=True, backend=cuda_backend
    )
    expected = gated_attention(q, k, v, causal=causal)
    torch.testing.assert_close(out.cpu().double(), expected[0], atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(lse.cpu().double(), expected[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_thresholds(cuda_backend: str, head_dim: int) -> None:
    q, k, v = operands(head_dim=head_dim)
    table = middling_thresholds(gated_attention(q, k, v, causal=True)[4])
    out, stats = bsfa.flash_attn_func(
        *cuda(q, k, v),
        causal=True,
        thresholds=table.cuda(),
        return_stats=True,
        backend=cuda_backend,
    )
    expected = gated_attention(q, k, v, causal=True, thresholds=table)
    assert torch.equal(stats.kept_blocks.cpu(), expected[2])
    assert torch.equal(stats.visible_blocks.cpu(), expected[3])
    assert 0 < stats.density.mean() < 1
    torch.testing.assert_close(out.cpu().double(), expected[0], atol=3e-2, rtol=0)


def test_varlen(cuda_backend: str, no_waiting: object) -> None:
    q, k, v = (t[0] for t in operands(seqlen=500))
    starts = torch.tensor([0, 130, 130, 500], dtype=torch.int32)
    table = torch.full((4, 4), 0.5)
    arguments = [*cuda(q, k, v)]
    offsets, device_table = starts.cuda(), table.cuda()
    with no_waiting:
        out, lse, stats = bsfa.flash_attn_varlen_func(
            *arguments,
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            max_seqlen_q=370,
            max_seqlen_k=370,
            causal=True,
            thresholds=device_table,
            return_lse=True,
            return_stats=True,
            backend=cuda_backend,
        )
    assert stats.kept_blocks[1].tolist() == [0, 0, 0, 0]
    for sequence in (0, 2):
        span = slice(int(starts[sequence]), int(starts[sequence + 1]))
        alone = bsfa.flash_attn_func(
            *(t[None, span] for t in arguments),
            causal=True,
            thresholds=device_table,
            return_lse=True,
            return_stats=True,
            backend=cuda_backend,
        )
        assert torch.equal(out[span], alone[0][0])
        assert torch.equal(lse[:, span], alone[1][0])
        assert torch.equal(stats.kept_blocks[sequence], alone[2].kept_blocks[0])


def test_it_runs_on_the_current_stream(cuda_backend: str) -> None:
    """Behind a long wait on a side stream the call has not run, and after it it has."""
    q, k, v = cuda(*operands())
    expected = bsfa.flash_attn_func(q, k, v, causal=True, backend=cuda_backend)
    late = torch.empty_like(q)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(q)  # an input that is only there if the stream's order is kept
        out = bsfa.flash_attn_func(late, k, v, causal=True, backend=cuda_backend)
        assert not stream.query()
    stream.synchronize()
    assert torch.equal(out, expected)


def test_nothing_waits_and_the_allocator_may_reuse(
    cuda_backend: str,
    no_waiting: object,
) -> None:
    q, k, v = cuda(*operands(seqlen=2000))
    table = torch.zeros(4, 16, device="cuda")
    expected = bsfa.flash_attn_func(
        q, k, v, causal=True, thresholds=table, backend=cuda_backend
    ).clone()
    with no_waiting:
        results = []
        for _ in range(20):
            out, stats = bsfa.flash_attn_func(
                q,
                k,
                v,
                causal=True,
                thresholds=table,
                return_stats=True,
                backend=cuda_backend,
            )
            # Workspaces freed meanwhile are given out again and written to.
            torch.empty(4096, dtype=torch.uint8, device="cuda").fill_(255)
            results.append(out)
        density = stats.density
    for out in results:
        assert torch.equal(out, expected)
    assert density.shape == (2, 4)


def test_cuda_graph(cuda_backend: str) -> None:
    q, k, v = cuda(*operands())
    table = torch.zeros(4, 5, device="cuda")

    def call() -> tuple[torch.Tensor, object]:
        return bsfa.flash_attn_func(
            q, k, v, causal=True, thresholds=table, return_stats=True, backend=cuda_backend
        )

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, stats = call()
    for seed in (1, 2):
        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in (q, k, v):
            tensor.normal_(generator=generator)
        table.fill_(float(seed) - 1)
        graph.replay()
        expected, expected_stats = call()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
        assert torch.equal(stats.kept_blocks, expected_stats.kept_blocks)


def test_opcheck(cuda_backend: str) -> None:
    q, k, v = cuda(*operands(seqlen=150))
    table = torch.zeros(4, 2, device="cuda")
    torch.library.opcheck(
        torch.ops.bsfa.attention.default,
        (q, k, v),
        padded(thresholds=table, backend=cuda_backend, return_lse=True, return_stats=True),
    )
    starts = torch.tensor([0, 100, 150], dtype=torch.int32, device="cuda")
    torch.library.opcheck(
        torch.ops.bsfa.attention_varlen.default,
        tuple(t[0] for t in (q, k, v)),
        packed(
            starts, 100, thresholds=table, backend=cuda_backend, return_lse=True, return_stats=True
        ),
    )


def test_compile(cuda_backend: str) -> None:
    def double(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, stats = bsfa.flash_attn_func(
            q * 2, k, v, causal=True, return_stats=True, backend=cuda_backend
        )
        return out * 2 + stats.density.sum()

    torch._dynamo.reset()
    compiled = torch.compile(double, fullgraph=True)
    for seqlen in (256, 600):
        q, k, v = cuda(*operands(seqlen=seqlen))
        torch.testing.assert_close(compiled(q, k, v), double(q, k, v), atol=2e-2, rtol=2e-2)


def test_compile_with_cuda_graphs(cuda_backend: str) -> None:
    q, k, v = cuda(*operands())
    expected = bsfa.flash_attn_func(q, k, v, causal=True, backend=cuda_backend) + 1
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: bsfa.flash_attn_func(*t, causal=True, backend=cuda_backend) + 1,
        fullgraph=True,
        mode="reduce-overhead",
    )
    for _ in range(3):
        torch.testing.assert_close(compiled(q, k, v).clone(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT RUN: needs two CUDA devices")
def test_the_device_of_the_tensors_counts_not_the_current_one(cuda_backend: str) -> None:
    q, k, v = operands()
    expected = bsfa.flash_attn_func(*cuda(q, k, v), causal=True, backend=cuda_backend)
    with torch.cuda.device(0):
        out = bsfa.flash_attn_func(
            *(t.to("cuda:1") for t in (q, k, v)), causal=True, backend=cuda_backend
        )
    assert out.device == torch.device("cuda:1")
    assert torch.equal(out.cpu(), expected.cpu())


def test_refusals_name_the_argument() -> None:
    q, k, v = operands(seqlen=64)
    with pytest.raises(bsfa.InvalidArgumentError, match="k is on device cpu; q is on cuda:0"):
        bsfa.flash_attn_func(q.cuda(), k, v)
    with pytest.raises(bsfa.UnsupportedError, match="float32"):
        bsfa.flash_attn_func(*(t.float().cuda() for t in (q, k, v)))
    with pytest.raises(bsfa.UnsupportedError, match="block is 64x64"):
        bsfa.flash_attn_func(*cuda(q, k, v), block=(64, 64))
    table = torch.zeros(4, 1)
    with pytest.raises(bsfa.InvalidArgumentError, match="thresholds is on device cpu"):
        bsfa.flash_attn_func(*cuda(q, k, v), causal=True, thresholds=table)
