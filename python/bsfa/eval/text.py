"""The texts that prompts are made of, and which part of them is for what."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bsfa.errors import InvalidArgumentError
from bsfa.text import path_text

__all__ = ["CALIBRATION_SHARE", "Haystack", "load", "rng", "whole_number"]

CALIBRATION_SHARE = 1 / 3
"""Of a text, the beginning is for calibration and the rest for evaluation."""

_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"')\]]*\s*|[^.!?]+$")
_LONGEST_SENTENCE = 40
"""Words; texts without punctuation are cut into pieces of so many."""
_WORD = re.compile(r"\b[a-z]{4,10}\b")


def whole_number(*parts: object) -> int:
    """A number of 48 bits that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def rng(*parts: object) -> random.Random:
    """A generator whose numbers follow from the parts alone."""
    return random.Random(whole_number(*parts))


@dataclass(frozen=True)
class Haystack:
    """A text as sentences. Nothing in it is looked at but where sentences and words end."""

    text: str

    @cached_property
    def sentences(self) -> list[str]:
        """In their order, one space between words."""
        found = []
        for match in _SENTENCE.finditer(self.text):
            words = match.group().split()
            for first in range(0, len(words), _LONGEST_SENTENCE):
                found.append(" ".join(words[first : first + _LONGEST_SENTENCE]))
        return found

    @cached_property
    def words(self) -> list[str]:
        """Distinct lower-case words of 4 to 10 letters, sorted."""
        return sorted(set(_WORD.findall(self.text)))

    @property
    def digest(self) -> str:
        """Identifies the text in a results file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def part(self, calibration: bool) -> Haystack:
        """What calibration may see, or what evaluation may: they have no sentence in common."""
        cut = int(len(self.sentences) * CALIBRATION_SHARE)
        chosen = self.sentences[:cut] if calibration else self.sentences[cut:]
        return Haystack(" ".join(chosen))


def load(paths: Sequence[str | os.PathLike[str]]) -> Haystack:
    """The texts of files and folders, one after the other."""
    from bsfa.calibration import read_samples

    haystack = Haystack("\n".join(sample.text for sample in read_samples(paths)))
    if len(haystack.sentences) < 8:
        names = path_text(", ".join(os.fspath(path) for path in paths))
        raise InvalidArgumentError(
            f"the text of {names} has {len(haystack.sentences)} sentences; accepted: 8 or more"
        )
    return haystack
