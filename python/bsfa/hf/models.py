"""The attention layers of a model, and how a state gets to them."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bsfa.errors import FallbackWarning, InvalidArgumentError, UnsupportedError
from bsfa.hf.marks import ATTRIBUTE, Mark, give_marks, mark_on, take_marks
from bsfa.hf.state import (
    SWITCHED,
    ModelShape,
    Settings,
    State,
    drop_state,
    environment,
    put_state,
)
from bsfa.identity import warn_of_other_model

NAME = "bsfa"

# Fewer queries than this are decoding, and stay with the attention that the model had.
MIN_QUERIES = 32


def text_config(model: Any) -> Any:
    """The configuration of the decoder, which in a multimodal model is a part of the whole."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise InvalidArgumentError(
            f"model is of type {type(model).__name__}; expected a model of Transformers 5"
        )
    return config.get_text_config(decoder=True)


def decoder_of(model: Any) -> Any:
    """The part of a model that has its attention layers, without the head."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    return found if found is not None else model.base_model


def attention_layers(model: nn.Module, config: Any) -> list[nn.Module]:
    """The attention modules that share this configuration, in their order in the model."""
    return [
        module
        for module in model.modules()
        if getattr(module, "config", None) is config
        and isinstance(getattr(module, "layer_idx", None), int)
        and (hasattr(module, "scaling") or hasattr(module, "num_key_value_groups"))
    ]


def model_shape(model: Any, counted: bool = False) -> ModelShape:
    """Layers, heads and softmax scale, from the configuration and the layers.

    counted: by a short forward pass, which attention calls there are; else one of each module.
    """
    config = text_config(model)
    layers = attention_layers(model, config)
    name = getattr(config, "_name_or_path", "") or type(model).__name__
    if not layers:
        raise UnsupportedError(f"{name}: {type(model).__name__} has no attention layers to serve")
    shape = ModelShape(name, config, layers)
    if counted:
        _count_calls(model, shape)
    return shape


def _count_calls(model: Any, shape: ModelShape) -> None:
    """Finds out which modules one forward pass calls, and how often."""
    state = State(
        Settings(shape, "dense", None, None), previous_of(model), shape, text_config(model)
    )
    state.trace = []
    vocabulary = model.get_input_embeddings().weight
    device = None if vocabulary.is_meta else vocabulary.device
    ids = torch.arange(MIN_QUERIES, device=device)[None] % vocabulary.shape[0]
    with installed(model, state), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        decoder_of(model)(input_ids=ids, use_cache=False)
    if not state.trace:
        raise UnsupportedError(
            f"{shape.name}: no attention layer of {type(model).__name__} takes its attention from "
            "Transformers' AttentionInterface"
        )
    if sorted(state.trace) == list(range(shape.num_modules)):
        return  # one call of each, which is what is assumed of a model that nobody has run
    if len(state.trace) == shape.num_modules:
        raise UnsupportedError(
            f"{shape.name}: of {shape.num_modules} attention modules some are called more than "
            "once in a forward pass and others never; thresholds cannot tell their calls apart"
        )
    shape.set_calls(state.trace)


def switch(model: Any, config: Any, implementation: str) -> None:
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


def state_of(model: Any) -> State | None:
    """The state of an enabled model; None if it is not, whatever its configuration says."""
    for module in attention_layers(model, text_config(model)):
        mark = mark_on(module)
        if mark is not None:
            return mark.state
    return None


def previous_of(model: Any) -> str:
    """The attention that the model runs where bsfa does not."""
    config = text_config(model)
    if config._attn_implementation != NAME:  # asked each time: others may set it
        return config._attn_implementation or "eager"
    switched = SWITCHED.get(id(config))
    return _default_previous(config) if switched is None else switched.previous


def _default_previous(config: Any) -> str:
    """For a model that was loaded with attn_implementation="bsfa"."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


@contextlib.contextmanager
def installed(model: Any, state: State) -> Iterator[State]:
    """The model, not in training, with this state instead of its own; afterwards as it was."""
    config = text_config(model)
    implementation, training = config._attn_implementation, model.training
    switched = SWITCHED.get(id(config))
    before = take_marks(model)
    put_state(config, state)
    state.mark(attention_layers(model, config))
    try:
        switch(model, config, NAME)
        model.eval()
        yield state
    finally:
        model.train(training)
        take_marks(model)
        give_marks(before)
        drop_state(config, state)
        if switched is not None:  # also if its own states are none yet
            SWITCHED[id(config)] = switched
        switch(model, config, implementation)


@torch.compiler.disable
def mark_of(module: nn.Module) -> Mark | None:
    """The mark of a layer that has none yet, and is called.

    A model that was loaded with attn_implementation="bsfa" gets its state from the environment at
    its first call; a layer under a configuration that another model was enabled with gets none.
    """
    config = module.config
    switched = SWITCHED.get(id(config))
    if switched is not None and not switched.by_environment:
        return None
    model = _model_with(module)
    layers = [module] if model is None else attention_layers(model, config)
    if not any(each is module for each in layers):
        layers.append(module)
    from_environment(config, layers)
    return mark_on(module)


def from_environment(config: Any, layers: list[nn.Module]) -> State:
    """A state as the environment describes it, for a model that was loaded with bsfa."""
    shape = ModelShape(type(config).__name__.removesuffix("Config"), config, layers)
    mode, thresholds, budget, parameter = environment()
    settings = Settings(shape, mode, thresholds, budget, parameter=parameter)
    if settings.table is not None:  # before any weights may be there
        warn_of_other_model(settings.table, getattr(config, "_name_or_path", ""), None)
    state = State(settings, _default_previous(config), shape, config)
    put_state(config, state, by_environment=True)
    state.mark(layers)
    return state


def _model_with(module: nn.Module) -> Any:
    """The model that a layer is part of. A module does not know it, so all there are are asked."""
    models = [m for m in gc.get_objects() if issubclass(type(m), PreTrainedModel)]
    holding = [m for m in models if any(each is module for each in m.modules())]
    return max(holding, key=lambda m: sum(1 for _ in m.modules()), default=None)


__all__ = [
    "ATTRIBUTE",
    "MIN_QUERIES",
    "NAME",
    "attention_layers",
    "decoder_of",
    "from_environment",
    "installed",
    "mark_of",
    "model_shape",
    "previous_of",
    "state_of",
    "switch",
    "text_config",
]
