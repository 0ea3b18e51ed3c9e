"""What a user calls: enable, set_budget, set_mode, disable, stats."""

from __future__ import annotations

import os
from typing import Any

from bsfa._core import ThresholdTable
from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.hf.marks import give_marks, take_marks
from bsfa.hf.models import (
    NAME,
    attention_layers,
    from_environment,
    model_shape,
    previous_of,
    state_of,
    switch,
    text_config,
)
from bsfa.hf.sparge import Sparge
from bsfa.hf.state import (
    SWITCHED,
    Settings,
    State,
    as_table,
    drop_state,
    environment,
    put_state,
)
from bsfa.hf.statistics import ModelStats
from bsfa.identity import warn_of_other_model
from bsfa.policies import COVERAGE
from bsfa.text import quote

_COMPUTE_TYPES = ("native", "float32", "bfloat16")


def enable(
    model: Any,
    thresholds: str | os.PathLike[str] | ThresholdTable | None = None,
    budget: int | None = None,
    *,
    mode: str | None = None,
    sparge: Sparge | None = None,
    parameter: float | None = None,
    coverage: float | None = None,
    compute_type: str = "native",
    backend: str = "",
    allow_other_model: bool = False,
) -> None:
    """Makes a Transformers model prefill with bsfa; no weights are touched.

    Args:
        model: a causal language model of Transformers 5.
        thresholds: a threshold file for this model, or a loaded table.
            Default: the environment's BSFA_THRESHOLDS.
        budget: key/value blocks that a query block keeps beside its diagonal; one of the file's.
            Default: BSFA_BUDGET, then the budget that the file recommends.
        mode: threshold (the method), coverage (blocks chosen before they are scored; without
            calibration), dense, mass (without calibration; CPU), sliding_window or sparge (the
            paper's baselines), skip_softmax or skip_softmax_outwards (baselines; CPU).
            Default: BSFA_MODE, then threshold with thresholds and dense without.
        sparge: for mode sparge, which runs the package spas_sage_attn: how much that keeps.
        parameter: of coverage its share (default 0.95), of mass its c (default 0.1), of the
            skip_softmax modes their lambda (default 0.03).
        coverage: short for mode coverage with this parameter: each query block visits only the
            blocks that hold this share of the attention of 32 of its rows, which are scored
            exactly. The same value means the same at every length. 0.95 is fast, 0.98 careful.
            Default: BSFA_COVERAGE, unless a mode or thresholds are given.
        compute_type: native, float32 or bfloat16 (inputs rounded to it).
        backend: a name from `bsfa.backends()`; empty: the best that serves the call.
        allow_other_model: no `OtherModelWarning` if the thresholds name other weights (by the
            fingerprint that calibration puts beside the model's name) or another model.

    Decoding (fewer than 32 queries a call) and whatever bsfa does not serve run the attention that
    the model had before, reported by a `FallbackWarning` and in `stats`. Raises bsfa.Error before
    anything is changed. Calling it again replaces the settings.
    """
    if coverage is not None:
        if mode not in (None, COVERAGE) or parameter is not None:
            raise InvalidArgumentError(
                f"coverage is {coverage!r} with "
                + (f"mode {mode!r}" if parameter is None else f"parameter {parameter!r}")
                + "; accepted: coverage alone, or mode 'coverage' with parameter"
            )
        mode, parameter = COVERAGE, coverage
    default_mode, default_thresholds, default_budget, default_coverage = environment()
    if mode is None and thresholds is None and parameter is None:
        parameter = default_coverage
    mode = default_mode if mode is None else mode
    thresholds = default_thresholds if thresholds is None else thresholds
    budget = default_budget if budget is None else budget
    if compute_type not in _COMPUTE_TYPES:
        raise InvalidArgumentError(
            f"compute_type is {quote(compute_type)}; accepted: {', '.join(_COMPUTE_TYPES)}"
        )
    config = text_config(model)
    shape = model_shape(model)
    table = None if thresholds is None else as_table(thresholds)
    if table is not None and table.num_layers != shape.num_layers:
        # Some models call their modules more than once, or not all of them.
        shape = model_shape(model, counted=True)
    settings = Settings(shape, mode, table, budget, sparge, parameter)
    if settings.table is not None and not allow_other_model:
        warn_of_other_model(settings.table, getattr(config, "_name_or_path", ""), model)
    old = state_of(model)
    state = State(settings, previous_of(model), shape, config, compute_type, backend)
    marked = take_marks(model)
    put_state(config, state)
    try:
        state.mark(attention_layers(model, config))
        switch(model, config, NAME)
        if config._attn_implementation != NAME:
            raise UnsupportedError(
                f"{type(model).__name__} does not take its attention from Transformers' "
                "AttentionInterface, so bsfa cannot serve it"
            )
    except BaseException:
        take_marks(model)
        give_marks(marked)
        drop_state(config, state)
        raise
    if old is not None:
        drop_state(config, old)


def _enabled(model: Any) -> tuple[Any, State]:
    config = text_config(model)
    state = state_of(model)
    switched = SWITCHED.get(id(config))
    alone = switched is None or switched.by_environment
    if state is None and alone and config._attn_implementation == NAME:
        model_shape(model)  # refuses a model without attention layers
        state = from_environment(config, attention_layers(model, config))
    if state is None:
        raise InvalidArgumentError(
            f"{type(model).__name__} is not enabled; call bsfa.enable(model, ...) first"
        )
    return config, state


def _running(model: Any) -> State:
    """The state of a model that runs bsfa: what it runs is asked, since others may set it."""
    config, state = _enabled(model)
    if config._attn_implementation != NAME:
        raise InvalidArgumentError(
            f"{type(model).__name__} runs attention {config._attn_implementation!r}, which was set "
            "after bsfa.enable; call bsfa.enable(model, ...) again"
        )
    return state


def set_budget(model: Any, budget: int) -> None:
    """Changes the number of blocks kept; the next forward pass uses it."""
    state = _running(model)
    old = state.settings
    state.settings = Settings(state.shape, old.mode, old.table, budget, old.sparge, old.parameter)


def set_mode(
    model: Any,
    mode: str,
    budget: int | None = None,
    *,
    sparge: Sparge | None = None,
    parameter: float | None = None,
) -> None:
    """Changes the mode (and, if given, its parameters); the next forward pass uses it."""
    state = _running(model)
    old = state.settings
    budget = old.budget if budget is None else budget
    if parameter is None and mode == old.mode:
        parameter = old.parameter
    state.settings = Settings(state.shape, mode, old.table, budget, sparge or old.sparge, parameter)


def disable(model: Any) -> None:
    """Gives the model the attention back that it had before `enable`.

    A model whose attention somebody has set since then keeps what was set.
    """
    config, state = _enabled(model)
    take_marks(model)
    last = drop_state(config, state)
    if config._attn_implementation == NAME:
        if last:
            switch(model, config, state.previous)
        else:  # another model shares the configuration, which has to go on naming bsfa
            SWITCHED[id(config)].by_environment = False


def stats(model: Any) -> ModelStats:
    """Density by layer and head of the last forward pass that was not decoding.

    Layers are the attention calls of a forward pass, in their order.
    """
    return _running(model).snapshot()
