"""What a user calls: enable, set_budget, set_mode, disable, stats."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from bsfa._core import ThresholdTable
from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.hf.attention import NAME
from bsfa.hf.sparge import Sparge
from bsfa.hf.state import (
    ModelShape,
    Settings,
    State,
    drop_state,
    environment,
    find_state,
    put_state,
    state_of,
)
from bsfa.hf.statistics import ModelStats
from bsfa.identity import warn_of_other_model

_COMPUTE_TYPES = ("native", "float32", "bfloat16")


def text_config(model: Any) -> Any:
    """The configuration of the decoder, which in a multimodal model is a part of the whole."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise InvalidArgumentError(
            f"model is of type {type(model).__name__}; expected a model of Transformers 5"
        )
    return config.get_text_config(decoder=True)


def attention_layers(model: nn.Module, config: Any) -> list[nn.Module]:
    """The attention layers that share this configuration."""
    return [
        module
        for module in model.modules()
        if getattr(module, "config", None) is config
        and isinstance(getattr(module, "layer_idx", None), int)
        and (hasattr(module, "scaling") or hasattr(module, "num_key_value_groups"))
    ]


def model_shape(model: Any) -> ModelShape:
    """Layers, heads and softmax scale, from the configuration and the layers."""
    config = text_config(model)
    layers = attention_layers(model, config)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    if not layers:
        raise UnsupportedError(f"{name}: {type(model).__name__} has no attention layers to serve")
    return ModelShape(name, config, layers[0])


def _switch(model: Any, config: Any, implementation: str) -> None:
    """Sets the attention implementation of the decoder alone."""
    if config is model.config:
        model.set_attn_implementation(implementation)
    else:
        parts = [n for n in model.config.sub_configs if getattr(model.config, n, None) is config]
        if len(parts) != 1:
            raise UnsupportedError(
                f"{type(model).__name__} has its decoder's configuration in no sub-configuration"
            )
        model.set_attn_implementation({parts[0]: implementation})


def enable(
    model: Any,
    thresholds: str | os.PathLike[str] | ThresholdTable | None = None,
    budget: int | None = None,
    *,
    mode: str | None = None,
    sparge: Sparge | None = None,
    parameter: float | None = None,
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
        mode: threshold (the method), dense, mass (without calibration; CPU), sliding_window or
            sparge (the paper's baselines), skip_softmax or skip_softmax_outwards (baselines; CPU).
            Default: BSFA_MODE, then threshold with thresholds and dense without.
        sparge: for mode sparge, which runs the package spas_sage_attn: how much that keeps.
        parameter: of mass its c (default 0.1), of the skip_softmax modes their lambda (default
            0.03).
        compute_type: native, float32 or bfloat16 (inputs rounded to it).
        backend: a name from `bsfa.backends()`; empty: the best that serves the call.
        allow_other_model: no `OtherModelWarning` if the thresholds name other weights (by the
            fingerprint that calibration puts beside the model's name) or another model.

    Decoding (fewer than 32 queries a call) and whatever bsfa does not serve run the attention that
    the model had before, reported by a `FallbackWarning` and in `stats`. Raises bsfa.Error before
    anything is changed. Calling it again replaces the settings.
    """
    default_mode, default_thresholds, default_budget = environment()
    mode = default_mode if mode is None else mode
    thresholds = default_thresholds if thresholds is None else thresholds
    budget = default_budget if budget is None else budget
    if compute_type not in _COMPUTE_TYPES:
        raise InvalidArgumentError(
            f"compute_type is {compute_type!r}; accepted: {', '.join(_COMPUTE_TYPES)}"
        )
    config = text_config(model)
    shape = model_shape(model)
    settings = Settings(shape, mode, thresholds, budget, sparge, parameter)
    if settings.table is not None and not allow_other_model:
        warn_of_other_model(settings.table, getattr(config, "_name_or_path", ""), model)
    old = find_state(config)
    previous = old.previous if old is not None else config._attn_implementation or "eager"
    if previous == NAME:  # loaded with attn_implementation="bsfa", and not yet run
        previous = state_of(attention_layers(model, config)[0]).previous
    state = State(settings, previous, shape, compute_type, backend)
    for module in attention_layers(model, config):
        state.modules[int(module.layer_idx)] = module  # type: ignore[arg-type]
        state.previous_function(module)  # looked up now, so that a compiled graph finds it there
    state.traceable = len(state.modules) == shape.num_layers
    put_state(config, state)
    try:
        _switch(model, config, NAME)
        if config._attn_implementation != NAME:
            raise UnsupportedError(
                f"{type(model).__name__} does not take its attention from Transformers' "
                "AttentionInterface, so bsfa cannot serve it"
            )
    except Exception:
        drop_state(config)
        raise


def _enabled(model: Any) -> tuple[Any, State]:
    config = text_config(model)
    state = find_state(config)
    if state is None and config._attn_implementation == NAME:
        state = state_of(attention_layers(model, config)[0])
    if state is None:
        raise InvalidArgumentError(
            f"{type(model).__name__} is not enabled; call bsfa.enable(model, ...) first"
        )
    return config, state


def set_budget(model: Any, budget: int) -> None:
    """Changes the number of blocks kept; the next forward pass uses it."""
    _, state = _enabled(model)
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
    _, state = _enabled(model)
    old = state.settings
    budget = old.budget if budget is None else budget
    if parameter is None and mode == old.mode:
        parameter = old.parameter
    state.settings = Settings(state.shape, mode, old.table, budget, sparge or old.sparge, parameter)


def disable(model: Any) -> None:
    """Gives the model the attention back that it had before `enable`."""
    config, state = _enabled(model)
    _switch(model, config, state.previous)
    drop_state(config)


def stats(model: Any) -> ModelStats:
    """Density by layer and head of the last forward pass that was not decoding."""
    return _enabled(model)[1].snapshot()
