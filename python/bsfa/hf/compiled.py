"""The same under torch.compile: operators that the compiler does not look into.

A layer's prefill looks up settings, masks and devices in ways that a tracer cannot follow, and that
may change between calls. So the traced graph holds one operator for it, which does the looking when
it runs; settings changed later hold without compiling anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from bsfa.hf.marks import Mark, mark_on
from bsfa.hf.masks import make_plan, traced_placeholder, window_of
from bsfa.hf.state import module_of

# Older versions of torch cannot look into a closure that is made while they trace.
FOLLOWS_CLOSURES = torch.__version__ >= "2.14"  # as versions, not as strings

_eager_prefill: Callable[..., tuple[Tensor, Tensor | None]]


def connect(eager_prefill: Callable[..., Any]) -> None:
    """What the operators run; given from outside, since it knows this module."""
    global _eager_prefill
    _eager_prefill = eager_prefill


@torch.library.custom_op("bsfa::model_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    model: int,
    position: int,
    scaling: float | None,
    is_causal: bool | None,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    module = module_of(model, position)
    mark = mark_on(module)
    assert mark is not None
    arguments: dict[str, Any] = {"dropout": 0.0, "scaling": scaling}
    if is_causal is not None:
        arguments["is_causal"] = is_causal
    if sliding_window is not None:
        arguments["sliding_window"] = sliding_window
    if softcap is not None:
        arguments["softcap"] = softcap
    return _eager_prefill(mark, module, query, key, value, mask, arguments)[0].contiguous()


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty((batch, length, heads, value.shape[3]))


def attention(
    mark: Mark,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """A prefill whose arguments are those that bsfa knows, and whose mask is a placeholder."""
    return _attention(
        query,
        key,
        value,
        mask,
        mark.state.number,
        mark.position,
        kwargs.get("scaling"),
        kwargs.get("is_causal"),
        kwargs.get("sliding_window"),
        kwargs.get("softcap"),
    )


@torch.library.custom_op("bsfa::model_mask", mutates_args=())
def _mask(
    attention_mask: Tensor | None,
    window: int | None,
    batch: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    allow_is_causal_skip: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    if window is None:
        kind: dict[str, Any] = {"mask_function": masking_utils.causal_mask_function}
    else:
        function = masking_utils.sliding_window_causal_mask_function(window)
        kind = {"mask_function": function, "local_size": window}
    plan = make_plan(
        {
            **kind,
            "attention_mask": attention_mask,
            "batch_size": batch,
            "q_length": q_length,
            "kv_length": kv_length,
            "q_offset": q_offset,
            "kv_offset": kv_offset,
            "allow_is_causal_skip": allow_is_causal_skip,
            "dtype": dtype,
            "device": device,
            "use_vmap": False,
        }
    )
    assert plan is not None  # see traced_mask
    return traced_placeholder(plan)


@_mask.register_fake
def _(attention_mask: Tensor | None, *others: Any) -> Tensor:
    return torch.empty((1, 1, 1, 2), dtype=torch.int64)


def traced_mask(arguments: dict[str, Any]) -> Tensor | None:
    """The placeholder of a causal or windowed mask over a batch of sequences, described by numbers.

    None if it is of another kind: such a mask breaks the graph once a forward pass.
    """
    attention_mask = arguments.get("attention_mask")
    function = arguments["mask_function"]
    if not (FOLLOWS_CLOSURES or function is masking_utils.causal_mask_function):
        return None
    recognised, window = window_of(function)
    if (
        not recognised
        or "cache_position" in arguments
        or not isinstance(arguments.get("q_offset", 0), int)
        or not isinstance(arguments.get("kv_offset", 0), int)
        or arguments.get("q_offset", 0) < arguments.get("kv_offset", 0)
        or (attention_mask is not None and attention_mask.shape[0] != arguments["batch_size"])
        or arguments.get("use_vmap", False)
    ):
        return None
    return _mask(
        attention_mask,
        window,
        arguments["batch_size"],
        arguments["q_length"],
        arguments["kv_length"],
        arguments.get("q_offset", 0),
        arguments.get("kv_offset", 0),
        arguments.get("allow_is_causal_skip", True),
        arguments.get("dtype", torch.float32),
        arguments["device"],
    )
