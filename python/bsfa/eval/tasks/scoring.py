"""RULER's rule, as the lm-evaluation-harness has it (`string_match_all`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile("[\x00-\x1f]")


def score(answer: str, expected: Sequence[str]) -> float:
    """The share of the expected strings that the answer contains, whatever their case: 0 to 1."""
    answer = _CONTROL.sub("\n", answer.strip()).strip().lower()
    return sum(text.lower() in answer for text in expected) / len(expected)
