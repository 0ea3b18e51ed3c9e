"""FlashAttention-2's functions: by position, with every argument, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import bsfa
from reference import gated_attention, middling_thresholds

HEAD = ["dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes"]
TAIL = ["deterministic", "return_attn_probs"]
LENGTHS = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
POSITIONAL = {  # of flash_attn 2.8
    "flash_attn_func": ["q", "k", "v", *HEAD, *TAIL],
    "flash_attn_kvpacked_func": ["q", "kv", *HEAD, *TAIL],
    "flash_attn_qkvpacked_func": ["qkv", *HEAD, *TAIL],
    "flash_attn_varlen_func": ["q", "k", "v", *LENGTHS, *HEAD, *TAIL, "block_table"],
    "flash_attn_varlen_kvpacked_func": ["q", "kv", *LENGTHS, *HEAD, *TAIL],
    "flash_attn_varlen_qkvpacked_func": ["qkv", "cu_seqlens", "max_seqlen", *HEAD, *TAIL],
    "flash_attn_with_kvcache": [
        *("q", "k_cache", "v_cache", "k", "v", "rotary_cos", "rotary_sin", "cache_seqlens"),
        *("cache_batch_idx", "cache_leftpad", "block_table", "softmax_scale", "causal"),
        *("window_size", "softcap", "rotary_interleaved", "alibi_slopes", "num_splits"),
        "return_softmax_lse",
    ],
}
STARTS = torch.tensor([0, 70, 70, 200], dtype=torch.int32)
SCALE = 0.3


def operands(seqlen: int = 200, heads_kv: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(2, seqlen, heads, 16) for heads in (4, heads_kv, heads_kv)]
    q, k, v = (torch.randn(shape) for shape in shapes)
    return q, k, v


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", POSITIONAL)
def test_names_and_order(name: str) -> None:
    parameters = inspect.signature(getattr(bsfa, name)).parameters.values()
    kinds = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert kinds == POSITIONAL[name]
    assert [p.kind for p in parameters][-1] is inspect.Parameter.VAR_KEYWORD


def test_by_position(backend: str) -> None:
    q, k, v = operands()
    out = bsfa.flash_attn_func(q, k, v, 0.0, SCALE, True, (9, 0), 4.0, None, True, backend=backend)
    expected = gated_attention(q, k, v, softmax_scale=SCALE, causal=True, window=10, softcap=4.0)
    close(out, expected[0])


def test_packed_forms_by_position(backend: str) -> None:
    q, k, v = operands(heads_kv=4)
    rest: tuple[Any, ...] = (0.0, SCALE, True, (9, 0), 4.0)
    plain = bsfa.flash_attn_func(q, k, v, *rest, backend=backend)
    qkv, kv = torch.stack([q, k, v], dim=2), torch.stack([k, v], dim=2)
    assert torch.equal(bsfa.flash_attn_qkvpacked_func(qkv, *rest, backend=backend), plain)
    assert torch.equal(bsfa.flash_attn_kvpacked_func(q, kv, *rest, backend=backend), plain)


def test_varlen_forms_by_position(backend: str) -> None:
    q, k, v = (t[0] for t in operands(heads_kv=4))
    rest: tuple[Any, ...] = (0.0, SCALE, True, (9, 0), 4.0, None, False, True)
    lengths = (STARTS, STARTS, 130, 130)
    out, lse, probabilities = bsfa.flash_attn_varlen_func(
        q, k, v, *lengths, *rest, None, backend=backend
    )
    assert probabilities is None
    for span in (slice(0, 70), slice(70, 200)):
        expected = gated_attention(
            *(t[None, span] for t in (q, k, v)),
            softmax_scale=SCALE,
            causal=True,
            window=10,
            softcap=4.0,
        )
        close(out[span], expected[0][0])
        close(lse[:, span], expected[1][0])
    qkv, kv = torch.stack([q, k, v], dim=1), torch.stack([k, v], dim=1)
    for other in (
        bsfa.flash_attn_varlen_qkvpacked_func(qkv, STARTS, 130, *rest, backend=backend),
        bsfa.flash_attn_varlen_kvpacked_func(q, kv, *lengths, *rest, backend=backend),
    ):
        assert torch.equal(other[0], out)
        assert torch.equal(other[1], lse)
        assert other[2] is None


def test_what_is_returned(backend: str) -> None:
    q, k, v = operands()
    out = bsfa.flash_attn_func(q, k, v, backend=backend)
    assert isinstance(out, Tensor)
    lse = gated_attention(q, k, v)[1]
    found = bsfa.flash_attn_func(q, k, v, return_attn_probs=True, backend=backend)
    assert len(found) == 3
    assert torch.equal(found[0], out)
    close(found[1], lse)
    assert found[2] is None
    found = bsfa.flash_attn_func(q, k, v, return_lse=True, return_stats=True, backend=backend)
    assert len(found) == 3
    close(found[1], lse)
    assert isinstance(found[2], bsfa.BlockStats)
    found = bsfa.flash_attn_func(
        q, k, v, return_attn_probs=True, return_lse=True, return_stats=True, backend=backend
    )
    assert [type(part) for part in found] == [Tensor, Tensor, type(None), bsfa.BlockStats]


def test_lengths_as_tensors_of_one_entry(backend: str) -> None:
    q, k, v = (t[0] for t in operands())
    longest = STARTS.diff().max()
    out = bsfa.flash_attn_varlen_func(q, k, v, STARTS, STARTS, longest, longest, backend=backend)
    assert torch.equal(
        out, bsfa.flash_attn_varlen_func(q, k, v, STARTS, STARTS, 130, 130, backend=backend)
    )


@pytest.mark.parametrize("causal", [False, True])
def test_softcap(backend: str, causal: bool) -> None:
    q, k, v = operands()
    out, lse = bsfa.flash_attn_func(
        q, k, v, causal=causal, softcap=0.7, return_lse=True, backend=backend
    )
    expected = gated_attention(q, k, v, causal=causal, softcap=0.7)
    close(out, expected[0])
    close(lse, expected[1])


def test_softcap_is_gated_on_the_capped_score(backend: str) -> None:
    q, k, v = operands(seqlen=400)
    table = middling_thresholds(gated_attention(q, k, v, causal=True, softcap=0.7)[4])
    out, stats = bsfa.flash_attn_func(
        q,
        k,
        v,
        causal=True,
        softcap=0.7,
        thresholds=table,
        return_stats=True,
        backend=backend,
    )
    expected = gated_attention(q, k, v, causal=True, softcap=0.7, thresholds=table)
    close(out, expected[0])
    assert torch.equal(stats.kept_blocks, expected[2])


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(20, 20), (13, 13), (16, 20), (20, 24)])
def test_head_dims_between_multiples_of_eight(backend: str, head_dim: int, head_dim_v: int) -> None:
    q, k = torch.randn(2, 90, 4, head_dim), torch.randn(2, 90, 2, head_dim)
    v = torch.randn(2, 90, 2, head_dim_v)
    out = bsfa.flash_attn_func(q, k, v, causal=True, backend=backend)
    assert out.shape[-1] == head_dim_v
    close(out, gated_attention(q, k, v, causal=True)[0])


@pytest.mark.parametrize(
    ("seqlen_q", "causal", "window_size", "served"),
    [
        (60, False, (59, 59), (False, None)),  # reach over everything
        (60, False, (80, 200), (False, None)),
        (60, False, (80, 0), (True, None)),
        (60, True, (80, 5), (True, None)),
        (1, False, (7, 3), (True, 8)),  # nothing on the right of the last position
        (1, False, (7, -1), (True, 8)),
        (1, False, (-1, 4), (False, None)),
        (60, False, (58, 59), None),
        (60, False, (59, 58), None),
        (2, False, (7, -1), None),
    ],
)
def test_windows_that_come_down_to_what_is_served(
    backend: str,
    seqlen_q: int,
    causal: bool,
    window_size: tuple[int, int],
    served: tuple[bool, int | None] | None,
) -> None:
    q, k, v = operands(seqlen=60)
    q = q[:, :seqlen_q]
    if served is None:
        with pytest.raises(bsfa.UnsupportedError, match="window_size is"):
            bsfa.flash_attn_func(q, k, v, causal=causal, window_size=window_size, backend=backend)
        return
    out = bsfa.flash_attn_func(q, k, v, causal=causal, window_size=window_size, backend=backend)
    expected = gated_attention(q, k, v, causal=served[0], window=served[1])[0]
    close(out, expected)


def test_a_window_is_not_widened_where_rows_are_placed(backend: str) -> None:
    q, k, v = operands(seqlen=60)
    with pytest.raises(bsfa.UnsupportedError, match="window_size is"):
        bsfa.flash_attn_func(q, k, v, window_size=(59, 59), q_offset=128, backend=backend)


def parts(
    q: Tensor, k: Tensor, v: Tensor, used_q: Tensor, first_k: Tensor, used_k: Tensor, **other: Any
) -> list[tuple[Tensor, ...]]:
    """The reference on what counts of each sequence of a padded batch."""
    found = []
    for b in range(q.shape[0]):
        rows = slice(0, int(used_q[b]))
        keys = slice(int(first_k[b]), int(first_k[b] + used_k[b]))
        call = dict(other)
        if "thresholds" in call and call["thresholds"].dim() == 3:
            call["thresholds"] = call["thresholds"][b]
        found.append(
            gated_attention(q[b : b + 1, rows], k[b : b + 1, keys], v[b : b + 1, keys], **call)
        )
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", ["q", "k", "qk", "left", "q left", "k left", "qk left"])
def test_what_counts_of_each_sequence(backend: str, causal: bool, packed: bool, given: str) -> None:
    q, k, v = operands(seqlen=300)
    q = q[:, :230]
    used_q = int32(150, 101) if "q" in given else int32(230, 230)
    first_k = int32(3, 50) if "left" in given else int32(0, 0)
    used_k = int32(280, 235) if "k" in given.split()[0] else 300 - first_k
    # What does not count holds what would be seen.
    for b in range(2):
        for t in (k, v):
            t[b, : int(first_k[b])] = torch.nan
            t[b, int(first_k[b] + used_k[b]) :] = torch.nan
        q[b, int(used_q[b]) :] = torch.nan
    own: dict[str, Any] = {"return_lse": True, "return_stats": True, "backend": backend}
    if "q" in given:
        own["seqused_q"] = used_q
    if "k" in given.split()[0]:
        own["seqused_k"] = used_k
    if "left" in given:
        own["leftpad_k"] = first_k
    thresholds = torch.randn(2, 4, 3) / 4 + 4.2
    own["thresholds"] = thresholds
    if packed:
        flat = [t.flatten(0, 1) for t in (q, k, v)]
        lengths = (int32(0, 230, 460), int32(0, 300, 600), 230, 300)
        out, lse, stats = bsfa.flash_attn_varlen_func(*flat, *lengths, causal=causal, **own)
        out = out.unflatten(0, (2, 230))
        lse = lse.unflatten(1, (2, 230)).transpose(0, 1)
    else:
        out, lse, stats = bsfa.flash_attn_func(q, k, v, causal=causal, **own)
    # Thresholds count from the first query block, wherever the rows stand.
    expected = parts(q, k, v, used_q, first_k, used_k, causal=causal, thresholds=thresholds)
    for b in range(2):
        rows = int(used_q[b])
        see = out[b, :rows], lse[b, :, :rows]
        close(see[0], expected[b][0][0])
        close(see[1], expected[b][1][0])
        assert torch.equal(stats.kept_blocks[b], expected[b][2][0])
        assert torch.equal(stats.visible_blocks[b], expected[b][3][0])
        assert (out[b, rows:] == 0).all()
        assert (lse[b, :, rows:] == -torch.inf).all()
    assert stats.density.min() < 1


def test_bounds_may_be_those_of_what_counts(backend: str) -> None:
    q, k, v = (t[0] for t in operands())
    used = int32(20, 0, 30)
    out = bsfa.flash_attn_varlen_func(
        q, k, v, STARTS, STARTS, 30, 30, seqused_q=used, seqused_k=used, backend=backend
    )
    close(out[70:100], gated_attention(*(t[None, 70:100] for t in (q, k, v)))[0][0])
    assert (out[100:] == 0).all()


def test_each_sequence_has_an_offset(backend: str) -> None:
    q, k, v = operands(seqlen=260)
    q = q[:, :100]
    offsets = int32(0, 128)
    out = bsfa.flash_attn_func(q, k, v, causal=True, q_offsets=offsets, backend=backend)
    used = bsfa.flash_attn_func(
        q, k, v, causal=True, q_offsets=offsets, seqused_q=int32(100, 60), backend=backend
    )
    for b in range(2):
        expected = gated_attention(
            *(t[b : b + 1] for t in (q, k, v)), causal=True, q_offset=int(offsets[b])
        )[0]
        close(out[b], expected[0])
        close(used[b, :60], expected[0, :60])


def test_compiled_with_parts(backend: str) -> None:
    q, k, v = operands()
    used = int32(150, 90)

    def call(q: Tensor, k: Tensor, v: Tensor, used: Tensor) -> Tensor:
        return 2 * bsfa.flash_attn_func(
            q, k, v, 0.0, None, True, seqused_q=used, seqused_k=used, backend=backend
        )

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, used), call(q, k, v, used))


REFUSED = [
    ("dropout_p", 0.1),
    ("dropout_p", float("nan")),
    ("alibi_slopes", torch.ones(4)),
    ("window_size", (4, 4)),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(name: str, value: object) -> None:
    q, k, v = operands(heads_kv=4)
    flat = [t[0] for t in (q, k, v)]
    lengths = (STARTS, STARTS, 130, 130)
    calls = [
        lambda **a: bsfa.flash_attn_func(q, k, v, **a),
        lambda **a: bsfa.flash_attn_qkvpacked_func(torch.stack([q, k, v], dim=2), **a),
        lambda **a: bsfa.flash_attn_kvpacked_func(q, torch.stack([k, v], dim=2), **a),
        lambda **a: bsfa.flash_attn_varlen_func(*flat, *lengths, **a),
        lambda **a: bsfa.flash_attn_varlen_qkvpacked_func(
            torch.stack(flat, dim=1), STARTS, 130, **a
        ),
        lambda **a: bsfa.flash_attn_varlen_kvpacked_func(
            flat[0], torch.stack(flat[1:], dim=1), *lengths, **a
        ),
    ]
    for call in calls:
        with pytest.raises(bsfa.UnsupportedError, match=f"{name} (is|was)"):
            call(**{name: value})


def test_pages_are_refused_by_name() -> None:
    q, k, v = (t[0] for t in operands())
    with pytest.raises(bsfa.UnsupportedError, match="block_table was given"):
        bsfa.flash_attn_varlen_func(
            q, k, v, STARTS, STARTS, 130, 130, block_table=torch.zeros(3, 1, dtype=torch.int32)
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seqused": int32(1, 1)}, TypeError, "unexpected keyword argument 'seqused'"),
        ({"block_table": None}, TypeError, "unexpected keyword argument 'block_table'"),
        ({"softcap": -1.0}, bsfa.InvalidArgumentError, "softcap is -1"),
        ({"softcap": None}, TypeError, "softcap is of type NoneType"),
        ({"window_size": (1, 2, 3)}, bsfa.InvalidArgumentError, "window_size is"),
        ({"window_size": (-2, 0)}, bsfa.InvalidArgumentError, "window_size is"),
        ({"seqused_q": int32(1)}, bsfa.InvalidArgumentError, "seqused_q has 1 entries.* 2 seq"),
        ({"seqused_q": int32(1, 201)}, bsfa.InvalidArgumentError, r"seqused_q: sequence 1.* 200"),
        ({"seqused_q": int32(-1, 1)}, bsfa.InvalidArgumentError, "seqused_q: sequence 0"),
        ({"seqused_k": int32(1, 201)}, bsfa.InvalidArgumentError, "seqused_k .*sequence 1"),
        ({"seqused_k": [1, 1]}, TypeError, "seqused_k is of type list"),
        ({"seqused_k": torch.ones(2)}, bsfa.InvalidArgumentError, "seqused_k is torch.float32"),
        ({"leftpad_k": int32(0, 201)}, bsfa.InvalidArgumentError, "leftpad_k .*sequence 1"),
        (
            {"leftpad_k": int32(9, 9), "seqused_k": int32(9, 200), "seqused_q": int32(1, 1)},
            bsfa.InvalidArgumentError,
            r"leftpad_k and seqused_k: sequence 1 would have the keys \[9, 209\)",
        ),
        (
            {"q_offset": 1, "seqused_q": int32(1, 1)},
            bsfa.InvalidArgumentError,
            "q_offset was given with seqused_q",
        ),
    ],
)
def test_bad_arguments(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        bsfa.flash_attn_func(*operands(), **arguments)


def test_bad_packed_operands() -> None:
    q, k, v = operands(heads_kv=4)
    qkv = torch.stack([q, k, v], dim=2)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"qkv has shape .*\[batch, seqlen, 3"):
        bsfa.flash_attn_qkvpacked_func(qkv[:, :, :2])
    with pytest.raises(bsfa.InvalidArgumentError, match=r"kv has shape .*\[batch, seqlen_k, 2"):
        bsfa.flash_attn_kvpacked_func(q, qkv)
    with pytest.raises(bsfa.UnsupportedError, match="qkv requires grad"):
        bsfa.flash_attn_qkvpacked_func(qkv.requires_grad_(True))
    with pytest.raises(TypeError, match="cu_seqlens_k is None"):
        bsfa.flash_attn_varlen_func(q[0], k[0], v[0], STARTS, None, 130, 130)
    with pytest.raises(TypeError, match="max_seqlen_q is of type float"):
        bsfa.flash_attn_varlen_func(q[0], k[0], v[0], STARTS, STARTS, 130.0, 130)
    with pytest.raises(TypeError, match="unexpected keyword argument 'q_offset'"):
        bsfa.flash_attn_varlen_func(q[0], k[0], v[0], STARTS, STARTS, 130, 130, q_offset=3)
    with pytest.raises(bsfa.InvalidArgumentError, match="have 4 and 3 entries"):
        bsfa.flash_attn_varlen_func(
            q[0], k[0], v[0], STARTS, STARTS[:3], 130, 130, seqused_k=int32(1, 1, 1)
        )
