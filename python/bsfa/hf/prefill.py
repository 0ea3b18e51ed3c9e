"""One attention layer of a prefill: which kernel call it is, and what is noted about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bsfa.errors import UnsupportedError
from bsfa.hf.masks import MaskPlan
from bsfa.hf.padding import Padding
from bsfa.hf.state import Call, State
from bsfa.ops import run_attention


def run(
    state: State,
    which: Call,
    plan: MaskPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float | None = None,
) -> Tensor:
    """Operands [batch, heads, seqlen, head_dim] -> [batch, seqlen_q, heads, head_dim_v].

    Raises UnsupportedError if no backend serves the call. Waits for nothing on a GPU.
    """
    settings = state.settings
    window = plan.window if plan.window is not None and plan.window < plan.kv_length else None
    policy: dict[str, Any] = {}
    attention, reason = settings.mode, None
    if window is not None:
        attention = "windowed"
        if not settings.policy.exact:
            reason = f"the model's own window of {window} tokens; the gate is for full attention"
    elif settings.module is not None:
        if softcap:
            raise UnsupportedError(
                f"a softcap of {softcap}, which mode {settings.mode} does not take"
            )
        out = settings.module.run(settings.sparge, plan, query, key, value, scaling)
        state.record(which, attention, None, None, None)
        return out
    else:
        policy = settings.arguments()
        if settings.policy.needs_thresholds:
            policy["thresholds"] = _thresholds(state, which, plan, query.device)

    assert plan.padding is not None
    q, k, v = (_unit_stride(t.transpose(1, 2)) for t in (query, key, value))
    kept, visible = (query.new_empty(query.shape[:2], dtype=torch.int64) for _ in range(2))
    left_out = None
    call: dict[str, Any] = {
        "softmax_scale": scaling,
        "softcap": softcap or 0.0,
        "causal": True,
        "window": window,
        "block": settings.block,
        "compute_type": state.compute_type,
        "backend": state.backend,
        "kept_blocks": kept,
        "visible_blocks": visible,
        **policy,
    }
    end = plan.q_offset + plan.q_length
    common = plan.padding.common()
    if common is not None:
        observe = state.observer is not None and window is None
        out, asked = _alike(plan, common, q, k, v, call, observe)
        maxima, left_out = asked.get("block_max"), asked.get("left_out")
        if state.observer is not None:
            rows = min(end, common[1]) - max(plan.q_offset, common[0])
            state.observer(state.row(which), plan, maxima, rows)
    elif plan.padding.only_left(end):
        # Positions count from the first token; rows before it see nothing and give 0.
        out = _output(q, v)
        leftpad = plan.padding.leftpad(q.device)
        run_attention(q, k[:, :end], v[:, :end], out, leftpad_k=leftpad, **call)
    else:
        out = _packed(plan, plan.padding, q, k, v, call)
    state.record(which, attention, reason, kept, visible, left_out)
    return out


def _thresholds(state: State, which: Call, plan: MaskPlan, device: torch.device) -> Tensor:
    """float32 [num_heads_q, num_q_blocks] of this call."""
    row, table = state.row(which), state.settings.table
    if row is None:
        raise UnsupportedError(
            f"the thresholds are for {state.shape.num_layers} attention calls of a forward pass, "
            "and this one is none of them"
        )
    reached = plan.q_offset + plan.q_length
    if table is not None and reached > table.max_seqlen:
        state.warn_once(
            f"a prompt of {reached} tokens is beyond the {table.max_seqlen} that the thresholds "
            "were calibrated on; the last ones are used for the rest"
        )
    return state.settings.thresholds(row, device)


def _alike(
    plan: MaskPlan,
    span: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: dict[str, Any],
    observe: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All sequences have the same rows: plain strided views. Also what is known of each query
    block: block_max if observed, left_out if the call has a coverage.
    """
    start, end = span
    top = max(0, start - plan.q_offset)
    bottom = min(plan.q_length, end - plan.q_offset)
    whole = top == 0 and bottom == plan.q_length
    out = _output(q, v) if whole else _output(q, v).zero_()
    if bottom <= top:
        call["kept_blocks"].zero_()
        call["visible_blocks"].zero_()
        return out, {}
    keys = slice(start, min(end, plan.q_offset + bottom))
    q_offset = plan.q_offset + top - start
    asked: dict[str, Tensor] = {}
    block_q, block_kv = call["block"]
    q_blocks = (q_offset + bottom - top - 1) // block_q + 1 - q_offset // block_q
    shape = (q.shape[0], q.shape[2], q_blocks)
    if observe:
        kv_blocks = -(-(keys.stop - keys.start) // block_kv)
        asked["block_max"] = q.new_empty((*shape, kv_blocks), dtype=torch.float32)
    if call.get("coverage") is not None:
        asked["left_out"] = q.new_empty(shape, dtype=torch.float32)
    if keys != slice(0, k.shape[1]):
        k, v = k[:, keys], v[:, keys]
    if not whole:
        q = q[:, top:bottom]
    run_attention(
        q,
        k,
        v,
        out if whole else out[:, top:bottom],
        q_offset=q_offset,
        **asked,
        **call,
    )
    return out, asked


def _packed(
    plan: MaskPlan, padding: Padding, q: Tensor, k: Tensor, v: Tensor, call: dict[str, Any]
) -> Tensor:
    """Tokens one after the other, so that padding rows are not there to be voted on or counted."""
    packing = padding.packing(q.device, plan.q_offset, plan.q_length)
    q_packed, k_packed, v_packed = q[packing.q_index], k[packing.k_index], v[packing.k_index]
    packed = _output(q_packed, v_packed)
    run_attention(
        q_packed[None],
        k_packed[None],
        v_packed[None],
        packed[None],
        cu_seqlens_q=packing.cu_seqlens_q,
        cu_seqlens_k=packing.cu_seqlens_k,
        max_seqlen_q=packing.max_seqlen_q,
        max_seqlen_k=packing.max_seqlen_k,
        **call,
    )
    out = _output(q, v).zero_()
    out[packing.q_index] = packed
    return out


def _output(q: Tensor, v: Tensor) -> Tensor:
    """Room for the result, not initialised."""
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
