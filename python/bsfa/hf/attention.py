"""The attention and mask functions that Transformers calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.hf import autograd, compiled, prefill
from bsfa.hf.marks import ATTRIBUTE, Mark
from bsfa.hf.masks import (
    MaskPlan,
    build_mask,
    find_plan,
    is_placeholder,
    make_plan,
    placeholder,
    traced_placeholder,
)
from bsfa.hf.models import MIN_QUERIES, NAME, mark_of
from bsfa.hf.padding import Padding
from bsfa.hf.state import SWITCHED, previous_function

_is_compiling = torch.compiler.is_compiling

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
    switched = SWITCHED.get(id(arguments.get("config")))
    previous = "sdpa" if switched is None else switched.previous
    q_length = arguments.get("q_length")
    if q_length is None:
        q_length = len(arguments["cache_position"])
    if q_length < MIN_QUERIES:
        return build_mask(previous, arguments)
    if _is_compiling():
        if switched is not None and switched.reads_masks:
            return build_mask(previous, arguments)
        traced = compiled.traced_mask(arguments)
        if traced is not None:
            return traced
        return _untraced_mask(previous, arguments)
    plan = make_plan(arguments)
    if plan is None:
        return build_mask(previous, arguments)
    return placeholder(plan, previous, arguments.get("config"))


@torch.compiler.disable
def _untraced_mask(previous: str, arguments: dict[str, Any]) -> Tensor | None:
    """A mask that goes into a graph from outside."""
    plan = make_plan(arguments)
    return build_mask(previous, arguments) if plan is None else traced_placeholder(plan)


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
    # Every layer of every token that is decoded comes by here: look-ups, and no more than these.
    mark = getattr(module, ATTRIBUTE, None) or mark_of(module)
    if mark is None:
        return _not_enabled(module, query, key, value, attention_mask, kwargs)
    state = mark.state
    if query.shape[2] < MIN_QUERIES:
        if not _is_compiling():  # a count in a graph would compile it anew each time
            state.decode_calls += 1
        function = state.functions.get(type(module)) or state.previous_function(module)
        return function(module, query, key, value, attention_mask, **kwargs)
    if not _is_compiling():
        return _prefill(mark, module, query, key, value, attention_mask, kwargs)
    if (attention_mask is None or is_placeholder(attention_mask)) and (
        _refused_arguments(query, key, value, kwargs) is None
    ):
        return compiled.attention(mark, query, key, value, attention_mask, kwargs), None
    return _untraced_prefill(mark, module, query, key, value, attention_mask, kwargs)


def _not_enabled(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """A layer whose model shares its configuration object with an enabled one, and is not."""
    previous = SWITCHED[id(module.config)].previous
    plan = find_plan(attention_mask)
    if plan is not None:
        attention_mask = plan.build(previous, module.config)
    function = previous_function(previous, module)
    return function(module, query, key, value, attention_mask, **kwargs)


def _prefill(
    mark: Mark,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    state = mark.state
    plan = find_plan(attention_mask)
    call = mark.next_call(attention_mask if plan is None else plan)
    if state.trace is not None:
        state.trace.append(mark.position)
    if plan is None and attention_mask is None:
        plan = _plan_without_mask(module, query, key, kwargs)
    reason = _refused_arguments(query, key, value, kwargs)
    reason = reason or autograd.recording(query, key, value)
    reason = reason or _refusal(plan, query, key, value, attention_mask)
    if reason is None:
        assert plan is not None
        q, k, v = (_as_autocast(operand) for operand in (query, key, value))
        try:
            scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
            return prefill.run(state, call, plan, q, k, v, scaling, softcap), None
        except (UnsupportedError, InvalidArgumentError) as error:
            # Whatever the library refuses is for the attention of before, which may take it.
            reason = str(error)
    if state.observer is not None:
        state.observer(state.row(call), plan, None, query.shape[2])
    state.record_fallback(call, reason)
    if plan is not None and attention_mask is not None:  # a placeholder
        attention_mask = plan.build(state.previous, module.config)
    return state.previous_function(module)(module, query, key, value, attention_mask, **kwargs)


_untraced_prefill = torch.compiler.disable(_prefill)


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
    return MaskPlan(batch, length, length, 0, None, Padding([(0, length)] * batch), {})


def _refused_arguments(
    query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
) -> str | None:
    """Which argument of this call is not for bsfa, in words; None if none is."""
    for name, given in kwargs.items():
        if name not in _KNOWN_ARGUMENTS and given is not None:
            what = "attention sinks (s_aux)" if name == "s_aux" else f"the argument {name}"
            return f"{what} of the layer"
    if kwargs.get("output_attentions"):
        return "output_attentions asks for the attention weights"
    if kwargs.get("dropout"):
        return f"dropout of {kwargs['dropout']}"
    return autograd.tracked(query, key, value)


def _as_autocast(operand: Tensor) -> Tensor:
    """The operand in the dtype that autocast gives PyTorch's own attention, if it is on."""
    device = operand.device.type
    if not torch.is_autocast_enabled(device):
        return operand
    return operand.to(torch.get_autocast_dtype(device))


def _refusal(
    plan: MaskPlan | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
) -> str | None:
    """Why this call is not for bsfa, in words; None if it is."""
    if plan is None or plan.padding is None:
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


compiled.connect(_prefill)
