"""The cache and the lengths of sequences on a GPU: values, and that nothing waits for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bsfa
from bsfa.compat import flash_attn_interface
from gpu import needs_gpu
from reference import gated_attention

pytestmark = needs_gpu

ROWS, DIM = 300, 64


def bfloat16(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, atol=3e-2, rtol=0)


@pytest.mark.parametrize("tokens", [1, 130])
def test_cache(cuda_backend: str, no_waiting: object, tokens: int) -> None:
    lengths, first, index = (100, 37), (7, 0), (2, 0)
    k_cache, v_cache = bfloat16(3, ROWS, 2, DIM), bfloat16(3, ROWS, 2, DIM)
    q, k, v = (bfloat16(2, tokens, heads, DIM) for heads in (4, 2, 2))
    on_card = [t.cuda() for t in (q, k_cache, v_cache, k, v)]
    vectors = {
        "cache_seqlens": int32(*lengths).cuda(),
        "cache_batch_idx": int32(*index).cuda(),
        "cache_leftpad": int32(*first).cuda(),
    }
    with no_waiting:
        out, lse = bsfa.flash_attn_with_kvcache(
            *on_card, **vectors, causal=True, return_softmax_lse=True, backend=cuda_backend
        )
    for b, sequence in enumerate(index):
        written = slice(lengths[b], lengths[b] + tokens)
        k_cache[sequence, written], v_cache[sequence, written] = k[b], v[b]
        rows = slice(first[b], lengths[b] + tokens)
        keys, values = (cache[None, sequence, rows] for cache in (k_cache, v_cache))
        if tokens > 1:
            expected = gated_attention(q[b : b + 1], keys, values, causal=True)
        else:  # one query sees every key
            expected = gated_attention(q[b : b + 1], keys, values)
        close(out[b], expected[0][0])
        close(lse[b], expected[1][0])
    assert torch.equal(on_card[1].cpu(), k_cache)
    assert torch.equal(on_card[2].cpu(), v_cache)


def test_packed_cache(cuda_backend: str, no_waiting: object) -> None:
    k_cache, v_cache = bfloat16(2, ROWS, 2, DIM), bfloat16(2, ROWS, 2, DIM)
    q, k, v = bfloat16(9, 4, DIM), bfloat16(8, 2, DIM), bfloat16(8, 2, DIM)
    on_card = [t.cuda() for t in (q, k_cache, v_cache, k, v)]
    starts_q, starts_k = int32(0, 5, 9).cuda(), int32(0, 5, 8).cuda()
    lengths = int32(140, 20).cuda()
    with no_waiting:
        out = flash_attn_interface.flash_attn_with_kvcache(
            *on_card,
            cache_seqlens=lengths,
            cu_seqlens_q=starts_q,
            max_seqlen_q=5,
            cu_seqlens_k_new=starts_k,
            causal=True,
            backend=cuda_backend,
        )
    for b, (start, new, rows) in enumerate(
        ((140, slice(0, 5), slice(0, 5)), (20, slice(5, 8), slice(5, 9)))
    ):
        end = start + new.stop - new.start
        k_cache[b, start:end], v_cache[b, start:end] = k[new], v[new]
        expected = gated_attention(
            q[None, rows], k_cache[b : b + 1, :end], v_cache[b : b + 1, :end], causal=True
        )
        close(out[rows], expected[0][0])


@pytest.mark.parametrize("causal", [False, True])
def test_what_counts_of_each_sequence(cuda_backend: str, no_waiting: object, causal: bool) -> None:
    q, k, v = (bfloat16(2, ROWS, heads, DIM) for heads in (4, 2, 2))
    used_q, used_k, first_k = (150, 101), (280, 135), (3, 50)
    for b in range(2):
        q[b, used_q[b] :] = torch.nan
        for t in (k, v):
            t[b, : first_k[b]] = torch.nan
            t[b, first_k[b] + used_k[b] :] = torch.nan
    flat = [t.flatten(0, 1).cuda() for t in (q, k, v)]
    starts = int32(0, ROWS, 2 * ROWS).cuda()
    own = {
        "seqused_q": int32(*used_q).cuda(),
        "seqused_k": int32(*used_k).cuda(),
        "leftpad_k": int32(*first_k).cuda(),
    }
    with no_waiting:
        out, lse, stats = bsfa.flash_attn_varlen_func(
            *flat,
            *(starts, starts, ROWS, ROWS),
            causal=causal,
            return_lse=True,
            return_stats=True,
            backend=cuda_backend,
            **own,
        )
    out, lse = out.unflatten(0, (2, ROWS)), lse.unflatten(1, (2, ROWS)).transpose(0, 1)
    for b in range(2):
        rows, keys = slice(0, used_q[b]), slice(first_k[b], first_k[b] + used_k[b])
        expected = gated_attention(
            q[b : b + 1, rows], *(t[b : b + 1, keys] for t in (k, v)), causal=causal
        )
        close(out[b, rows], expected[0][0])
        close(lse[b, :, rows], expected[1][0])
        assert torch.equal(stats.kept_blocks[b].cpu(), expected[2][0])
        assert (out[b, used_q[b] :] == 0).all()
        assert (lse[b, :, used_q[b] :] == -torch.inf).all()
