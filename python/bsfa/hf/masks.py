"""From Transformers' description of a mask to rows, keys and offsets, without building the mask."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from bsfa.hf.padding import Padding, read_padding

__all__ = [
    "MaskPlan",
    "build_mask",
    "find_plan",
    "is_placeholder",
    "make_plan",
    "placeholder",
    "window_of",
]


@dataclass(eq=False)
class MaskPlan:
    """A causal or sliding-window mask over padded sequences. Positions count from key row 0."""

    batch: int
    q_length: int
    kv_length: int
    q_offset: int
    """Key row at which query row 0 stands, tokens."""
    window: int | None
    """The model's own window, tokens."""
    padding: Padding | None
    """Where the real tokens are; None if padding is inside a sequence, which bsfa leaves alone."""
    arguments: dict[str, Any]
    """What Transformers asked for, less the configuration: other masks are built from it."""

    def __post_init__(self) -> None:
        self._built: dict[str, Tensor | None] = {}

    def build(self, implementation: str, config: Any) -> Tensor | None:
        """The mask as `implementation` takes it; built once a forward pass, if at all."""
        if implementation not in self._built:
            arguments = {**self.arguments, "config": config}
            self._built[implementation] = build_mask(implementation, arguments)
        return self._built[implementation]

    def forget(self) -> None:
        """Frees the masks that were built; one that is asked for again is built again."""
        self._built.clear()


def build_mask(implementation: str, arguments: dict[str, Any]) -> Tensor | None:
    """The mask that Transformers would have built for this implementation."""
    interface = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    # An attention without a mask function gets no mask, as in Transformers itself.
    return interface[implementation](**arguments) if implementation in interface else None


# The two closures that make up Transformers' windowed mask, known by their code.
_WINDOWED_CODE = masking_utils.sliding_window_causal_mask_function(1).__code__
_OVERLAY_CODE = masking_utils.sliding_window_overlay(1).__code__


def window_of(mask_function: Callable[..., Any]) -> tuple[bool, int | None]:
    """Whether the function is plain causal or windowed causal, and its window.

    Exact: a function composed of anything else is not recognised. Written so that torch.compile can
    follow it too, for a function that is itself made while tracing.
    """
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    if getattr(mask_function, "__code__", None) is not _WINDOWED_CODE:
        return False, None
    parts = _captured(mask_function)
    if len(parts) != 2:
        return False, None
    overlay, causal = parts
    if overlay is masking_utils.causal_mask_function:
        overlay, causal = causal, overlay
    if causal is not masking_utils.causal_mask_function:
        return False, None
    if getattr(overlay, "__code__", None) is not _OVERLAY_CODE:
        return False, None
    window = _captured(overlay)
    return (True, window) if isinstance(window, int) and window >= 1 else (False, None)


def _captured(function: Callable[..., Any]) -> Any:
    """The one variable that a closure holds."""
    cells = function.__closure__
    assert cells is not None
    assert len(cells) == 1
    return cells[0].cell_contents


def make_plan(arguments: dict[str, Any]) -> MaskPlan | None:
    """The plan of a mask that Transformers asks for; None if it is of another kind."""
    recognised, window = window_of(arguments["mask_function"])
    if not recognised:
        return None
    if "cache_position" in arguments:  # Transformers before 5.2 or so
        positions = arguments["cache_position"]
        q_length, q_offset = len(positions), int(positions[0])
    else:
        q_length, q_offset = int(arguments["q_length"]), int(arguments.get("q_offset", 0))
    batch, kv_length = int(arguments["batch_size"]), int(arguments["kv_length"])
    kv_offset = int(arguments.get("kv_offset", 0))
    if q_offset < kv_offset:
        return None
    end = min(q_offset + q_length, kv_offset + kv_length)
    attention_mask = arguments.get("attention_mask")
    if attention_mask is not None and attention_mask.shape[0] != batch:
        return None
    padding = read_padding(attention_mask, batch, kv_offset, end)
    # A plan may outlive the forward pass: it must not keep the model alive.
    arguments = {name: value for name, value in arguments.items() if name != "config"}
    if "q_offset" in arguments:  # a static cache gives a tensor, which it then writes to
        arguments["q_offset"] = q_offset
    return MaskPlan(batch, q_length, kv_length, q_offset - kv_offset, window, padding, arguments)


# A mask reaches the attention layers through the model's own code, which may copy it or move it to
# another device. So what travels is a tensor of two numbers that names its plan twice: as an
# attribute, and by the first number. Its dtype and shape fit no attention, so that one which went
# astray is an error and not a wrong result. It lives on the CPU: reading it waits for nothing.
_RECENT: collections.deque[tuple[int, MaskPlan]] = collections.deque(maxlen=8)
_NUMBERS = itertools.count(1)
_SHAPE = (1, 1, 1, 2)


def placeholder(plan: MaskPlan) -> Tensor:
    """A tensor int64 [1, 1, 1, 2] that stands for the plan."""
    number = next(_NUMBERS)
    _RECENT.append((number, plan))
    for _, old in list(_RECENT)[:-4]:  # a model has few kinds of mask; masks are large
        old.forget()
    tensor = torch.tensor([number, -1], dtype=torch.int64).view(_SHAPE)
    tensor._bsfa_plan = plan  # type: ignore[attr-defined]
    return tensor


def is_placeholder(mask: Any) -> bool:
    """Whether this is no mask but stands for a plan."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int64 and mask.shape == _SHAPE


def find_plan(mask: Any) -> MaskPlan | None:
    """The plan that a placeholder stands for; None if the mask is something else."""
    plan = getattr(mask, "_bsfa_plan", None)
    if plan is not None:
        return plan
    if is_placeholder(mask):
        return dict(_RECENT).get(int(mask[0, 0, 0, 0]))
    return None
