"""Transformers models by folder, name or .gguf file."""

from __future__ import annotations

import os
from typing import Any

from bsfa.errors import FileError, InvalidArgumentError
from bsfa.packages import need
from bsfa.text import quote, quote_path, said

__all__ = ["DTYPES", "load_config", "load_model"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes for a folder, a name or a .gguf file."""
    if name.endswith(".gguf"):
        if not os.path.isfile(name):
            raise FileError(f"--model: there is no file {quote_path(name)}")
        need("gguf", "accelerate")
        return os.path.dirname(os.path.abspath(name)), {"gguf_file": os.path.basename(name)}
    return name, {}


def _refusal(name: str, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"--model: {quote_path(name)} cannot be loaded: {said(error)}")


def load_config(name: str) -> Any:
    """The configuration of a model, without its weights."""
    need("torch", "transformers")
    import transformers

    source, extra = _source(name)
    try:
        return transformers.AutoConfig.from_pretrained(source, **extra)
    except (OSError, ValueError) as error:
        raise _refusal(name, error) from error


def load_model(
    name: str, dtype: str = "auto", device: str = "auto", threads: int | None = None
) -> tuple[Any, Any]:
    """The model, in evaluation mode on its device, and its tokenizer.

    Args:
        name: a folder, a name that Transformers knows, or a .gguf file.
        dtype: of the weights: auto (as stored; bfloat16 for .gguf), float32, bfloat16, float16.
        device: as torch names it; auto: cuda if there is any, else cpu.
        threads: of torch on the CPU; None: as they are.
    """
    need("torch", "transformers")
    import torch
    import transformers

    source, extra = _source(name)
    named = dict(extra)
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"dtype is {quote(dtype)}; accepted: {', '.join(DTYPES)}")
    chosen: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    if extra and dtype == "auto":
        chosen = torch.bfloat16
    if extra and hasattr(transformers, "GgufConfig"):
        # Packed weights have no fast product on the CPU; older versions always unpack them.
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=chosen, **extra
        )
        model = model.to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **named)
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(name, error) from error
    model.config._name_or_path = name
    return model.eval(), tokenizer
