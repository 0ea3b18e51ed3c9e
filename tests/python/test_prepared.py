"""Calls that are planned once: the results are those of the whole call, whatever came before."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bsfa
from operator_arguments import padded

torch.manual_seed(0)


def _operands(batch: int, seqlen: int, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, seqlen, 4, dim)
    k, v = torch.randn(2, batch, seqlen + 70, 2, dim)
    return q, k, v


def _by_operator(q: Tensor, k: Tensor, v: Tensor, thresholds: Tensor | None) -> tuple[Tensor, ...]:
    return torch.ops.bsfa.attention(
        q, k, v, **padded(thresholds=thresholds, return_lse=True, return_stats=True)
    )


def _same(results: tuple, expected: tuple[Tensor, ...]) -> None:
    out, lse, stats = results
    for got, wanted in zip((out, lse, *stats), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("gated", [False, True])
def test_function_and_operator_agree_to_the_bit(gated: bool) -> None:
    for seed in range(3):  # the same call on other tensors
        torch.manual_seed(seed)
        q, k, v = _operands(2, 300)
        thresholds = torch.full((4, 3), 0.5) if gated else None
        results = bsfa.flash_attn_func(
            q, k, v, causal=True, thresholds=thresholds, return_lse=True, return_stats=True
        )
        _same(results, _by_operator(q, k, v, thresholds))


def test_more_calls_than_are_kept_and_back() -> None:
    data = [_operands(1, 40 + n) for n in range(40)]
    first = [bsfa.flash_attn_func(*operands, causal=True) for operands in data]
    for operands, out in zip(reversed(data), reversed(first), strict=True):
        assert torch.equal(bsfa.flash_attn_func(*operands, causal=True), out)


def test_what_changes_the_call_is_seen() -> None:
    q, k, v = _operands(1, 200)
    causal = bsfa.flash_attn_func(q, k, v, causal=True)
    assert not torch.equal(bsfa.flash_attn_func(q, k, v), causal)
    assert not torch.equal(bsfa.flash_attn_func(q, k, v, causal=True, softmax_scale=0.7), causal)
    assert not torch.equal(bsfa.flash_attn_func(q, k, v, causal=True, q_offset=0), causal)
    rounded = bsfa.flash_attn_func(q, k, v, causal=True, compute_type="bfloat16")
    assert not torch.equal(rounded, causal)
    bfloat16 = [t.bfloat16() for t in (q, k, v)]
    assert bsfa.flash_attn_func(*bfloat16, causal=True).dtype == torch.bfloat16
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    strided = bsfa.flash_attn_func(*heads_first, causal=True)
    assert torch.equal(strided, causal)
    assert strided.is_contiguous()
    unaligned = torch.empty(q.numel() + 1)[1:].view_as(q).copy_(q)
    assert torch.equal(bsfa.flash_attn_func(unaligned, k, v, causal=True), causal)
    assert torch.equal(bsfa.flash_attn_func(q, k, v, causal=True), causal)


def test_lengths_are_read_each_time() -> None:
    q, k, v = (t.flatten(0, 1) for t in _operands(2, 100))
    lengths = torch.tensor([0, 100, 200], dtype=torch.int32)
    keys = torch.tensor([0, 170, 340], dtype=torch.int32)

    def run() -> Tensor:
        return bsfa.flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=lengths,
            cu_seqlens_k=keys,
            max_seqlen_q=200,
            max_seqlen_k=340,
            causal=True,
        )

    first = run()
    lengths[1] = 60
    assert not torch.equal(run(), first)
    lengths[1] = 300
    with pytest.raises(bsfa.InvalidArgumentError, match="cu_seqlens_q"):
        run()
    lengths[1] = 100
    assert torch.equal(run(), first)


def test_a_number_of_threads_is_part_of_the_call() -> None:
    q, k, v = _operands(1, 300)
    out = [torch.empty_like(q) for _ in range(4)]
    for threads, result in zip((1, 3, 2, 1), out, strict=True):
        bsfa.attention_forward(q, k, v, result, causal=True, num_threads=threads)
    assert all(torch.equal(result, out[0]) for result in out)


def test_several_python_threads_at_a_time() -> None:
    data = [_operands(1, 200) for _ in range(4)]
    expected = [_by_operator(*operands, None)[0] for operands in data]
    got: list[Tensor | None] = [None] * len(data)

    def work(n: int) -> None:
        for _ in range(5):
            got[n] = bsfa.flash_attn_func(*data[n], causal=True)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(got, expected, strict=True):
        assert result is not None
        assert torch.equal(result, wanted)


def test_what_traces_sees_an_operator() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsfa.flash_attn_func(q, k, v, causal=True)

    operands = _operands(1, 64)
    targets = {node.target for node in make_fx(function)(*operands).graph.nodes}
    assert torch.ops.bsfa.attention.default in targets
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in operands]
        assert function(*fakes).shape == operands[0].shape
        assert function(*fakes).is_contiguous()
    many = torch.func.vmap(function)(*(t[None] for t in operands))
    assert torch.equal(many[0], function(*operands))
