"""Which weights a model has, and whether thresholds were made for them (docs/method.md)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bsfa._core import ThresholdTable, weight_fingerprint
from bsfa.errors import OtherModelWarning

__all__ = ["fingerprint", "warn_of_other_model"]

SAMPLES = 64  # values of each parameter


def _decoder(model: Any) -> Any:
    """The part that thresholds depend on: the same in a causal model and in its base model."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    return found if found is not None else getattr(model, "base_model", model)


def _sample(parameter: Tensor) -> Tensor:
    """uint8 [at most 128]: values spread evenly over the parameter, rounded to bfloat16."""
    count = parameter.numel()
    if count > SAMPLES:
        indices = [i * (count - 1) // (SAMPLES - 1) for i in range(SAMPLES)]
    else:
        indices = list(range(count))
    flat = torch.tensor(indices, device=parameter.device, dtype=torch.int64)
    # By its axes: flattening would copy a parameter that is not contiguous.
    places = torch.unravel_index(flat, parameter.shape) if parameter.dim() > 0 else ()
    values = (parameter[places] if parameter.dim() > 0 else parameter[None][flat]).contiguous()
    if values.is_floating_point() and values.element_size() > 1:
        return values.to(torch.bfloat16).view(torch.uint8)
    return values.view(torch.uint8).reshape(len(indices), -1)[:, 0].contiguous()


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """The fingerprint of the decoder's weights; empty where they cannot be read here."""
    named = dict(_decoder(model).named_parameters())
    if not named or any(p.is_meta for p in named.values()):
        return ""  # offloaded, or not loaded at all
    samples = {name: _sample(p.detach()) for name, p in named.items() if p.numel() > 0}
    # One transfer from each device.
    data: dict[str, bytes] = {}
    for device in {s.device for s in samples.values()}:
        names = [name for name, s in samples.items() if s.device == device]
        joined = bytes(torch.cat([samples[name] for name in names]).cpu().numpy())
        at = 0
        for name in names:
            size = len(samples[name])
            data[name] = joined[at : at + size]
            at += size
    return weight_fingerprint(
        "torch", [(name, list(p.shape), data.get(name, b"")) for name, p in named.items()]
    )


def warn_of_other_model(table: ThresholdTable, name: str, model: Any) -> None:
    """Warns if the thresholds name other weights, or another model; name: empty if there is none.

    model: None where only its name is known.
    """
    own = ""
    if model is not None and table.fingerprint.startswith("torch:"):
        own = fingerprint(model)
    warning = table.other_model(name, own)
    if warning:
        warnings.warn(
            f"{warning} (allow_other_model=True if that is meant)", OtherModelWarning, stacklevel=3
        )
