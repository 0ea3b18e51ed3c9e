"""The texts of the ablations: prompts of one length, no text in both calibration and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsfa.calibration import Sample, read_samples
from bsfa.errors import InvalidArgumentError

__all__ = ["Domain", "load_domain", "split"]


@dataclass(frozen=True)
class Domain:
    """One kind of text, cut into prompts: int64 [length] each."""

    name: str
    evaluation: list[Tensor]
    calibration: list[Tensor]


def _cut(texts: Iterator[Sample], tokenizer: Any, length: int, count: int) -> list[Tensor]:
    """Up to count prompts of length tokens, from as few texts as it takes; short ones are joined.

    What is left of the last text is dropped, so that the next call starts with another text.
    """
    prompts: list[Tensor] = []
    rest = torch.empty(0, dtype=torch.int64)
    while len(prompts) < count:
        text = next(texts, None)
        if text is None:
            break
        ids = tokenizer(text.text, return_tensors="pt", verbose=False)["input_ids"][0]
        rest = torch.cat([rest, ids.to(torch.int64)])
        while len(rest) >= length and len(prompts) < count:
            prompts.append(rest[:length])
            rest = rest[length:]
    return prompts


def split(
    name: str, texts: Sequence[Sample], tokenizer: Any, length: int, prompts: int, samples: int
) -> Domain:
    """The first texts for evaluation, the others for calibration."""
    source = iter(texts)
    evaluation = _cut(source, tokenizer, length, prompts)
    calibration = _cut(source, tokenizer, length, samples)
    if len(evaluation) < prompts or len(calibration) < samples:
        raise InvalidArgumentError(
            f"--domain {name}: its {len(texts)} texts make {len(evaluation)} prompts of {length} "
            f"tokens for evaluation and, from other texts, {len(calibration)} for calibration; "
            f"needed: {prompts} and {samples}"
        )
    return Domain(name, evaluation, calibration)


def load_domain(text: str, tokenizer: Any, length: int, prompts: int, samples: int) -> Domain:
    """A domain as the command line gives it: NAME=PATH, or NAME=PATH,PATH."""
    name, _, paths = text.partition("=")
    if not name or not paths:
        raise InvalidArgumentError(f"--domain is {text!r}; accepted: NAME=PATH[,PATH...]")
    listed = read_samples([path for path in paths.split(",") if path])
    return split(name, listed, tokenizer, length, prompts, samples)
