"""What a results file says of the model and of where it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from typing import Any

import torch

from bsfa.eval import results
from bsfa.hf.models import model_shape, text_config
from bsfa.provenance import built_from

__all__ = ["context_of", "describe_device", "describe_model", "make_header", "versions"]


def context_of(model: Any) -> int | None:
    """Tokens that the model's positions reach; None if its configuration does not say."""
    return getattr(text_config(model), "max_position_embeddings", None)


def describe_model(model: Any, name: str | None = None) -> results.Model:
    """The shape of a model of Transformers."""
    config = text_config(model)
    shape = model_shape(model, counted=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // shape.num_heads_q
    return results.Model(
        name or os.path.basename(os.path.normpath(shape.name)),
        shape.num_layers,
        shape.num_heads_q,
        int(getattr(config, "num_key_value_heads", None) or shape.num_heads_q),
        int(head_dim),
        int(context_of(model) or 0),
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> results.Device:
    """Name and driver of the GPU, or name and cores of the CPU."""
    if device.type == "cuda":
        try:
            with open("/proc/driver/nvidia/version") as file:
                match = re.search(r"\d+\.\d+(\.\d+)?", file.readline())
                driver = match.group() if match else ""
        except OSError:
            driver = ""
        return results.Device("cuda", torch.cuda.get_device_name(device), driver)
    return results.Device("cpu", f"{_cpu_name()}, {os.cpu_count()} logical cores")


def versions() -> dict[str, str]:
    """Of what decides the numbers; "" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in ("bsfa", "torch", "transformers", "lm_eval"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    if not found["bsfa"]:
        from bsfa import __version__

        found["bsfa"] = __version__
    found["commit"] = built_from()
    return found


def make_header(
    model: Any,
    *,
    seed: int,
    tasks: Sequence[str],
    prompts_per_point: int,
    thresholds: results.Thresholds | None,
    settings: dict[str, Any],
    model_name: str | None = None,
) -> results.Header:
    """The header of a results file for this model as it stands."""
    return results.Header(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model=describe_model(model, model_name),
        versions=versions(),
        device=describe_device(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        seed=seed,
        thresholds=thresholds,
        tasks=list(tasks),
        prompts_per_point=prompts_per_point,
        settings=settings,
    )
