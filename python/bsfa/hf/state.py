"""The settings and the statistics of one enabled model."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bsfa._core import ThresholdTable
from bsfa.errors import FallbackWarning, InvalidArgumentError, UnsupportedError
from bsfa.hf.marks import ATTRIBUTE, Mark
from bsfa.hf.reading import reads_its_mask
from bsfa.hf.sparge import Sparge
from bsfa.hf.statistics import LayerStats, ModelStats
from bsfa.policies import COVERAGE, METHOD, find_policy
from bsfa.text import quote, shown

Call = tuple[int, int]
"""An attention call of a forward pass: its module's position, and which of its calls it is."""


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
            mode = "dense" if table is None else METHOD
        self.policy = find_policy(mode)
        if shape.device is not None:
            self.policy.check_device(shape.device.type)
        self.parameter = self.policy.parameter(parameter)
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
            raise InvalidArgumentError(f"budget is {shown(budget)}; accepted: a number of blocks")
        if table is not None:
            table.check_model(shape.name, shape.num_layers, shape.num_heads_q, shape.softmax_scale)
            if budget is None:
                budget = table.recommended_budget
        if self.policy.needs_thresholds:
            if table is None:
                raise InvalidArgumentError(
                    f"mode {mode!r} needs thresholds: a file of `bsfa calibrate` for this model"
                )
            if budget is None:
                raise InvalidArgumentError(
                    "budget is missing and the thresholds recommend none; they have "
                    + ", ".join(map(str, table.budgets))
                )
        self.policy.check_budget(budget)
        self.sparge = Sparge() if sparge is None else sparge
        # A policy that has a module of its own is run by that.
        self.module = importlib.import_module(self.policy.module) if self.policy.module else None
        if self.module is not None:
            self.module.check(self.sparge, shape.device)
        self.mode = mode
        self.table = table
        self.budget = budget
        # [num_layers, num_heads_q, num_q_blocks]; refuses a budget that is not in the file.
        self._values = (
            torch.from_dlpack(table.thresholds(budget))
            if self.policy.needs_thresholds and table is not None and budget is not None
            else None
        )
        self._on_device: dict[torch.device, tuple[Tensor, ...]] = {}
        # Not in the first forward pass, which may be a timed one.
        if self._values is not None and shape.device is not None:
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

    def __init__(self, name: str, config: Any, layers: Sequence[nn.Module]) -> None:
        """layers: the model's attention modules, in their order."""
        self.name = name
        self.num_heads_q = int(config.num_attention_heads)
        scale = getattr(layers[0], "scaling", None)
        if scale is None:
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads_q
            scale = head_dim**-0.5
        self.softmax_scale = float(scale)
        parameter = next(layers[0].parameters(), None)
        self.device: torch.device | None = torch.device("cpu")
        """Where the model computes; None if its weights are elsewhere until they are needed."""
        if parameter is not None:
            self.device = None if parameter.is_meta else parameter.device
        self.num_modules = len(layers)
        self.set_calls(range(len(layers)))

    def set_calls(self, calls: Sequence[int]) -> None:
        """calls: the module of each attention call that a forward pass makes, by position.

        Without it every module makes one call, in their order.
        """
        self.calls = tuple(calls)
        self._counts = Counter(calls)
        seen: Counter[int] = Counter()
        self._rows: dict[tuple[int, int], int] = {}
        for row, position in enumerate(calls):
            self._rows[position, seen[position]] = row
            seen[position] += 1

    @property
    def num_layers(self) -> int:
        """Attention calls of a forward pass: the layers of a threshold file."""
        return len(self.calls)

    def calls_of(self, position: int) -> int:
        """How many calls of a forward pass a module makes."""
        return self._counts[position]

    def row(self, call: tuple[int, int]) -> int | None:
        """The layer of a threshold file that a call belongs to, if it is one of those known."""
        return self._rows.get(call)


def previous_function(name: str, module: nn.Module) -> Callable[..., Any]:
    """The attention function that a module calls under this attention implementation."""
    eager: Any = None
    for base in type(module).__mro__:  # each model defines its own beside its layers
        home = sys.modules.get(base.__module__)
        eager = eager or getattr(home, "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    if function is None:
        raise UnsupportedError(
            f"{type(module).__name__} had attention {name!r}, which is not found"
        )
    return function


# What a call did: attention, reason, kept and visible blocks, what was left out.
Noted = tuple[str, str | None, Tensor | None, Tensor | None, Tensor | None]


class State:
    """One enabled model: settings, the attention that it had before, statistics."""

    def __init__(
        self,
        settings: Settings,
        previous: str,
        shape: ModelShape,
        config: Any,
        compute_type: str = "native",
        backend: str = "",
    ) -> None:
        self.settings = settings
        self._config = weakref.ref(config)
        self.previous = previous
        self.shape = shape
        self.compute_type = compute_type
        self.backend = backend
        self.observer: Callable[..., None] | None = None
        """Called with each prefill: layer, plan, block maxima or None, rows."""
        self.trace: list[int] | None = None
        """The positions of the modules that are called, where somebody asks."""
        self.reads_masks = False
        self.decode_calls = 0
        self.number = next(_NUMBERS)
        self.modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        _BY_NUMBER[self.number] = self
        self._layers: dict[Call, Noted] = {}
        self._fallbacks: Counter[str] = Counter()
        self._warned: set[str] = set()
        self.functions: dict[type, Callable[..., Any]] = {}
        """The attention function that modules of a class would have called, once looked up."""

    @property
    def config(self) -> Any:
        """The configuration that the attention layers hold; None if it is gone."""
        return self._config()

    def copy_for(self, config: Any) -> State:
        """The same settings for a copy of the model, registered for the copy's configuration."""
        state = State(
            self.settings, self.previous, self.shape, config, self.compute_type, self.backend
        )
        state.functions, state.reads_masks = dict(self.functions), self.reads_masks
        put_state(config, state)
        return state

    def mark(self, layers: Sequence[nn.Module]) -> None:
        """Makes the attention modules of the model run by this state."""
        kinds: set[Any] = {type(module) for module in layers}
        self.reads_masks = any(reads_its_mask(kind) for kind in kinds)
        for position, module in enumerate(layers):
            Mark(self, position, module)
            self.previous_function(module)  # looked up now, so that a compiled graph finds it there

    def previous_function(self, module: nn.Module) -> Callable[..., Any]:
        """The attention function that the module would have called."""
        function = self.functions.get(type(module))
        if function is None:
            function = self.functions[type(module)] = previous_function(self.previous, module)
        return function

    def warn_once(self, what: str) -> None:
        """Says something once for this model."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{self.shape.name}: {what}", FallbackWarning, stacklevel=2)

    def record_fallback(self, call: Call, reason: str) -> None:
        """Notes, and says once, that a call went to the previous attention."""
        self._fallbacks[reason] += 1
        self.record(call, "previous", reason, None, None)
        self.warn_once(f"attention falls back to {self.previous!r}: {reason}")

    def record(
        self,
        call: Call,
        attention: str,
        reason: str | None,
        kept: Tensor | None,
        visible: Tensor | None,
        left_out: Tensor | None = None,
    ) -> None:
        """Notes what a call did. kept, visible: int64 [batch, num_heads_q]; left_out: float32
        [batch, num_heads_q, query blocks]; not yet read.
        """
        if call in self._layers:  # the first call that comes again starts a new forward pass
            self._layers.clear()
        self._layers[call] = (attention, reason, kept, visible, left_out)

    def row(self, call: Call) -> int | None:
        """The layer of a threshold file that a call belongs to."""
        return self.shape.row(call)

    def _rows(self) -> list[int]:
        """The layer of each call that was noted: by the known calls, or else in their order."""
        rows = [self.shape.row(call) for call in self._layers]
        known = [row for row in rows if row is not None]
        return known if len(known) == len(rows) else list(range(len(rows)))

    def block_counts(self) -> tuple[Tensor, Tensor]:
        """Kept and visible blocks by sequence: int64 [batch, num_layers, num_heads_q] on the CPU.

        Of the last forward pass that was not decoding; 0 where a layer fell back.
        """
        batch = max((len(e[2]) for e in self._layers.values() if e[2] is not None), default=0)
        layers = max(self.shape.num_layers, len(self._layers))
        totals = torch.zeros((2, batch, layers, self.shape.num_heads_q), dtype=torch.int64)
        for row, (_, _, kept, visible, _) in zip(self._rows(), self._layers.values(), strict=True):
            if kept is not None and visible is not None:
                totals[0, :, row] = kept.cpu()
                totals[1, :, row] = visible.cpu()
        return totals[0], totals[1]

    def snapshot(self) -> ModelStats:
        """The statistics as plain numbers; waits for the device."""
        layers = []
        noted = zip(self._rows(), self._layers.values(), strict=True)
        for row, entry in sorted(noted, key=lambda each: each[0]):
            attention, reason, kept, visible, left_out = entry
            counts = [() if t is None else tuple(t.sum(dim=0).tolist()) for t in (kept, visible)]
            lost: tuple[float, ...] = ()
            most = math.nan
            if left_out is not None and left_out.numel() > 0:
                lost = tuple(left_out.mean(dim=(0, 2)).tolist())
                most = left_out.max().item()
            layers.append(LayerStats(row, attention, reason, counts[0], counts[1], lost, most))
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


def module_of(number: int, position: int) -> nn.Module:
    """The attention module at this position of the model whose state has this number."""
    state = _BY_NUMBER.get(number)
    module = None if state is None else state.modules.get(position)
    if module is None or ATTRIBUTE not in module.__dict__:
        raise InvalidArgumentError(
            f"a compiled graph calls attention module {position} of a model that is not enabled "
            "any more"
        )
    return module


class Switched:
    """A configuration whose layers call bsfa: one model's, or that of several which share it."""

    def __init__(self, previous: str, by_environment: bool) -> None:
        self.previous = previous
        """The attention implementation that it had before."""
        self.by_environment = by_environment
        """Whether it was loaded with attn_implementation="bsfa", which every layer then runs."""
        self.states: weakref.WeakSet[State] = weakref.WeakSet()

    @property
    def reads_masks(self) -> bool:
        """Whether the code of a model computes with its mask, where that can be told from it."""
        return any(state.reads_masks for state in self.states)


# By identity of the (text) configuration: it is all that those who ask for a mask have at hand.
SWITCHED: dict[int, Switched] = {}


def put_state(config: Any, state: State, by_environment: bool = False) -> None:
    """Notes that the configuration's layers call bsfa, some of them with this state."""
    if id(config) not in SWITCHED:
        weakref.finalize(config, SWITCHED.pop, id(config), None)
        SWITCHED[id(config)] = Switched(state.previous, by_environment)
    SWITCHED[id(config)].previous = state.previous
    SWITCHED[id(config)].states.add(state)


def drop_state(config: Any, state: State) -> bool:
    """Forgets the state; whether it was the last one of this configuration."""
    switched = SWITCHED.get(id(config))
    if switched is not None:
        switched.states.discard(state)
        if switched.states:
            return False
        del SWITCHED[id(config)]
    return True


def environment() -> tuple[str | None, str | None, int | None, float | None]:
    """mode, thresholds, budget and parameter as the environment gives them.

    BSFA_COVERAGE is the mode and its parameter.
    """
    text = os.environ.get("BSFA_BUDGET") or None
    try:
        budget = None if text is None else int(text)
    except ValueError:
        raise InvalidArgumentError(
            f"BSFA_BUDGET is {quote(text or '')}; accepted: a number of blocks"
        ) from None
    mode = os.environ.get("BSFA_MODE") or None
    text = os.environ.get("BSFA_COVERAGE") or None
    try:
        coverage = None if text is None else float(text)
    except ValueError:
        raise InvalidArgumentError(
            f"BSFA_COVERAGE is {text!r}; accepted: a number above 0, up to 1"
        ) from None
    if coverage is not None:
        if mode not in (None, COVERAGE):
            raise InvalidArgumentError(
                f"BSFA_COVERAGE is {text!r} and BSFA_MODE {mode!r}; accepted: one of them"
            )
        mode = COVERAGE
    return mode, os.environ.get("BSFA_THRESHOLDS") or None, budget, coverage
