"""SpargeAttention, the paper's other baseline, from the package spas_sage_attn if it is there."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsfa.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from bsfa.hf.masks import MaskPlan

_PACKAGE = "spas_sage_attn"
# Alike in arguments and result. The package recommends the first, but in some of its versions that
# one only drops the blocks after the diagonal: inside the diagonal's, queries see later keys.
_FUNCTIONS = ("spas_sage2_attn_meansim_topk_cuda", "spas_sage_attn_meansim_topk_cuda")
_DEVICE = "cuda"
_HEAD_DIMS = (64, 128)
_SHORTEST = 128
_KEY_BLOCK = 64  # tokens; the smaller of the package's two


@dataclass(frozen=True)
class Sparge:
    """How much SpargeAttention keeps. The defaults are the middle of what the paper ran."""

    topk: float = 0.5
    """Share of the key blocks that a query block selects, of all blocks, seen or not."""
    pv_threshold: float = 15.0
    """Its own skip of products with V; smaller skips more."""


def check(options: Sparge, device: torch.device | None) -> None:
    """Refuses options out of range, a machine without the package, a model that is elsewhere.

    device: None where it is not known before a call.
    """
    if not 0 < options.topk <= 1:
        raise InvalidArgumentError(f"sparge.topk is {options.topk}; accepted: above 0 to 1")
    if not options.pv_threshold > 0:
        raise InvalidArgumentError(f"sparge.pv_threshold is {options.pv_threshold}; accepted: > 0")
    module = _package()
    if device is None:
        return
    if device.type != _DEVICE:
        raise UnsupportedError(f"mode 'sparge' on device {device.type}; accepted: {_DEVICE}")
    _function(module, device)


def _package() -> ModuleType:
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise UnsupportedError(
            f"mode 'sparge' runs the CUDA kernels of the package {_PACKAGE} (SpargeAttn), which "
            f"cannot be imported here: {error}"
        ) from error


@functools.lru_cache(maxsize=16)
def _function(module: ModuleType, device: torch.device) -> Callable[..., Any]:
    """The first of the package's functions whose result on this device is causal attention."""
    version = getattr(module, "__version__", "of unknown version")
    found = [name for name in _FUNCTIONS if hasattr(module, name)]
    if not found:
        raise UnsupportedError(
            f"the package {_PACKAGE} here ({version}) has none of the functions that mode 'sparge' "
            f"calls: {', '.join(_FUNCTIONS)}"
        )
    reasons = []
    for name in found:
        try:
            if _is_causal(getattr(module, name), device):
                return getattr(module, name)
            reasons.append(f"{name} lets queries see later keys, or is wrong otherwise")
        except Exception as error:  # whatever a package of kernels may raise
            reasons.append(f"{name}: {error}")
    raise UnsupportedError(
        f"the package {_PACKAGE} here ({version}) does not compute causal attention on {device}, "
        f"tried on a small example with every block selected: {'; '.join(reasons)}"
    )


@torch.no_grad()
def _is_causal(function: Callable[..., Any], device: torch.device) -> bool:
    """Whether it agrees with PyTorch where nothing is skipped, as far as 8 bits can."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(1, 1, 2 * _SHORTEST, 64, generator=generator).to(device, torch.float16)
        for _ in range(3)
    )
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with _device_kept(device):
        out = function(q, k, v, is_causal=True, topk=1.0, tensor_layout="HND")
    return bool((out - expected).abs().max() < 0.5)


def _device_kept(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The package makes the device of its operands current, and leaves it so."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


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
    # Of one block selected, and that the diagonal's second half, some queries would see no key.
    if int(options.topk * -(-length // _KEY_BLOCK)) < 2:
        raise UnsupportedError(
            f"mode 'sparge' on {length} tokens with topk {options.topk}, which is less than two "
            f"key blocks of {_KEY_BLOCK}"
        )
    # Its choice of blocks knows as many key heads as query heads.
    groups = query.shape[1] // key.shape[1]
    key, value = (t[:, :, :end].repeat_interleave(groups, dim=1) for t in (key, value))
    with _device_kept(query.device):
        out = _function(_package(), query.device)(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            topk=float(options.topk),
            pvthreshd=float(options.pv_threshold),
            tensor_layout="HND",
        )
    return out.to(query.dtype).transpose(1, 2).contiguous()
