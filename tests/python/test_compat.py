"""The stand-ins for `flash_attn` and `flash_attn_interface`, and how they are installed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import bsfa
import bsfa.compat
from bsfa.compat import flash_attn, flash_attn_interface
from bsfa.compat.flash_attn import bert_padding
from bsfa.compat.flash_attn import flash_attn_interface as interface_2
from reference import gated_attention

DESCALE = ["q_descale", "k_descale", "v_descale"]
HINTS = ["num_splits", "pack_gqa", "deterministic", "sm_margin", "return_attn_probs"]
POSITIONAL = {  # of FlashAttention-3
    "flash_attn_func": [
        *("q", "k", "v", "softmax_scale", "causal", "qv", *DESCALE, "window_size"),
        *("attention_chunk", "softcap", *HINTS),
    ],
    "flash_attn_varlen_func": [
        *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"),
        *("seqused_q", "seqused_k", "softmax_scale", "causal", "qv", *DESCALE, "window_size"),
        *("attention_chunk", "softcap", *HINTS),
    ],
    "flash_attn_qkvpacked_func": [
        *("qkv", "softmax_scale", "causal", *DESCALE, "window_size", "attention_chunk", "softcap"),
        *("deterministic", "num_heads_q", "sm_margin", "return_attn_probs"),
    ],
    "flash_attn_with_kvcache": [
        *("q", "k_cache", "v_cache", "k", "v", "qv", "rotary_cos", "rotary_sin", "cache_seqlens"),
        *("cache_batch_idx", "cache_leftpad", "page_table", "cu_seqlens_q", "cu_seqlens_k_new"),
        *("max_seqlen_q", "rotary_seqlens", *DESCALE, "softmax_scale", "causal", "window_size"),
        *("attention_chunk", "softcap", "rotary_interleaved", "scheduler_metadata"),
        *("num_splits", "pack_gqa", "sm_margin", "return_softmax_lse"),
    ],
}


def operands(seqlen: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, seqlen, heads, 16) for heads in (4, 2, 2))
    return q, k, v


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", POSITIONAL)
def test_names_and_order(name: str) -> None:
    parameters = inspect.signature(getattr(flash_attn_interface, name)).parameters.values()
    kinds = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert kinds == POSITIONAL[name]


@pytest.mark.parametrize("module", [flash_attn, interface_2, flash_attn_interface, bert_padding])
def test_all_names_are_there(module: Any) -> None:
    for name in module.__all__:
        assert hasattr(module, name)
        if module in (flash_attn, interface_2) and name != "__version__":
            assert getattr(module, name) is getattr(bsfa, name)


def test_fa3_by_position(backend: str) -> None:
    q, k, v = operands()
    rest: tuple[Any, ...] = (0.3, True, None, None, None, None, (9, 0), 0, 4.0, 7, True, True, 8)
    out, lse = flash_attn_interface.flash_attn_func(q, k, v, *rest, True, backend=backend)
    expected = gated_attention(q, k, v, softmax_scale=0.3, causal=True, window=10, softcap=4.0)
    close(out, expected[0])
    close(lse, expected[1])
    alone = flash_attn_interface.flash_attn_func(q, k, v, *rest, backend=backend)
    assert torch.equal(alone, out)


def test_fa3_queries_keys_and_values_in_one_tensor(backend: str) -> None:
    q, k, v = operands()
    packed = torch.cat([q, k, v], dim=2)
    out, lse = flash_attn_interface.flash_attn_qkvpacked_func(
        packed, None, True, num_heads_q=4, return_attn_probs=True, backend=backend
    )
    expected = gated_attention(q, k, v, causal=True)
    close(out, expected[0])
    close(lse, expected[1])
    out = flash_attn_interface.flash_attn_qkvpacked_func(
        torch.stack([q, q, q], dim=2), 0.3, True, backend=backend
    )
    close(out, gated_attention(q, q, q, causal=True, softmax_scale=0.3)[0])
    for heads in (0, 8, 7):
        with pytest.raises(bsfa.InvalidArgumentError, match=f"num_heads_q is {heads}"):
            flash_attn_interface.flash_attn_qkvpacked_func(packed, num_heads_q=heads)


@pytest.mark.parametrize("packed_q", [False, True])
@pytest.mark.parametrize("packed_k", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_fa3_varlen_by_position(backend: str, packed_q: bool, packed_k: bool, used: bool) -> None:
    q, k, v = operands()
    q = q[:, :70]
    used_q, used_k = (int32(70, 31), int32(90, 120)) if used else (None, None)
    operand_q = q.flatten(0, 1) if packed_q else q
    operand_k, operand_v = (t.flatten(0, 1) if packed_k else t for t in (k, v))
    out, lse = flash_attn_interface.flash_attn_varlen_func(
        operand_q,
        operand_k,
        operand_v,
        int32(0, 70, 140) if packed_q else None,
        int32(0, 120, 240) if packed_k else None,
        70 if packed_q else None,
        120 if packed_k else None,
        used_q,
        used_k,
        0.3,
        True,
        return_attn_probs=True,
        backend=backend,
    )
    if packed_q:
        out = out.unflatten(0, (2, 70))
        lse = lse.unflatten(1, (2, 70)).transpose(0, 1)
    for b in range(2):
        rows = 70 if used_q is None else int(used_q[b])
        keys = 120 if used_k is None else int(used_k[b])
        expected = gated_attention(
            q[b : b + 1, :rows],
            *(t[b : b + 1, :keys] for t in (k, v)),
            causal=True,
            softmax_scale=0.3,
        )
        close(out[b, :rows], expected[0][0])
        close(lse[b, :, :rows], expected[1][0])
        assert (out[b, rows:] == 0).all()
        assert (lse[b, :, rows:] == -torch.inf).all()


@pytest.mark.parametrize("packed_q", [False, True])
@pytest.mark.parametrize("packed_k", [False, True])
@pytest.mark.parametrize("cache", ["plain", "indexed and left-padded", "strided"])
def test_fa3_cache(backend: str, packed_q: bool, packed_k: bool, cache: str) -> None:
    new, start, first = (5, 3), (40, 17), (0, 0)
    index = (0, 1)
    whole_k, whole_v = torch.randn(2, 4, 50, 2, 16)
    if cache == "strided":
        whole_k, whole_v = torch.randn(2, 4, 2, 50, 16).transpose(2, 3)
    arguments: dict[str, Any] = {"cache_seqlens": int32(*start)}
    if cache == "indexed and left-padded":
        index, first = (3, 1), (7, 9)
        arguments |= {"cache_batch_idx": int32(*index), "cache_leftpad": int32(*first)}
    if not packed_k:
        new = (5, 5)
    k, v = torch.randn(2, sum(new), 2, 16)
    queries = (5, 2) if packed_q else (4, 4)
    q = torch.randn(sum(queries), 4, 16)
    expected_k, expected_v = whole_k.clone(), whole_v.clone()
    for b, (part_k, part_v) in enumerate(zip(k.split(new), v.split(new), strict=True)):
        rows = slice(start[b], start[b] + new[b])
        expected_k[index[b], rows], expected_v[index[b], rows] = part_k, part_v
    if packed_q:
        arguments |= {"cu_seqlens_q": int32(0, 5, 7), "max_seqlen_q": 5}
    if packed_k:
        arguments |= {"cu_seqlens_k_new": int32(0, 5, 8)}
    out, lse = flash_attn_interface.flash_attn_with_kvcache(
        q if packed_q else q.unflatten(0, (2, 4)),
        whole_k,
        whole_v,
        k if packed_k else k.unflatten(0, (2, 5)),
        v if packed_k else v.unflatten(0, (2, 5)),
        **arguments,
        causal=True,
        scheduler_metadata=flash_attn_interface.get_scheduler_metadata(2, 5, 50, 4, 2, 16),
        return_softmax_lse=True,
        backend=backend,
    )
    assert torch.equal(whole_k, expected_k)
    assert torch.equal(whole_v, expected_v)
    out = out if packed_q else out.flatten(0, 1)
    lse = lse if packed_q else lse.transpose(0, 1).flatten(1, 2)
    parts = zip(q.split(queries), out.split(queries), lse.split(queries, dim=1), strict=True)
    for b, (part, found, found_lse) in enumerate(parts):
        rows = slice(first[b], start[b] + new[b])
        keys, values = expected_k[index[b], rows], expected_v[index[b], rows]
        expected = gated_attention(part[None], keys[None], values[None], causal=True)
        close(found, expected[0][0])
        close(found_lse, expected[1][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seqlens_k_new": int32(0, 5, 9)}, "cu_seqlens_k_new ends at 9; k has 8 tokens"),
        ({"cu_seqlens_k_new": int32(0, 9, 8)}, "ascending offsets from 0"),
        ({"cu_seqlens_k_new": int32(0, 8)}, "k has 1 sequences; the call has 2"),
        ({"cu_seqlens_q": int32(0, 5, 8)}, "max_seqlen_q is missing"),
        ({"k": None, "v": None}, "cu_seqlens_k_new was given without k"),
        ({"cache_seqlens": 46}, "k has 5 tokens for sequence 0"),
    ],
)
def test_fa3_cache_refusals(arguments: dict, message: str) -> None:
    k_cache, v_cache = torch.randn(2, 2, 50, 2, 16)
    before = k_cache.clone()
    k, v = torch.randn(2, 8, 2, 16)
    call = {"k": k, "v": v, "cache_seqlens": int32(1, 2), "cu_seqlens_k_new": int32(0, 5, 8)}
    q = torch.randn(2, 4, 4, 16)
    if "cu_seqlens_q" in arguments:
        q = q.flatten(0, 1)
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        flash_attn_interface.flash_attn_with_kvcache(q, k_cache, v_cache, **{**call, **arguments})
    assert torch.equal(k_cache, before)


def test_fa3_refuses_what_is_not_computed_by_name() -> None:
    q, k, v = operands()
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    starts = int32(0, 120, 240)
    functions: dict[str, Any] = {
        "func": lambda **a: flash_attn_interface.flash_attn_func(q, k, v, **a),
        "varlen": lambda **a: flash_attn_interface.flash_attn_varlen_func(
            *flat, starts, starts, 120, 120, **a
        ),
        "packed": lambda **a: flash_attn_interface.flash_attn_qkvpacked_func(
            torch.stack([q, q, q], dim=2), **a
        ),
        "cache": lambda **a: flash_attn_interface.flash_attn_with_kvcache(q, k, v, **a),
    }
    given: dict[str, Any] = {name: torch.ones(2, 2) for name in ["qv", *DESCALE]}
    given |= {"attention_chunk": 64, "window_size": (5, 5)}
    only_cache = ["rotary_cos", "rotary_sin", "rotary_seqlens", "page_table"]
    given |= {name: torch.ones(2, 2) for name in only_cache}
    for name, value in given.items():
        for which, function in functions.items():
            if (name in only_cache and which != "cache") or (name == "qv" and which == "packed"):
                continue
            with pytest.raises(bsfa.UnsupportedError, match=f"^{name} (is|was)"):
                function(**{name: value})


def test_fa3_combines_parts(backend: str) -> None:
    q, k, v = operands()
    expected = gated_attention(q, k, v)
    outs, lses = [], []
    for part in (slice(0, 50), slice(50, 120)):
        out, lse = bsfa.flash_attn_func(q, k[:, part], v[:, part], return_lse=True, backend=backend)
        outs.append(out)
        lses.append(lse.transpose(1, 2))
    outs.append(torch.zeros_like(q))
    lses.append(torch.full_like(lses[0], -torch.inf))  # a part that saw nothing
    parts, lse_parts = torch.stack(outs), torch.stack(lses)
    out, lse = flash_attn_interface.flash_attn_combine(parts, lse_parts)
    close(out, expected[0])
    close(lse, expected[1].transpose(1, 2))
    half = flash_attn_interface.flash_attn_combine(parts, lse_parts, out_dtype=torch.float16)[0]
    assert half.dtype == torch.float16
    room = torch.empty_like(q)
    assert flash_attn_interface.flash_attn_combine(parts, lse_parts, room)[0] is room
    close(room, expected[0])
    nothing = flash_attn_interface.flash_attn_combine(parts[2:], lse_parts[2:])
    assert (nothing[0] == 0).all()
    assert (nothing[1] == -torch.inf).all()
    with pytest.raises(bsfa.InvalidArgumentError, match="lse_partial"):
        flash_attn_interface.flash_attn_combine(parts, lse_parts[0])
    with pytest.raises(bsfa.InvalidArgumentError, match="out is"):
        flash_attn_interface.flash_attn_combine(parts, lse_parts, room[:1])


def test_what_other_packages_build_on() -> None:
    q, k, v = operands()
    out, lse, probabilities, state = interface_2._flash_attn_forward(
        q, k, v, 0.0, 0.3, True, 9, 0, 4.0, None, False
    )
    expected = gated_attention(q, k, v, softmax_scale=0.3, causal=True, window=10, softcap=4.0)
    close(out, expected[0])
    close(lse, expected[1])
    assert probabilities is state is None
    flat, starts = [t.flatten(0, 1) for t in (q, k, v)], int32(0, 120, 240)
    out = interface_2._flash_attn_varlen_forward(
        *flat,
        starts,
        starts,
        120,
        120,
        0.0,
        None,
        False,
        leftpad_k=int32(3, 9),
        seqused_k=int32(50, 70),
    )[0]
    for b, keys in enumerate((slice(3, 50), slice(9, 70))):
        expected = gated_attention(q[b : b + 1], k[b : b + 1, keys], v[b : b + 1, keys])
        close(out.unflatten(0, (2, 120))[b], expected[0][0])
    with pytest.raises(bsfa.UnsupportedError, match="return_softmax is True"):
        interface_2._flash_attn_forward(q, k, v, 0.0, 0.3, True, -1, -1, 0.0, None, True)
    for backward in (interface_2._flash_attn_backward, interface_2._flash_attn_varlen_backward):
        with pytest.raises(bsfa.UnsupportedError, match="no backward pass: _flash_attn_"):
            backward(out)


def test_padding_and_back() -> None:
    states = torch.randn(3, 7, 4, 2, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0] * 7, [1] * 7])
    tokens, indices, cu_seqlens, longest, used = bert_padding.unpad_input(states, mask)
    assert torch.equal(tokens, states[mask.bool()])
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist() == [0, 3, 3, 10]
    assert longest == 7
    assert used.tolist() == [3, 0, 7]
    padded = bert_padding.pad_input(tokens, indices, 3, 7)
    # Some callers have their indices in int32.
    assert torch.equal(bert_padding.pad_input(tokens, indices.int(), 3, 7), padded)
    assert torch.equal(padded, states * mask[:, :, None, None])
    padded.sum().backward()
    assert torch.equal(states.grad, mask[:, :, None, None].expand_as(states).float())
    unused = torch.zeros_like(mask)
    unused[0, 0] = unused[1, 3] = 1
    tokens, indices, cu_seqlens, longest, used = bert_padding.unpad_input(states, mask, unused)
    assert torch.equal(tokens, states[(mask + unused).bool()])
    assert cu_seqlens.tolist() == [0, 4, 5, 12]
    assert used.tolist() == [3, 0, 7]


def python(script: str) -> str:
    """What a fresh interpreter prints for a script."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_installed_the_packages_are_found_and_taken_back() -> None:
    output = python("""
import importlib.metadata as metadata, importlib.util as util
import bsfa.compat
bsfa.compat.install()
bsfa.compat.install()
import flash_attn, flash_attn_interface
from flash_attn import flash_attn_func
from flash_attn.bert_padding import unpad_input
from flash_attn.flash_attn_interface import flash_attn_varlen_func
import bsfa.compat.flash_attn_interface as third
assert flash_attn_func is bsfa.flash_attn_func
assert flash_attn_varlen_func is bsfa.flash_attn_varlen_func
assert flash_attn_interface is third
assert util.find_spec("flash_attn") and util.find_spec("flash_attn_interface")
for name in ("flash_attn", "flash-attn", "Flash_Attn"):
    assert metadata.version(name) == flash_attn.__version__ == "2.8.3+bsfa"
assert metadata.version("flash_attn_3") == flash_attn_interface.__version__
assert metadata.packages_distributions()["flash_attn"] == ["flash-attn"]
assert metadata.packages_distributions()["flash_attn_interface"] == ["flash-attn-3"]
assert metadata.metadata("flash-attn")["Summary"].startswith("bsfa ")
assert metadata.version("torch")
try:
    import flash_attn.layers
except ModuleNotFoundError as error:
    assert "flash_attn.layers" in str(error)
else:
    raise AssertionError
bsfa.compat.uninstall()
bsfa.compat.uninstall()
assert util.find_spec("flash_attn") is None
assert "flash_attn" not in metadata.packages_distributions()
bsfa.compat.install("flash_attn_interface")
assert util.find_spec("flash_attn") is None
assert util.find_spec("flash_attn_interface")
assert "flash_attn" not in metadata.packages_distributions()
print("done")
""")
    assert output == "done"


def test_a_package_that_is_imported_already_is_left_alone() -> None:
    output = python("""
import sys, types
import bsfa, bsfa.compat
real = sys.modules["flash_attn.ops"] = types.ModuleType("flash_attn.ops")
try:
    bsfa.compat.install()
except bsfa.UnsupportedError as error:
    print(error)
assert "flash_attn" not in sys.modules and "flash_attn_interface" not in sys.modules
assert sys.modules["flash_attn.ops"] is real
bsfa.compat.install("flash_attn_interface")
import flash_attn_interface
bsfa.compat.uninstall()
assert sys.modules["flash_attn.ops"] is real
""")
    assert "flash_attn.ops is imported already" in output
    with pytest.raises(bsfa.InvalidArgumentError, match="package 'flash' is not known"):
        bsfa.compat.install("flash")


def test_the_package_still_imports_without_torch() -> None:
    assert python("import bsfa.compat, sys; print('torch' in sys.modules)") == "False"
