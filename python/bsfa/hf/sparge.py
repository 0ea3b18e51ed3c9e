"""SpargeAttention, the paper's other baseline, from the package spas_sage_attn if it is there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from bsfa.hf.masks import MaskPlan

_PACKAGE = "spas_sage_attn"
_FUNCTION = "spas_sage2_attn_meansim_topk_cuda"
_DEVICE = "cuda"
_HEAD_DIMS = (64, 128)
_SHORTEST = 128


@dataclass(frozen=True)
class Sparge:
    """How much SpargeAttention keeps. The defaults are the middle of what the paper ran."""

    topk: float = 0.5
    """Share of the key blocks that a query block selects, of all blocks, seen or not."""
    pv_threshold: float = 15.0
    """Its own skip of products with V; smaller skips more."""


def check(options: Sparge, device: torch.device) -> None:
    """Refuses options out of range, a machine without the package, a model that is elsewhere."""
    if not 0 < options.topk <= 1:
        raise InvalidArgumentError(f"sparge.topk is {options.topk}; accepted: above 0 to 1")
    if not options.pv_threshold > 0:
        raise InvalidArgumentError(f"sparge.pv_threshold is {options.pv_threshold}; accepted: > 0")
    _function()
    if device.type != _DEVICE:
        raise UnsupportedError(f"mode 'sparge' on device {device.type}; accepted: {_DEVICE}")


def _function() -> Any:
    """The package's attention."""
    try:
        module = importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise UnsupportedError(
            f"mode 'sparge' runs the CUDA kernels of the package {_PACKAGE} (SpargeAttn), which "
            f"cannot be imported here: {error}"
        ) from error
    function = getattr(module, _FUNCTION, None)
    if function is None:
        version = getattr(module, "__version__", "of unknown version")
        raise UnsupportedError(
            f"the package {_PACKAGE} here ({version}) has no function {_FUNCTION}, which mode "
            "'sparge' calls"
        )
    return function


def run(
    options: Sparge,
    plan: MaskPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
) -> Tensor:
    """Operands [batch, heads, seqlen, head_dim] -> [batch, seqlen, heads, head_dim].

    Raises UnsupportedError for what the package does not compute, or not correctly: it knows causal
    attention of a whole prompt alone.
    """
    length, head_dim = query.shape[2], query.shape[3]
    end = plan.q_offset + plan.q_length
    if query.device.type != _DEVICE:
        raise UnsupportedError(f"mode 'sparge' on device {query.device.type}; accepted: {_DEVICE}")
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedError(f"mode 'sparge' on {query.dtype}; accepted: float16, bfloat16")
    if head_dim not in _HEAD_DIMS or value.shape[3] != head_dim:
        raise UnsupportedError(
            f"mode 'sparge' with head_dim {head_dim} and {value.shape[3]}; accepted: 64, 128"
        )
    if plan.q_offset != 0 or plan.padding is None or plan.padding.common() != (0, end):
        raise UnsupportedError("mode 'sparge' with padding or a part of a prompt")
    if length < _SHORTEST:
        raise UnsupportedError(f"mode 'sparge' on {length} tokens; accepted: {_SHORTEST} or more")
    out = _function()(
        query,
        key[:, :, :end],
        value[:, :, :end],
        is_causal=True,
        scale=scaling,
        topk=options.topk,
        pvthreshd=options.pv_threshold,
        tensor_layout="HND",
    )
    return out.to(query.dtype).transpose(1, 2).contiguous()
