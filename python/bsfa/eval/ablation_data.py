"""The texts of the ablations: prompts of one length, no text in both calibration and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from bsfa.calibration import Sample, read_samples
from bsfa.errors import InvalidArgumentError
from bsfa.eval.ablation import paths_of
from bsfa.text import quote

__all__ = ["Domain", "load_domain", "split"]


@dataclass(frozen=True)
class Domain:
    """One kind of text, cut into prompts: int64 [length] each."""

    name: str
    evaluation: list[Tensor]
    calibration: list[Tensor]


def _cut(texts: Sequence[Sample], tokenizer: Any, length: int) -> list[list[Tensor]]:
    """The prompts of length tokens in each text; texts that are too short are joined first."""
    pieces: list[list[Tensor]] = []
    rest = torch.empty(0, dtype=torch.int64)
    for text in texts:
        ids = tokenizer(text.text, return_tensors="pt", verbose=False)["input_ids"][0]
        rest = torch.cat([rest, ids.to(torch.int64)])
        if len(rest) >= length:
            pieces.append([*rest[: len(rest) // length * length].split(length)])
            rest = rest[:0]  # so that no text is in two pieces
    return pieces


def split(
    name: str, texts: Sequence[Sample], tokenizer: Any, length: int, prompts: int, samples: int
) -> Domain:
    """The first texts for evaluation; of the others one prompt each in turn for calibration."""
    pieces = _cut(texts, tokenizer, length)
    evaluation: list[Tensor] = []
    first = 0
    while first < len(pieces) and len(evaluation) < prompts:
        evaluation += pieces[first]
        first += 1
    evaluation = evaluation[:prompts]
    # One of each text in turn, so that few samples are not all from one text.
    turns = zip_longest(*pieces[first:])
    calibration = [sample for turn in turns for sample in turn if sample is not None][:samples]
    if len(evaluation) < prompts or len(calibration) < samples:
        raise InvalidArgumentError(
            f"--domain {quote(name)}: its {len(texts)} texts make {len(evaluation)} prompts of "
            f"{length} tokens for evaluation and, from other texts, {len(calibration)} for "
            f"calibration; needed: {prompts} and {samples}"
        )
    return Domain(name, evaluation, calibration)


def load_domain(text: str, tokenizer: Any, length: int, prompts: int, samples: int) -> Domain:
    """A domain as the command line gives it: NAME=PATH, or NAME=PATH,PATH."""
    return split(
        text.partition("=")[0], read_samples(paths_of(text)), tokenizer, length, prompts, samples
    )
