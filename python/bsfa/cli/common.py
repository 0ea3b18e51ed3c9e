"""What the verbs share."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from typing import Any

from bsfa.errors import FileError, FormatError, InvalidArgumentError, UnsupportedError


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag --json of every verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def numbers(text: str) -> list[int]:
    """32,64,96 as a list."""
    try:
        listed = [int(part) for part in text.split(",") if part]
    except ValueError:
        listed = []
    if not listed or min(listed) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0")
    return listed


def positive(text: str) -> int:
    """A whole number above 0."""
    return numbers(text)[0] if "," not in text else numbers("")[0]


def print_json(value: Any) -> None:
    """One JSON object on stdout; numbers that are none become null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def read_text(argument: str, path: str) -> str:
    """A UTF-8 text file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise FileError(f"{argument}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{argument}: '{path}' is not UTF-8 text") from error


def need(*packages: str) -> None:
    """Refuses, naming what is to be installed, if a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"this needs {', '.join(missing)}: install it with pip (for instance "
            f"'pip install {' '.join(missing)}')"
        )


class Progress:
    """Samples done and the time left, on stderr: a bar on a terminal, nothing elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begin = time.monotonic()
        self._first: int | None = None
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int, name: str) -> None:
        """Draws; done == total ends it."""
        if not self._terminal:
            return
        if self._first is None:
            self._first = done
        left = ""
        if done > self._first:
            seconds = (time.monotonic() - self._begin) / (done - self._first) * (total - done)
            left = f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        end = "\n" if done == total else ""
        print(
            f"\r\033[K{self._title} [{bar}] {done}/{total}{left} {name}",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        """Makes room for a line of text; the next call draws again."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --dtype, --device, --threads."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_PATH",
        help="a model of Transformers: a folder, a name, or a .gguf file",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; auto: as stored (default)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: cuda if any")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads")


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes for a folder, a name or a .gguf file."""
    if name.endswith(".gguf"):
        if not os.path.isfile(name):
            raise FileError(f"--model: there is no file '{name}'")
        need("gguf", "accelerate")
        return os.path.dirname(os.path.abspath(name)), {"gguf_file": os.path.basename(name)}
    return name, {}


def load_config(name: str) -> Any:
    """The configuration of a model, without its weights."""
    need("torch", "transformers")
    import transformers

    source, extra = _source(name)
    try:
        return transformers.AutoConfig.from_pretrained(source, **extra)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"--model: '{name}' cannot be loaded: {error}") from error


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, in evaluation mode on its device, and its tokenizer."""
    need("torch", "transformers")
    import torch
    import transformers

    source, extra = _source(options.model)
    named = dict(extra)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if extra and options.dtype == "auto":
        dtype = torch.bfloat16
    if extra and hasattr(transformers, "GgufConfig"):
        # Packed weights have no fast product on the CPU; older versions always unpack them.
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra)
        model = model.to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **named)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"--model: '{options.model}' cannot be loaded: {error}"
        ) from error
    model.config._name_or_path = options.model
    return model.eval(), tokenizer
