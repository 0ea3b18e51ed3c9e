"""The torch functions: values, torch.library, torch.compile, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bsfa
from operator_arguments import packed, padded
from reference import gated_attention, middling_thresholds

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def operands(
    dtype: torch.dtype = torch.float32, seqlen: int = 200
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (2, seqlen)
    return (
        torch.randn(*shape, 4, 16).to(dtype),
        torch.randn(*shape, 2, 16).to(dtype),
        torch.randn(*shape, 2, 16).to(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_attention(backend: str, dtype: torch.dtype, causal: bool) -> None:
    q, k, v = operands(dtype)
    out = bsfa.flash_attn_func(q, k, v, causal=causal, softmax_scale=0.3, backend=backend)
    expected = gated_attention(q, k, v, causal=causal, softmax_scale=0.3)[0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)


def test_thresholds_lse_and_stats(backend: str) -> None:
    q, k, v = operands(seqlen=400)
    thresholds = middling_thresholds(gated_attention(q, k, v, causal=True)[4])
    out, lse, stats = bsfa.flash_attn_func(
        q,
        k,
        v,
        causal=True,
        thresholds=thresholds,
        return_lse=True,
        return_stats=True,
        backend=backend,
    )
    expected = gated_attention(q, k, v, causal=True, thresholds=thresholds)
    torch.testing.assert_close(out.double(), expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(lse.double(), expected[1], atol=1e-5, rtol=0)
    assert torch.equal(stats.kept_blocks, expected[2])
    assert torch.equal(stats.visible_blocks, expected[3])
    torch.testing.assert_close(stats.density, expected[2] / expected[3])
    assert stats.density.max() < 1


def test_thresholds_of_each_sequence(backend: str) -> None:
    q, k, v = operands(seqlen=400)
    table = middling_thresholds(gated_attention(q, k, v, causal=True)[4])
    both = torch.stack([table, torch.full_like(table, -torch.inf)])
    out = bsfa.flash_attn_func(q, k, v, causal=True, thresholds=both, backend=backend)
    gated = gated_attention(q, k, v, causal=True, thresholds=table)[0]
    dense = gated_attention(q, k, v, causal=True)[0]
    torch.testing.assert_close(out[0].double(), gated[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1].double(), dense[1], atol=1e-5, rtol=0)


def test_baseline(backend: str) -> None:
    q, k, v = operands(seqlen=500)
    out, stats = bsfa.flash_attn_func(
        q, k, v, causal=True, sliding_window_blocks=1, return_stats=True, backend=backend
    )
    expected = gated_attention(q, k, v, causal=True, window_blocks=1)
    torch.testing.assert_close(out.double(), expected[0], atol=1e-5, rtol=0)
    assert torch.equal(stats.kept_blocks, expected[2])


def uneven_operands(seqlen: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Operands whose blocks of keys differ in importance to all rows."""
    q, k, v = operands(seqlen=seqlen)
    q[..., 0] = q.shape[-1] ** 0.5
    generator = torch.Generator().manual_seed(9)
    lowered = -12 * torch.rand(-(-seqlen // 64), generator=generator)
    k[..., 0] = lowered.repeat_interleave(64)[:seqlen, None]
    return q, k, v


@pytest.mark.parametrize(
    "policy",
    [
        {"mass": 0.1},
        {"mass": 0.001},
        {"skip_softmax": 0.05},
        {"skip_softmax": 0.05, "skip_order": "outwards"},
    ],
)
def test_policies_that_look_at_rows(backend: str, policy: dict[str, Any]) -> None:
    q, k, v = uneven_operands(900)
    out, lse, stats = bsfa.flash_attn_func(
        q, k, v, causal=True, return_lse=True, return_stats=True, backend=backend, **policy
    )
    expected = gated_attention(q, k, v, causal=True, **policy)
    assert torch.equal(stats.kept_blocks, expected[2])
    assert torch.equal(stats.visible_blocks, expected[3])
    assert (stats.density < 0.95).all()
    torch.testing.assert_close(out.double(), expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(lse.double(), expected[1], atol=1e-5, rtol=0)


def test_policies_that_look_at_rows_of_packed_sequences(backend: str) -> None:
    q, k, v = (t[0] for t in uneven_operands(900))
    starts = torch.tensor([0, 384, 900], dtype=torch.int32)
    for policy in ({"mass": 0.1}, {"skip_softmax": 0.05, "skip_order": "outwards"}):
        out, stats = bsfa.flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=starts,
            cu_seqlens_k=starts,
            max_seqlen_q=516,
            max_seqlen_k=516,
            causal=True,
            return_stats=True,
            backend=backend,
            **policy,
        )
        for sequence, span in enumerate((slice(0, 384), slice(384, 900))):
            expected = gated_attention(
                q[None, span], k[None, span], v[None, span], causal=True, **policy
            )
            assert torch.equal(stats.kept_blocks[sequence], expected[2][0])
            torch.testing.assert_close(out[span].double(), expected[0][0], atol=1e-5, rtol=0)


def test_one_policy_a_call() -> None:
    q, k, v = operands()
    table = torch.zeros(q.shape[2], 1)
    with pytest.raises(bsfa.InvalidArgumentError, match="thresholds and mass_c were both given"):
        bsfa.flash_attn_func(q, k, v, thresholds=table, mass=0.1)
    with pytest.raises(bsfa.InvalidArgumentError, match="mass_c and skip_lambda were both given"):
        bsfa.flash_attn_func(q, k, v, mass=0.1, skip_softmax=0.1)


@pytest.mark.parametrize(
    ("causal", "window_size", "window"),
    [(True, (9, 0), 10), (True, (9, -1), 10), (False, (9, 0), 10), (False, (-1, 0), None)],
)
def test_window_size(
    backend: str, causal: bool, window_size: tuple[int, int], window: int | None
) -> None:
    q, k, v = operands()
    out = bsfa.flash_attn_func(q, k, v, causal=causal, window_size=window_size, backend=backend)
    expected = gated_attention(q, k, v, causal=True, window=window)[0]
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)


def test_a_chunk_of_the_prefill_decides_alike(backend: str) -> None:
    q, k, v = operands(seqlen=384)
    table = middling_thresholds(gated_attention(q, k, v, causal=True)[4])
    whole = bsfa.flash_attn_func(q, k, v, causal=True, thresholds=table, backend=backend)
    # 256 rows that end at the last key, by default and by an explicit offset.
    for arguments in ({}, {"q_offset": 128}):
        part = bsfa.flash_attn_func(
            q[:, 128:], k, v, causal=True, thresholds=table, backend=backend, **arguments
        )
        torch.testing.assert_close(part, whole[:, 128:], atol=1e-6, rtol=0)


def test_strided_views(backend: str) -> None:
    q, k, v = operands()
    plain = bsfa.flash_attn_func(q, k, v, causal=True, backend=backend)
    # Transformers' layout [batch, heads, seqlen, head_dim], and one whose last axis is not dense.
    swapped = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(bsfa.flash_attn_func(*swapped, causal=True, backend=backend), plain)
    loose = [torch.stack([t, t], dim=-1)[..., 0] for t in (q, k, v)]
    assert torch.equal(bsfa.flash_attn_func(*loose, causal=True, backend=backend), plain)


def test_varlen(backend: str) -> None:
    q, k, v = (t[0] for t in operands(seqlen=300))
    starts = torch.tensor([0, 130, 130, 300], dtype=torch.int32)
    out, lse, stats = bsfa.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=170,
        max_seqlen_k=170,
        causal=True,
        return_lse=True,
        return_stats=True,
        backend=backend,
    )
    assert stats.kept_blocks[1].tolist() == [0, 0, 0, 0]
    assert stats.density[1].tolist() == [1, 1, 1, 1]
    for sequence in (0, 2):
        span = slice(int(starts[sequence]), int(starts[sequence + 1]))
        expected = gated_attention(q[None, span], k[None, span], v[None, span], causal=True)
        torch.testing.assert_close(out[span].double(), expected[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(lse[:, span].double(), expected[1][0], atol=1e-5, rtol=0)
        assert torch.equal(stats.kept_blocks[sequence], expected[2][0])


def test_empty_batch(backend: str) -> None:
    q = torch.randn(0, 8, 2, 16)
    assert bsfa.flash_attn_func(q, q, q, causal=True, backend=backend).shape == (0, 8, 2, 16)


OP_ARGUMENTS = [
    {},
    {
        "softmax_scale": 0.5,
        "q_offset": 0,
        "window": 20,
        "softcap": 5.0,
        "compute_type": "float32",
        "return_lse": True,
        "return_stats": True,
    },
    {"causal": False, "window_blocks": 2, "block_q": 64, "return_lse": True},
    {
        "seqused_k": torch.tensor([120, 7], dtype=torch.int32),
        "leftpad_k": torch.tensor([0, 30], dtype=torch.int32),
    },
]


@pytest.mark.parametrize("arguments", OP_ARGUMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend: str, arguments: dict, dtype: torch.dtype) -> None:
    q, k, v = operands(dtype, 150)
    torch.library.opcheck(
        torch.ops.bsfa.attention.default,
        (q, k, v),
        padded(backend=backend, **arguments),
    )


def test_opcheck_with_thresholds_and_varlen(backend: str) -> None:
    q, k, v = operands(seqlen=150)
    table = torch.zeros(4, 2)
    for policy in ({"thresholds": table}, {"mass_c": 0.1}):
        torch.library.opcheck(
            torch.ops.bsfa.attention.default,
            (q, k, v),
            padded(backend=backend, return_lse=True, return_stats=True, **policy),
        )
    starts = torch.tensor([0, 100, 150], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.bsfa.attention_varlen.default,
        tuple(t[0] for t in (q, k, v)),
        packed(starts, 100, thresholds=table, backend=backend, return_lse=True, return_stats=True),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(backend: str, dynamic: bool) -> None:
    def double(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, stats = bsfa.flash_attn_func(
            q * 2, k, v, causal=True, return_stats=True, backend=backend
        )
        return out * 2 + stats.density.sum()

    compiled = torch.compile(double, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seqlen in (100, 180):
        q, k, v = operands(seqlen=seqlen)
        torch.testing.assert_close(compiled(q, k, v), double(q, k, v))


@pytest.mark.parametrize(
    "policy", [{"mass": 0.1}, {"skip_softmax": 0.05, "skip_order": "outwards"}]
)
def test_compile_with_a_policy(backend: str, policy: dict[str, Any]) -> None:
    q, k, v = uneven_operands(700)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return bsfa.flash_attn_func(
            q, k, v, causal=True, return_stats=True, backend=backend, **policy
        )

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out, stats = compiled(q, k, v)
    expected, expected_stats = attend(q, k, v)
    assert torch.equal(out, expected)
    assert torch.equal(stats.kept_blocks, expected_stats.kept_blocks)
    assert (stats.density < 0.95).all()


def test_compile_with_the_default_compiler(backend: str) -> None:
    q, k, v = operands(seqlen=100)
    compiled = torch.compile(
        lambda *t: bsfa.flash_attn_func(*t, causal=True, backend=backend) + 1, fullgraph=True
    )
    torch.testing.assert_close(
        compiled(q, k, v), bsfa.flash_attn_func(q, k, v, causal=True, backend=backend) + 1
    )


def test_autograd_is_refused(backend: str) -> None:
    q, k, v = operands(seqlen=40)
    v.requires_grad_(True)
    with pytest.raises(bsfa.UnsupportedError, match=r"v requires grad.*no_grad"):
        bsfa.flash_attn_func(q, k, v, backend=backend)
    with torch.no_grad():
        assert not bsfa.flash_attn_func(q, k, v, backend=backend).requires_grad
    out = torch.ops.bsfa.attention(q, k, v, **padded(backend=backend))[0]
    with pytest.raises(bsfa.UnsupportedError, match="no backward pass"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dropout_p": 0.1}, "dropout_p"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes"),
        ({"window_size": (4, 4)}, "window_size"),
    ],
)
def test_what_is_not_served_is_refused_by_name(arguments: dict, name: str) -> None:
    with pytest.raises(bsfa.UnsupportedError, match=name):
        bsfa.flash_attn_func(*operands(seqlen=40), **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, k, v: (q[0], k, v), bsfa.InvalidArgumentError, "q has shape"),
        (lambda q, k, v: (q.double(), k, v), bsfa.InvalidArgumentError, "q has dtype"),
        (lambda q, k, v: (q, k[..., :8], v), bsfa.InvalidArgumentError, "k has head_dim 8"),
        (lambda q, k, v: (q[:, :, :3], k, v), bsfa.InvalidArgumentError, "q has 3 heads"),
        (lambda q, k, v: (q, k, v[:1]), bsfa.InvalidArgumentError, "v has shape"),
        (lambda q, k, v: (q.to("meta"), k, v), bsfa.InvalidArgumentError, "device meta"),
        (lambda q, k, v: (q.numpy(), k, v), TypeError, "q is of type ndarray"),
    ],
)
def test_bad_operands(change: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        bsfa.flash_attn_func(*change(*operands(seqlen=40)), causal=True, backend="reference")


def test_bad_thresholds() -> None:
    q, k, v = operands(seqlen=40)
    for thresholds, error, message in (
        (0.5, TypeError, "thresholds is of type float"),
        (torch.zeros(4, 1).double(), bsfa.InvalidArgumentError, "thresholds has dtype"),
        (torch.zeros(4), bsfa.InvalidArgumentError, "thresholds has shape"),
        (torch.zeros(2, 1), bsfa.InvalidArgumentError, "2 heads; q has 4"),
    ):
        with pytest.raises(error, match=message):
            bsfa.flash_attn_func(q, k, v, causal=True, thresholds=thresholds, backend="reference")
