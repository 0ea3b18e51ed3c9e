"""`flash_attn_with_kvcache`: what is written, what is read, and what is refused unwritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bsfa
from reference import gated_attention

ROWS, HEADS, HEADS_KV, DIM = 150, 4, 2, 16


def caches(batch: int = 3, rows: int = ROWS, dim: int = DIM) -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, batch, rows, HEADS_KV, dim)
    return k, v


def new(batch: int = 3, tokens: int = 5, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, tokens, HEADS, dim)
    k, v = torch.randn(2, batch, tokens, HEADS_KV, dim)
    return q, k, v


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


def check(out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> None:
    """One sequence against the reference: q [seqlen_q, heads, dim], k and v the rows in use."""
    expected = gated_attention(q[None], k[None], v[None], **call)
    close(out, expected[0][0])
    if lse is not None:
        close(lse, expected[1][0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_read_only_and_by_position(backend: str, causal: bool, tokens: int) -> None:
    k_cache, v_cache = caches()
    before = k_cache.clone(), v_cache.clone()
    q = new(tokens=tokens)[0]
    lengths = int32(150, 7, 64)
    rest: tuple[Any, ...] = (None, None, None, None, lengths, None, None, None, 0.3, causal)
    out, lse = bsfa.flash_attn_with_kvcache(
        q, k_cache, v_cache, *rest, (-1, -1), 4.0, True, None, 3, True, backend=backend
    )
    for b, length in enumerate(lengths.tolist()):
        keys = k_cache[b, :length], v_cache[b, :length]
        check(out[b], lse[b], q[b], *keys, causal=causal, softmax_scale=0.3, softcap=4.0)
    assert torch.equal(k_cache, before[0])
    assert torch.equal(v_cache, before[1])


@pytest.mark.parametrize("causal", [False, True])
def test_without_lengths_all_of_the_cache_is_read(backend: str, causal: bool) -> None:
    k_cache, v_cache = caches()
    q = new()[0]
    out = bsfa.flash_attn_with_kvcache(q, k_cache, v_cache, causal=causal, backend=backend)
    assert torch.equal(
        out, bsfa.flash_attn_func(q, k_cache, v_cache, causal=causal, backend=backend)
    )


@pytest.mark.parametrize("how", ["int", "vector"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("index", [None, (4, 0, 3)])
@pytest.mark.parametrize("dim", [16, 20])
def test_new_tokens_are_written_and_seen(
    backend: str, how: str, left: bool, index: tuple[int, ...] | None, dim: int
) -> None:
    k_cache, v_cache = caches(5, dim=dim)
    q, k, v = new(dim=dim)
    lengths = [100, 100, 100] if how == "int" else [145, 9, 80]
    first = [7, 0, 60] if left else [0, 0, 0]
    expected_k, expected_v = k_cache.clone(), v_cache.clone()
    sequences = index or (0, 1, 2)
    for b, sequence in enumerate(sequences):
        rows = slice(lengths[b], lengths[b] + 5)
        expected_k[sequence, rows], expected_v[sequence, rows] = k[b], v[b]
    out, lse = bsfa.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cache_seqlens=lengths[0] if how == "int" else int32(*lengths),
        cache_batch_idx=None if index is None else int32(*index),
        cache_leftpad=int32(*first) if left else None,
        causal=True,
        return_softmax_lse=True,
        backend=backend,
    )
    assert torch.equal(k_cache, expected_k)
    assert torch.equal(v_cache, expected_v)
    for b, sequence in enumerate(sequences):
        rows = slice(first[b], lengths[b] + 5)
        keys = expected_k[sequence, rows], expected_v[sequence, rows]
        check(out[b], lse[b], q[b], *keys, causal=True)


def test_decoding_step_by_step_is_the_prefill(backend: str) -> None:
    q, k, v = new(2, 40)
    whole = bsfa.flash_attn_func(q, k, v, causal=True, backend=backend)
    k_cache, v_cache = (torch.full_like(t, torch.nan) for t in (k, v))
    lengths = int32(0, 0)
    for start, end in ((0, 33), (33, 34), (34, 40)):
        step = slice(start, end)
        out = bsfa.flash_attn_with_kvcache(
            *(q[:, step], k_cache, v_cache, k[:, step], v[:, step]),
            cache_seqlens=lengths,
            causal=True,
            backend=backend,
        )
        close(out, whole[:, step])
        lengths += end - start
    assert torch.equal(k_cache, k)


def test_a_window_of_a_single_query(backend: str) -> None:
    k_cache, v_cache = caches()
    q = new(tokens=1)[0]
    lengths = int32(150, 7, 64)
    for window_size in ((9, 0), (9, -1), (9, 9)):
        out = bsfa.flash_attn_with_kvcache(
            q, k_cache, v_cache, cache_seqlens=lengths, window_size=window_size, backend=backend
        )
        for b, length in enumerate(lengths.tolist()):
            keys = slice(max(0, length - 10), length)
            check(out[b], None, q[b], k_cache[b, keys], v_cache[b, keys])


def test_thresholds_and_stats(backend: str) -> None:
    k_cache, v_cache = caches(rows=400)
    q = new(tokens=200)[0]
    table = torch.full((HEADS, 4), 4.0)
    lengths = int32(400, 328, 200)
    out, lse, stats = bsfa.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        cache_seqlens=lengths,
        causal=True,
        thresholds=table,
        return_lse=True,
        return_stats=True,
        backend=backend,
    )
    for b, length in enumerate(lengths.tolist()):
        keys = k_cache[b, :length], v_cache[b, :length]
        check(out[b], lse[b], q[b], *keys, causal=True, thresholds=table)
        expected = gated_attention(
            q[b : b + 1], *(t[None] for t in keys), causal=True, thresholds=table
        )
        assert torch.equal(stats.kept_blocks[b], expected[2][0])
    assert stats.density.min() < 1


def test_a_strided_cache_is_written_in_place(backend: str) -> None:
    whole = torch.randn(3, 2, HEADS_KV, ROWS, DIM)  # both caches in one tensor, heads first
    k_cache, v_cache = (whole[:, n].transpose(1, 2) for n in range(2))
    q, k, v = new()
    out = bsfa.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=int32(9, 20, 0), causal=True, backend=backend
    )
    assert torch.equal(whole[1, 0, :, 20:25], k[1].transpose(0, 1))
    check(out[2], None, q[2], k[2], v[2], causal=True)


def test_compiled(backend: str) -> None:
    q, k, v = new()
    k_cache, v_cache = caches()
    lengths = int32(9, 20, 0)

    def step(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bsfa.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True, backend=backend
        )

    others = k_cache.clone(), v_cache.clone()
    expected = step(q, *others, k, v)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k_cache, v_cache, k, v), expected)
    assert torch.equal(k_cache, others[0])
    assert torch.equal(v_cache, others[1])


REFUSED = [
    ("rotary_cos", torch.ones(1, 8)),
    ("rotary_sin", torch.ones(1, 8)),
    ("block_table", int32(1)),
    ("alibi_slopes", torch.ones(4)),
    ("window_size", (3, 3)),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(name: str, value: Any) -> None:
    check_refused({name: value}, bsfa.UnsupportedError, f"{name} (is|was)")


def check_refused(arguments: dict, error: type[Exception], message: str) -> None:
    """The call fails, and the cache is as it was."""
    k_cache, v_cache = caches()
    before = k_cache.clone(), v_cache.clone()
    q, k, v = new()
    call = {"k": k, "v": v, "cache_seqlens": int32(9, 20, 0), **arguments}
    operands = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    operands = {name: call.pop(name, operand) for name, operand in operands.items()}
    with pytest.raises(error, match=message):
        bsfa.flash_attn_with_kvcache(**operands, **call)
    assert torch.equal(k_cache, before[0])
    assert torch.equal(v_cache, before[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_seqlens": None}, "cache_seqlens is missing"),
        ({"cache_seqlens": 146}, "k has 5 tokens for sequence 0, whose cache_seqlens is 146"),
        ({"cache_seqlens": int32(9, 146, 0)}, "k has 5 tokens for sequence 1"),
        ({"cache_seqlens": int32(9, 151, 0)}, "cache_seqlens is 151 for sequence 1"),
        ({"cache_seqlens": -1}, "cache_seqlens is -1"),
        ({"cache_seqlens": int32(9, 20)}, "cache_seqlens has 2 entries"),
        ({"cache_leftpad": int32(9, 21, 0)}, "cache_seqlens is 20 with cache_leftpad 21"),
        ({"cache_leftpad": int32(-1, 0, 0)}, "cache_leftpad -1 for sequence 0"),
        ({"cache_batch_idx": int32(0, 1, 3)}, "cache_batch_idx has 3; k_cache has 3"),
        ({"cache_batch_idx": int32(0, -1, 2)}, "cache_batch_idx has -1"),
        ({"v": None}, "v is missing"),
        ({"k": None}, "k is missing"),
        ({"k": torch.randn(3, 5, 2, 8)}, "k is torch.float32.*8.; k_cache"),
        ({"k": torch.randn(3, 5, 2, 16).half()}, "k is torch.float16"),
        ({"k": torch.randn(2, 5, 2, 16)}, "k has 2 sequences; the call has 3"),
        ({"v": torch.randn(3, 4, 2, 16)}, "v has shape .*; k has"),
        ({"q": torch.randn(4, 5, 4, 16)}, "cache_seqlens has 3 entries; the call has 4"),
        (
            {"q": torch.randn(4, 5, 4, 16), "cache_seqlens": 3},
            "k_cache has 3 sequences; the call has 4",
        ),
        ({"q": torch.randn(3, 5, 3, 16)}, "q has 3 heads"),
        ({"q": torch.randn(3, 5, 4, 24)}, "k has head_dim 16; q has 24"),
        ({"v_cache": torch.randn(3, 100, 2, 16)}, "v_cache has shape"),
        ({"k_cache": torch.randn(150, 2, 16)}, "k_cache has shape"),
        ({"softcap": -2.0}, "softcap is -2"),
        ({"block": (100, 64)}, "block"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(arguments: dict, message: str) -> None:
    check_refused(arguments, bsfa.InvalidArgumentError, message)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cache_seqlens": 2.0}, TypeError, "cache_seqlens is of type float"),
        ({"seqused_k": int32(1, 1, 1)}, TypeError, "unexpected keyword argument 'seqused_k'"),
        ({"backend": "nothing"}, bsfa.Error, "nothing"),
        (
            {"q": torch.randn(3, 5, 4, 16, requires_grad=True)},
            bsfa.UnsupportedError,
            "q requires grad",
        ),
        (
            {"k": torch.randn(3, 5, 2, 16, requires_grad=True)},
            bsfa.UnsupportedError,
            "k requires grad",
        ),
    ],
)
def test_other_refusals(arguments: dict, error: type[Exception], message: str) -> None:
    check_refused(arguments, error, message)
