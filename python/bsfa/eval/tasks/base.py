"""What a task is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bsfa.eval.text import Haystack

CATEGORIES = ("retrieval", "tracing", "aggregation", "text")
"""RULER's categories that need no download, and plain text, which is for calibration alone."""


@dataclass(frozen=True)
class Draft:
    """A prompt whose length is still open."""

    body: Callable[[int, str], str]
    """(units of haystack, words that fill the rest) to the user's message."""
    answer_begin: str
    """How the answer begins; part of the prompt, as in the harness."""
    answers: tuple[str, ...]
    """What the generated text has to contain."""
    depth: float | None = None
    """Where the needle stands, 0 to 1; None where there is no single one."""
    smallest: int = 1
    """Units that the prompt needs at least."""
    largest: int | None = None
    """Units that there are at most; None: any number."""


@dataclass(frozen=True)
class Task:
    """A kind of prompt."""

    name: str
    category: str
    answer_tokens: int
    """Room for the answer; RULER counts it into the length of the prompt, and so do we."""
    draft: Callable[[random.Random, Haystack | None], Draft]
    needs_text: bool = False
    """Whether the haystack is a text that the user names."""
    summary: str = ""


@dataclass(frozen=True)
class Sample:
    """One prompt."""

    id: int
    """From seed, use, task, length and number alone."""
    task: str
    length: int
    """Tokens of prompt and answer together: len(ids) + the task's answer_tokens."""
    ids: tuple[int, ...]
    answers: tuple[str, ...]
    depth: float | None
