"""The attention and mask functions that Transformers calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bsfa.errors import UnsupportedError
from bsfa.hf.masks import MaskPlan, build_mask, find_plan, make_plan, placeholder
from bsfa.hf.state import State, find_state, state_of
from bsfa.ops import run_attention

NAME = "bsfa"

# Fewer queries than this are decoding, and stay with the attention that the model had.
MIN_QUERIES = 32

# Arguments of an attention layer that do not change what attention computes, or that are looked at
# one by one below. Whatever else is not None belongs to the previous attention.
_KNOWN_ARGUMENTS = frozenset(
    {
        "cache_position",
        "deterministic",
        "dropout",
        "is_causal",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "scaling",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


def register() -> None:
    """Makes "bsfa" known to Transformers. Done by importing `bsfa.hf`."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_function)


def mask_function(**arguments: Any) -> Tensor | None:
    """What a model with attention "bsfa" gets for a mask (AttentionMaskInterface)."""
    state = find_state(arguments.get("config"))
    previous = "sdpa" if state is None else state.previous
    q_length = arguments.get("q_length")
    if q_length is None:
        q_length = len(arguments["cache_position"])
    if q_length < MIN_QUERIES:
        return build_mask(previous, arguments)
    return _prefill_mask(previous, arguments)


@torch.compiler.disable
def _prefill_mask(previous: str, arguments: dict[str, Any]) -> Tensor | None:
    plan = make_plan(arguments)
    if plan is None:
        return build_mask(previous, arguments)
    return placeholder(plan, arguments.get("device", "cpu"))


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What an attention layer with attention "bsfa" calls (AttentionInterface).

    query [batch, num_heads_q, seqlen_q, head_dim], key and value [batch, num_heads_kv, seqlen_k,
    head_dim]; returns [batch, seqlen_q, num_heads_q, head_dim_v] and, from a fallback, weights.
    """
    state = state_of(module)
    if query.shape[2] < MIN_QUERIES:
        state.decode_calls += 1
        return state.previous_function(module)(module, query, key, value, attention_mask, **kwargs)
    return _prefill(state, module, query, key, value, attention_mask, kwargs)


@torch.compiler.disable
def _prefill(
    state: State,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    plan = find_plan(attention_mask)
    if plan is None and attention_mask is None:
        plan = _plan_without_mask(module, query, key, kwargs)
    layer = int(getattr(module, "layer_idx", 0) or 0)
    reason = _refusal(plan, query, key, value, attention_mask, kwargs)
    if reason is None:
        assert plan is not None
        try:
            return _run(state, layer, plan, query, key, value, kwargs.get("scaling")), None
        except UnsupportedError as error:
            reason = str(error)
    if state.observer is not None:
        state.observer(layer, plan, None, query.shape[2])
    state.record_fallback(layer, reason)
    if plan is not None and attention_mask is not None:  # a placeholder
        attention_mask = plan.build(state.previous, module.config)
    return state.previous_function(module)(module, query, key, value, attention_mask, **kwargs)


def _plan_without_mask(
    module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any]
) -> MaskPlan | None:
    """No mask at all means plain causal where the layer says that it is causal."""
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", False)
    batch, _, length, _ = query.shape
    window = kwargs.get("sliding_window")
    if not causal or key.shape[2] != length or (window is not None and window < length):
        return None
    return MaskPlan(batch, length, length, 0, None, [(0, length)] * batch, {})


def _refusal(
    plan: MaskPlan | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> str | None:
    """Why this call is not for bsfa, in words; None if it is."""
    for name, given in kwargs.items():
        if name not in _KNOWN_ARGUMENTS and given is not None:
            what = "attention sinks (s_aux)" if name == "s_aux" else f"the argument {name}"
            return f"{what} of the layer"
    if kwargs.get("softcap"):
        return f"a softcap of {kwargs['softcap']}"
    if kwargs.get("output_attentions"):
        return "output_attentions asks for the attention weights"
    if kwargs.get("dropout"):
        return f"dropout of {kwargs['dropout']}"
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        return "gradients are recorded (use torch.no_grad() or torch.inference_mode())"
    if plan is None:
        kind = "no mask and is not plain causal"
        if attention_mask is not None:
            kind = "a mask that is not causal or windowed over sequences padded at their ends"
        return f"the layer has {kind}"
    if (plan.batch, plan.q_length, plan.kv_length) != (
        query.shape[0],
        query.shape[2],
        key.shape[2],
    ):
        return (
            f"the mask is for {plan.q_length} queries and {plan.kv_length} keys; the layer has "
            f"{query.shape[2]} and {key.shape[2]}"
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type not in ("cpu", "cuda"):
            return f"{name} on device {tensor.device.type}"
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"{name} of dtype {tensor.dtype}"
    return None


def _run(
    state: State,
    layer: int,
    plan: MaskPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
) -> Tensor:
    settings = state.settings
    heads = query.shape[1]
    window = plan.window if plan.window is not None and plan.window < plan.kv_length else None
    policy: dict[str, Any] = {}
    attention, reason = settings.mode, None
    if window is not None:
        attention = "windowed"
        if settings.mode != "dense":
            reason = f"the model's own window of {window} tokens; the gate is for full attention"
    elif settings.mode == "threshold":
        policy["thresholds"] = settings.thresholds(layer, query.device)
        reached = plan.q_offset + plan.q_length
        if settings.table is not None and reached > settings.table.max_seqlen:
            state.warn_once(
                f"a prompt of {reached} tokens is beyond the {settings.table.max_seqlen} that the "
                "thresholds were calibrated on; the last ones are used for the rest"
            )
    elif settings.mode == "sliding_window":
        policy["window_blocks"] = settings.budget

    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    out = query.new_zeros((query.shape[0], query.shape[2], heads, value.shape[3]))
    kept, visible = [], []
    for first, last, (start, end) in _equal_spans(plan.spans):
        # Positions count from the first real token; rows of padding are no tokens and stay zero.
        top = max(0, start - plan.q_offset)
        bottom = min(plan.q_length, end - plan.q_offset)
        if bottom <= top:
            continue
        keys = slice(start, min(end, plan.q_offset + bottom))
        counts = query.new_empty((2, last - first, heads), dtype=torch.int64)
        maxima = None
        observed = state.observer is not None and window is None
        if observed:
            maxima = _block_maxima(
                plan.q_offset + top - start, bottom - top, keys, counts, settings.block
            )
        run_attention(
            _rows(q, first, last, slice(top, bottom)),
            _rows(k, first, last, keys),
            _rows(v, first, last, keys),
            out[first:last, top:bottom],
            softmax_scale=scaling,
            causal=True,
            q_offset=plan.q_offset + top - start,
            window=window,
            block=settings.block,
            compute_type=state.compute_type,
            backend=state.backend,
            kept_blocks=counts[0],
            visible_blocks=counts[1],
            block_max=maxima,
            **policy,
        )
        if state.observer is not None:
            state.observer(layer, plan, maxima, bottom - top)
        kept.append(counts[0])
        visible.append(counts[1])
    if kept:
        state.record(layer, attention, reason, torch.cat(kept), torch.cat(visible))
    return out


def _block_maxima(
    q_offset: int, rows: int, keys: slice, like: Tensor, block: tuple[int, int]
) -> Tensor:
    """Room for the block maxima of a call: float32 [batch, heads, q blocks, kv blocks]."""
    first = q_offset // block[0]
    q_blocks = (q_offset + rows - 1) // block[0] + 1 - first
    kv_blocks = -(-(keys.stop - keys.start) // block[1])
    return like.new_empty((*like.shape[1:], q_blocks, kv_blocks), dtype=torch.float32)


def _equal_spans(
    spans: list[tuple[int, int]],
) -> list[tuple[int, int, tuple[int, int]]]:
    """Runs of neighbouring sequences that stand alike: (first, last, span), last exclusive."""
    runs: list[tuple[int, int, tuple[int, int]]] = []
    for index, span in enumerate(spans):
        if runs and runs[-1][2] == span:
            runs[-1] = (runs[-1][0], index + 1, span)
        else:
            runs.append((index, index + 1, span))
    return runs


def _rows(tensor: Tensor, first: int, last: int, rows: slice) -> Tensor:
    """Rows of some sequences, [batch, seqlen, heads, head_dim], with a dense last axis."""
    view = tensor[first:last, rows]
    return view if view.stride(-1) == 1 else view.contiguous()
