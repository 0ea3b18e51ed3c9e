"""From Transformers' description of a mask to rows, keys and offsets, without building the mask."""

from __future__ import annotations

import collections
import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import masking_utils

from bsfa.errors import UnsupportedError
from bsfa.hf.padding import Padding, read_padding

__all__ = [
    "MaskPlan",
    "build_mask",
    "find_plan",
    "is_placeholder",
    "make_plan",
    "placeholder",
    "traced_placeholder",
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

    previous: str = ""
    """The attention implementation that the model had before, for whoever reads the mask."""
    config: Callable[[], Any] = lambda: None
    """The model's configuration, if it is still there."""
    keep_built: bool = True
    """Whether a mask that was built is kept for the next layer, as long as the plan lives."""

    def __post_init__(self) -> None:
        self._built: dict[tuple[str, bool], Tensor | None] = {}

    def build(self, implementation: str, config: Any, always: bool = False) -> Tensor | None:
        """The mask as `implementation` takes it, which may be none at all unless always is set."""
        key = (implementation, always)
        if key in self._built:
            return self._built[key]
        arguments = {**self.arguments, "config": config}
        if always:
            arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = build_mask(implementation, arguments)
        if self.keep_built:
            self._built[key] = mask
        return mask


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


# A mask reaches the attention layers through the model's own code, which may copy it, move it to
# another device, slice it or compute with it. So what travels is a tensor that looks like the mask
# and holds none: attention layers of bsfa find the plan in it, and any operation that asks for the
# values gets the mask that the model had before (its layers then fall back to that attention).
# Inside a graph that is being traced no such tensor can be made; there it is two numbers, the first
# of which names the plan. Their dtype and shape fit no attention, so that one which went astray is
# an error and not a wrong result, and they are on the CPU: reading them waits for nothing.
_PLANS: weakref.WeakValueDictionary[int, MaskPlan] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)
_SHAPE = (1, 1, 1, 2)

# Of graphs that are being run: what names a plan there keeps none alive.
_TRACED: collections.deque[MaskPlan] = collections.deque(maxlen=8)


def _numbered(plan: MaskPlan) -> Tensor:
    number = next(_NUMBERS)
    _PLANS[number] = plan
    return torch.tensor([number, -1], dtype=torch.int64, device="cpu").view(_SHAPE)


def traced_placeholder(plan: MaskPlan) -> Tensor:
    """A tensor int64 [1, 1, 1, 2] that stands for the plan in a compiled graph."""
    plan.keep_built = False  # since the plan outlives the forward pass, and masks are large
    plan._built.clear()
    _TRACED.append(plan)
    return _numbered(plan)


def _is_number(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dtype == torch.int64 and mask.shape == _SHAPE


@torch.library.custom_op("bsfa::mask_values", mutates_args=())
def _values(number: Tensor, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    plan = _PLANS.get(int(number[0, 0, 0, 0]))
    if plan is None:
        raise UnsupportedError(
            "the model's own code reads an attention mask of an earlier forward pass, which bsfa "
            "has not kept; call bsfa.disable(model) for such a model"
        )
    mask = plan.build(plan.previous, plan.config(), always=True)
    if mask is None or not isinstance(mask, Tensor) or list(mask.shape) != shape:
        raise UnsupportedError(
            f"the model's own code reads its attention mask, which attention {plan.previous!r} "
            "does not have as a tensor; bsfa cannot serve such a model: call bsfa.disable(model)"
        )
    return mask.to(device, dtype, copy=True)


@_values.register_fake
def _(number: Tensor, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


class Placeholder(Tensor):
    """Looks like the mask [batch, 1, q_length, kv_length] of the attention of before."""

    number: Tensor
    plan: MaskPlan | None

    @staticmethod
    def __new__(
        cls,
        number: Tensor,
        size: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        plan: MaskPlan | None = None,
    ) -> Placeholder:
        made = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        made.number, made.plan = number, plan
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"bsfa's placeholder for a mask of shape {list(self.shape)}"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[torch.dtype, torch.device]]:
        """For torch.compile of parts of a model: a graph knows the plan by its number."""
        return ["number"], (self.dtype, self.device)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], kind: tuple[torch.dtype, torch.device], size: Any, stride: Any
    ) -> Placeholder:
        return Placeholder(inner["number"], size, *kind)

    def _stable_hash_for_caching(self) -> str:
        return "bsfa.hf.masks.Placeholder"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _COPIES and isinstance(args[0], cls):
            # On a tensor without memory: what shape, dtype and device the result has.
            before = args[0]
            like = torch.empty(before.shape, dtype=before.dtype, device="meta")
            device = kwargs.pop("device", None) or before.device
            like = function(like, *args[1:], **kwargs)
            if like.shape == before.shape and like.dtype == before.dtype:
                return cls(before.number, like.shape, like.dtype, device, before.plan)
            kwargs = {**kwargs, "device": device} if function is _TO_COPY else kwargs
        takes_plans = getattr(function, "namespace", None) == "bsfa"

        def given(value: Any) -> Any:
            if not isinstance(value, cls):
                return value
            if takes_plans:
                return value.number
            return _values(value.number, list(value.shape), value.dtype, value.device)

        return function(*tree_map(given, args), **tree_map(given, kwargs))


_TO_COPY = torch.ops.aten._to_copy.default
# Operations after which it is the same mask, unless they change its shape or dtype.
_COPIES = frozenset(
    {
        _TO_COPY,
        torch.ops.aten.alias.default,
        torch.ops.aten.clone.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.slice.Tensor,
        torch.ops.aten.expand.default,
        torch.ops.aten.view.default,
    }
)


def placeholder(plan: MaskPlan, previous: str, config: Any) -> Tensor:
    """A tensor that stands for the plan, and for the mask of the previous attention."""
    plan.previous, plan.config = previous, weakref.ref(config)
    dtype = torch.bool
    if previous == "eager":
        dtype = plan.arguments.get("dtype", torch.float32)
    size = (plan.batch, 1, plan.q_length, plan.kv_length)
    device = plan.arguments.get("device")
    if device is None:  # Transformers before 5.2 or so
        device = plan.arguments["cache_position"].device
    return Placeholder(_numbered(plan), size, dtype, torch.device(device), plan)


def is_placeholder(mask: Any) -> bool:
    """Whether this is no mask but stands for a plan."""
    return isinstance(mask, Placeholder) or _is_number(mask)


def find_plan(mask: Any) -> MaskPlan | None:
    """The plan that a placeholder stands for; None if the mask is something else."""
    if isinstance(mask, Placeholder):
        return mask.plan if mask.plan is not None else find_plan(mask.number)
    return _PLANS.get(int(mask[0, 0, 0, 0])) if _is_number(mask) else None
