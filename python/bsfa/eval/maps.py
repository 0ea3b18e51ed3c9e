"""Which blocks one head keeps over one prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError
from bsfa.eval.generation import attention_wrapped
from bsfa.hf.marks import mark_on
from bsfa.hf.models import state_of
from bsfa.ops import run_attention

__all__ = ["kept_map"]


@torch.inference_mode()
def kept_map(model: Any, prompt: Sequence[int], layer: int, head: int) -> list[list[bool]]:
    """Kept blocks [query blocks][key/value blocks] of a model that bsfa.enable has set up."""
    state = state_of(model)
    if state is None:
        raise InvalidArgumentError("model is not enabled; call bsfa.enable(model, ...) first")
    if not (0 <= layer < state.shape.num_layers and 0 <= head < state.shape.num_heads_q):
        raise InvalidArgumentError(
            f"layer {layer}, head {head}; accepted: layer 0 to {state.shape.num_layers - 1}, head "
            f"0 to {state.shape.num_heads_q - 1}"
        )
    found: list[Tensor] = []
    calls: Counter[int] = Counter()  # of each attention module in this one forward pass

    def watching(function: Any) -> Any:
        def watch(
            module: Any, query: Tensor, key: Tensor, value: Tensor, *a: Any, **kw: Any
        ) -> Any:
            mark = mark_on(module)
            call = (-1, 0) if mark is None else (mark.position, calls[mark.position])
            calls[call[0]] += 1
            if state.row(call) == layer:
                kv_head = head // (query.shape[1] // key.shape[1])
                q = query[:, head : head + 1].transpose(1, 2)
                k, v = (t[:, kv_head : kv_head + 1].transpose(1, 2) for t in (key, value))
                found.append(_mask(state, layer, head, q, k, v, kw))
            return function(module, query, key, value, *a, **kw)

        return watch

    with attention_wrapped(model, watching):
        ids = torch.tensor([list(prompt)], device=model.device)
        model(ids, use_cache=False, logits_to_keep=1)
    return [[bool(kept) for kept in row] for row in found[0].tolist()]


def _mask(
    state: Any, layer: int, head: int, q: Tensor, k: Tensor, v: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """uint8 [query blocks, key/value blocks]; q, k, v [1, tokens, 1, head_dim].

    arguments: those of the layer.
    """
    settings = state.settings
    policy = settings.arguments()
    if settings.policy.needs_thresholds:
        policy["thresholds"] = settings.thresholds(layer, q.device)[head : head + 1]
    blocks = [-(-q.shape[1] // size) for size in settings.block]
    mask = torch.zeros((1, 1, *blocks), dtype=torch.uint8, device=q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    run_attention(
        q,
        k,
        v,
        out,
        softmax_scale=arguments.get("scaling"),
        softcap=arguments.get("softcap") or 0.0,
        causal=True,
        block=settings.block,
        compute_type=state.compute_type,
        backend=state.backend,
        kept_mask=mask,
        **policy,
    )
    return mask[0, 0].cpu()
