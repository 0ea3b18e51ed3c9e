"""Whether somebody will ask for gradients of what is computed now."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx


def tracked(*tensors: Tensor) -> str | None:
    """The same of a call that is being traced: what the operands say by themselves."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "gradients are recorded (use torch.no_grad() or torch.inference_mode())"
    return None


def recording(*tensors: Tensor) -> str | None:
    """In which way derivatives of the operands are recorded, in words; None if they are not.

    Gradient mode alone does not tell: reentrant checkpointing (and whatever else is written as an
    `autograd.Function`) runs its first pass without it and computes anew in the backward pass.
    """
    reason = tracked(*tensors)
    if reason is not None:
        return reason
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is under way"
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        return "forward-mode derivatives are recorded"
    if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return _inside_function()
    return None


def _inside_function() -> str | None:
    """Whether an `autograd.Function` that is to give gradients is on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_code.co_argcount > 0:
            first = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(first, FunctionCtx) and any(first.needs_input_grad):  # type: ignore[attr-defined]
                return "gradients will be asked for: the call is inside an autograd.Function"
        frame = frame.f_back  # type: ignore[assignment]
    return None
