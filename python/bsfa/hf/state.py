"""The settings and the statistics of one enabled model."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bsfa._core import ThresholdTable
from bsfa.errors import FallbackWarning, InvalidArgumentError, UnsupportedError
from bsfa.hf import sparge as sparge_attention
from bsfa.hf.sparge import Sparge
from bsfa.hf.statistics import LayerStats, ModelStats
from bsfa.identity import warn_of_other_model
from bsfa.policies import find_policy


def as_table(thresholds: str | os.PathLike[str] | ThresholdTable) -> ThresholdTable:
    """A threshold table from a path or as it is."""
    if isinstance(thresholds, ThresholdTable):
        return thresholds
    return ThresholdTable.load(os.fspath(thresholds))


class Settings:
    """Mode, table and budget, checked against each other and the model. Immutable."""

    def __init__(
        self,
        shape: ModelShape,
        mode: str | None,
        thresholds: str | os.PathLike[str] | ThresholdTable | None,
        budget: int | None,
        sparge: Sparge | None = None,
        parameter: float | None = None,
    ) -> None:
        table = None if thresholds is None else as_table(thresholds)
        if mode is None:
            mode = "dense" if table is None else "threshold"
        self.policy = find_policy(mode)
        self.policy.check_device(shape.device.type)
        self.parameter = self.policy.parameter(parameter)
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
            raise InvalidArgumentError(f"budget is {budget!r}; accepted: a number of blocks")
        if table is not None:
            table.check_model(shape.name, shape.num_layers, shape.num_heads_q, shape.softmax_scale)
            if budget is None:
                budget = table.recommended_budget
        if mode == "threshold":
            if table is None:
                raise InvalidArgumentError(
                    "mode 'threshold' needs thresholds: a file of `bsfa calibrate` for this model"
                )
            if budget is None:
                raise InvalidArgumentError(
                    "budget is missing and the thresholds recommend none; they have "
                    + ", ".join(map(str, table.budgets))
                )
        if mode == "sliding_window" and (budget is None or budget < 0):
            raise InvalidArgumentError(
                f"budget is {budget}; mode 'sliding_window' needs the number of blocks to keep "
                "before the diagonal, 0 or more"
            )
        self.sparge = Sparge() if sparge is None else sparge
        if mode == "sparge":
            sparge_attention.check(self.sparge, shape.device)
        self.mode = mode
        self.table = table
        self.budget = budget
        # [num_layers, num_heads_q, num_q_blocks]; refuses a budget that is not in the file.
        self._values = (
            torch.from_dlpack(table.thresholds(budget))
            if mode == "threshold" and table is not None and budget is not None
            else None
        )
        self._on_device: dict[torch.device, tuple[Tensor, ...]] = {}
        if self._values is not None:  # not in the first forward pass, which may be a timed one
            self.thresholds(0, shape.device)

    def arguments(self) -> dict[str, Any]:
        """Of the kernel's call, but for the thresholds."""
        return self.policy.arguments(self.budget, self.parameter)

    @property
    def block(self) -> tuple[int, int]:
        """The gate grid in tokens."""
        return (128, 64) if self.table is None else self.table.block

    def thresholds(self, layer: int, device: torch.device) -> Tensor:
        """float32 [num_heads_q, num_q_blocks] of one layer."""
        if device not in self._on_device:
            assert self._values is not None
            self._on_device[device] = self._values.to(device).unbind(0)
        return self._on_device[device][layer]


class ModelShape:
    """What a threshold file has to agree with."""

    def __init__(self, name: str, config: Any, attention: nn.Module) -> None:
        self.name = name
        self.num_layers = int(config.num_hidden_layers)
        self.num_heads_q = int(config.num_attention_heads)
        scale = getattr(attention, "scaling", None)
        if scale is None:
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads_q
            scale = head_dim**-0.5
        self.softmax_scale = float(scale)
        parameter = next(attention.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device


class State:
    """One enabled model: settings, the attention that it had before, statistics."""

    def __init__(
        self, settings: Settings, previous: str, shape: ModelShape, compute_type: str, backend: str
    ) -> None:
        self.settings = settings
        self.previous = previous
        self.shape = shape
        self.compute_type = compute_type
        self.backend = backend
        self.observer: Callable[..., None] | None = None
        self.decode_calls = 0
        self.number = next(_NUMBERS)
        self.modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self.traceable = False  # whether `modules` holds every layer, for compiled graphs
        _BY_NUMBER[self.number] = self
        self._layers: dict[int, tuple[str, str | None, Tensor | None, Tensor | None]] = {}
        self._fallbacks: Counter[str] = Counter()
        self._warned: set[str] = set()
        self.functions: dict[type, Callable[..., Any]] = {}
        """The attention function that modules of a class would have called, once looked up."""

    def previous_function(self, module: nn.Module) -> Callable[..., Any]:
        """The attention function that the module would have called."""
        function = self.functions.get(type(module))
        if function is None:
            eager: Any = None
            for base in type(module).__mro__:  # each model defines its own beside its layers
                home = sys.modules.get(base.__module__)
                eager = eager or getattr(home, "eager_attention_forward", None)
            function = ALL_ATTENTION_FUNCTIONS.get_interface(self.previous, eager)
            if function is None:
                raise UnsupportedError(
                    f"{type(module).__name__} had attention {self.previous!r}, which is not found"
                )
            self.functions[type(module)] = function
        return function

    def warn_once(self, what: str) -> None:
        """Says something once for this model."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{self.shape.name}: {what}", FallbackWarning, stacklevel=2)

    def record_fallback(self, layer: int, reason: str) -> None:
        """Notes, and says once, that a call went to the previous attention."""
        self._fallbacks[reason] += 1
        self._record(layer, "previous", reason, None, None)
        self.warn_once(f"attention falls back to {self.previous!r}: {reason}")

    def record(
        self,
        layer: int,
        attention: str,
        reason: str | None,
        kept: Tensor | None,
        visible: Tensor | None,
    ) -> None:
        """Notes what a layer did. kept, visible: int64 [batch, num_heads_q], not yet read."""
        self._record(layer, attention, reason, kept, visible)

    def _record(self, layer: int, *entry: Any) -> None:
        if layer in self._layers:  # the first layer that comes again starts a new forward pass
            self._layers.clear()
        self._layers[layer] = entry

    def block_counts(self) -> tuple[Tensor, Tensor]:
        """Kept and visible blocks by sequence: int64 [batch, num_layers, num_heads_q] on the CPU.

        Of the last forward pass that was not decoding; 0 where a layer fell back.
        """
        batch = max((len(e[2]) for e in self._layers.values() if e[2] is not None), default=0)
        shape = (batch, self.shape.num_layers, self.shape.num_heads_q)
        totals = torch.zeros((2, *shape), dtype=torch.int64)
        for layer, (_, _, kept, visible) in self._layers.items():
            if kept is not None and visible is not None:
                totals[0, :, layer] = kept.cpu()
                totals[1, :, layer] = visible.cpu()
        return totals[0], totals[1]

    def snapshot(self) -> ModelStats:
        """The statistics as plain numbers; waits for the device."""
        layers = []
        for layer, (attention, reason, kept, visible) in sorted(self._layers.items()):
            counts = [() if t is None else tuple(t.sum(dim=0).tolist()) for t in (kept, visible)]
            layers.append(LayerStats(layer, attention, reason, *counts))
        return ModelStats(
            self.settings.mode,
            self.settings.budget,
            self.previous,
            tuple(layers),
            dict(self._fallbacks),
            self.decode_calls,
            self.settings.parameter,
        )


# What a compiled graph knows a model by.
_NUMBERS = itertools.count(1)
_BY_NUMBER: weakref.WeakValueDictionary[int, State] = weakref.WeakValueDictionary()


def module_of(number: int, layer: int) -> tuple[State, nn.Module]:
    """The state that has this number, and its attention layer of this index."""
    state = _BY_NUMBER.get(number)
    module = None if state is None else state.modules.get(layer)
    if state is None or module is None:
        raise InvalidArgumentError(
            f"a compiled graph calls layer {layer} of a model that is not enabled any more"
        )
    return state, module


# By identity of the (text) configuration, which attention layers and masks both have at hand.
STATES: dict[int, State] = {}


def find_state(config: Any) -> State | None:
    """The state of an enabled model, if it is one."""
    return STATES.get(id(config))


def put_state(config: Any, state: State) -> None:
    """Makes the state known to the layers of this configuration."""
    if id(config) not in STATES:
        weakref.finalize(config, STATES.pop, id(config), None)
    STATES[id(config)] = state


def drop_state(config: Any) -> None:
    """Forgets the state."""
    STATES.pop(id(config), None)


def environment() -> tuple[str | None, str | None, int | None]:
    """mode, thresholds and budget as the environment gives them."""
    text = os.environ.get("BSFA_BUDGET") or None
    try:
        budget = None if text is None else int(text)
    except ValueError:
        raise InvalidArgumentError(
            f"BSFA_BUDGET is {text!r}; accepted: a number of blocks"
        ) from None
    return os.environ.get("BSFA_MODE") or None, os.environ.get("BSFA_THRESHOLDS") or None, budget


def state_of(module: nn.Module) -> State:
    """The state of the model that an attention layer belongs to.

    A model that was loaded with attn_implementation="bsfa" gets one from the environment.
    """
    state = find_state(module.config)
    return _state_from_environment(module) if state is None else state


@torch.compiler.disable
def _state_from_environment(module: nn.Module) -> State:
    config = module.config
    shape = ModelShape(type(config).__name__.removesuffix("Config"), config, module)
    settings = Settings(shape, *environment())
    if settings.table is not None:  # the layer alone is at hand, not the weights of the model
        warn_of_other_model(settings.table, getattr(config, "_name_or_path", ""), None)
    previous = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    state = State(settings, previous, shape, "native", "")
    put_state(config, state)
    return state
