"""The arguments of `torch.ops.bsfa.attention` and `attention_varlen` after q, k and v."""

from __future__ import annotations

from typing import Any

_BOTH: dict[str, Any] = {
    "thresholds": None,
    "softmax_scale": None,
    "causal": True,
    "q_offsets": None,
    "window": None,
    "window_blocks": None,
    "mass_c": None,
    "skip_lambda": None,
    "skip_order": "ascending",
    "coverage": None,
    "sampled_rows": 32,
    "mass_floor": 0.003,
    "softcap": 0.0,
    "block_q": 128,
    "block_kv": 64,
    "compute_type": "native",
    "backend": "",
    "return_lse": False,
    "return_stats": False,
}


def padded(**changes: Any) -> dict[str, Any]:
    return {**_BOTH, "seqused_k": None, "leftpad_k": None, "q_offset": None, **changes}


def packed(cu_seqlens: Any, max_seqlen: int, **changes: Any) -> dict[str, Any]:
    lengths = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    bounds = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    return {**_BOTH, **lengths, **bounds, **changes}
