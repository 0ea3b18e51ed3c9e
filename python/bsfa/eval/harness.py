"""The model type `bsfa` of the lm-evaluation-harness: its type `hf`, with the method switched on.

Importing this module registers the type. The harness itself looks for types in its own package
only, so either the command runs through bsfa,

    python -m bsfa eval harness --model bsfa --model_args pretrained=...,thresholds=... --tasks ...

or a program imports this module before it names the type:

    import bsfa.eval.harness
    lm_eval.simple_evaluate(model="bsfa", model_args="pretrained=...", tasks=[...])

All tasks of the harness run, loaded, prompted and scored by the harness. Which attention ran, and
how much of it, is in the results file of the harness under "config" (`get_model_info`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

import bsfa
from bsfa.errors import FileError, InvalidArgumentError
from bsfa.loading import load_model
from bsfa.policies import STOCK
from bsfa.provenance import built_from
from bsfa.text import quote, said, shown

__all__ = ["BsfaLM", "run_command"]


@register_model("bsfa")
class BsfaLM(HFLM):
    """`hf` with thresholds, budget, mode, parameter (and compute_type) beside its own arguments."""

    def __init__(
        self,
        pretrained: Any,
        thresholds: str | None = None,
        budget: int | str | None = None,
        mode: str | None = None,
        parameter: float | str | None = None,
        compute_type: str = "native",
        **arguments: Any,
    ) -> None:
        """Loads the model as `hf` does, or a .gguf file, and enables bsfa on it.

        mode: as for `bsfa.enable`, or stock: the model's own attention, for comparison.
        """
        if budget is not None and not str(budget).isdecimal():
            raise InvalidArgumentError(f"budget is {shown(budget)}; accepted: a number of blocks")
        try:
            number = None if parameter is None else float(parameter)
        except ValueError:
            raise InvalidArgumentError(
                f"parameter is {shown(parameter)}; accepted: a number"
            ) from None
        if isinstance(pretrained, str) and pretrained.endswith(".gguf"):
            pretrained, tokenizer = _load_gguf(pretrained, arguments)
            arguments.setdefault("tokenizer", tokenizer)
        super().__init__(pretrained=pretrained, **arguments)
        self.bsfa_mode = mode
        if mode != STOCK.name:
            bsfa.enable(
                self.model,
                thresholds,
                None if budget is None else int(budget),
                mode=mode,
                parameter=number,
                compute_type=compute_type,
            )

    def get_model_info(self) -> dict[str, Any]:
        """What `hf` says of the model, and which attention ran."""
        info = super().get_model_info()
        if self.bsfa_mode != STOCK.name:
            stats = bsfa.stats(self.model)
            info.update(
                bsfa_version=bsfa.__version__,
                bsfa_commit=built_from(),
                bsfa_mode=stats.mode,
                bsfa_budget=stats.budget,
                bsfa_parameter=stats.parameter,
                bsfa_last_density=stats.density if stats.layers else None,
                bsfa_fallbacks=stats.fallbacks,
            )
        return info


def _load_gguf(path: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    device = str(arguments.get("device") or "auto")
    if device == "cuda" and not _has_cuda():
        device = "cpu"  # the harness's default is cuda, whether there is one or not
    return load_model(path, str(arguments.get("dtype", "auto")), device)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


_UNREACHABLE = (
    "ConnectError",
    "ConnectionError",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "OfflineModeIsEnabled",
    "ProxyError",
)


def _unreachable(error: BaseException) -> BaseException | None:
    """The error in a chain that says that a hub was not reached."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if type(found).__name__ in _UNREACHABLE or isinstance(found, ConnectionError):
            return found
        found = found.__cause__ or found.__context__
    return None


def run_command(arguments: Sequence[str]) -> None:
    """The command lm_eval, in this process. Says so where a task's data cannot be fetched."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except Exception as error:
        reason = _unreachable(error)
        if reason is None and type(error) is not LookupError:  # that is what nltk raises
            raise
        raise FileError(
            "the data of a task, or the model, could not be fetched from its hub: "
            f"{said(reason or error)} (HF_HUB_OFFLINE is "
            f"{quote(os.environ.get('HF_HUB_OFFLINE', 'not set'))}; "
            "`bsfa eval sweep` runs RULER-like tasks that need no download)"
        ) from error
    finally:
        sys.argv = before
