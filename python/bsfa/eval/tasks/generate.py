"""Prompts of an exact number of tokens, by the model's own tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bsfa.errors import InvalidArgumentError
from bsfa.eval.tasks.base import Draft, Sample, Task
from bsfa.eval.tasks.registry import TASKS
from bsfa.eval.text import Haystack, rng, whole_number

USES = ("evaluation", "timing", "calibration")
"""What a prompt is for. Prompts of different uses are drawn independently."""

# Words to fill up with. The first list is tried first; the others are for tokenizers whose counts
# jump where a word of it is added.
_FILLERS = (("and", "so", "on"), ("the",), ("a",), (".",), ("-", "and"))
_TRIES = 6


class _Fit:
    """Finds the number of units and of filling words that give the exact length."""

    def __init__(self, generator: Generator, draft: Draft, target: int, what: str) -> None:
        self._generator = generator
        self._draft = draft
        self._target = target
        self._what = what
        self._costs: dict[int, int] = {}

    def _encode(self, units: int, filler: str) -> list[int]:
        return self._generator.encode(self._draft.body(units, filler), self._draft.answer_begin)

    def _cost(self, units: int) -> int:
        """Tokens without filling."""
        if units not in self._costs:
            self._costs[units] = len(self._encode(units, ""))
        return self._costs[units]

    def units(self, guess: int) -> int:
        """The most units that fit, found by doubling and halving steps around the guess."""
        low = self._draft.smallest
        if self._cost(low) > self._target:
            raise InvalidArgumentError(
                f"{self._what} leaves {self._target} tokens for the prompt; this task needs "
                f"{self._cost(low)} or more with this tokenizer"
            )
        at = max(low, guess)
        step = 1
        if self._cost(at) <= self._target:
            low = at
            while self._cost(low + step) <= self._target:
                low += step
                step *= 2
            high = low + step
        else:
            high = at
            while high - step > low and self._cost(high - step) > self._target:
                high -= step
                step *= 2
            low = max(low, high - step)
        while high - low > 1:
            middle = (low + high) // 2
            if self._cost(middle) <= self._target:
                low = middle
            else:
                high = middle
        return low

    def ids(self, guess: int) -> list[int]:
        """Exactly `target` tokens."""
        units = self.units(guess)
        for fewer in range(3):
            if units - fewer < self._draft.smallest:
                break
            found = self._filled(units - fewer)
            if found is not None:
                return found
        raise InvalidArgumentError(
            f"{self._what}: no prompt of exactly {self._target} tokens was found with this "
            "tokenizer; another length or seed may do"
        )

    def _filled(self, units: int) -> list[int] | None:
        if self._cost(units) == self._target:
            return self._encode(units, "")
        for words in _FILLERS:
            count = max(1, self._target - self._cost(units) - 1)
            tried: set[int] = set()
            while count > 0 and count not in tried and len(tried) < _TRIES:
                tried.add(count)
                filler = " ".join(words[i % len(words)] for i in range(count))
                ids = self._encode(units, filler)
                if len(ids) == self._target:
                    return ids
                count += self._target - len(ids)
        return None


class Generator:
    """Makes the prompts of a run. The same arguments give the same prompts."""

    def __init__(
        self,
        tokenizer: Any,
        haystack: Haystack | None = None,
        seed: int = 0,
        chat_template: bool = True,
    ) -> None:
        """haystack: for the tasks over a text; without one they are refused.

        chat_template: the prompt is a user's message in the tokenizer's chat template if it has
        one, and the answer is begun for the model.
        """
        self.tokenizer = tokenizer
        self.seed = seed
        self.chat_template = chat_template and bool(getattr(tokenizer, "chat_template", None))
        self._parts = {
            use: haystack.part(use == "calibration") if haystack is not None else None
            for use in USES
        }
        self._guesses: dict[tuple[str, int], int] = {}
        self.haystack_digest = None if haystack is None else haystack.digest

    @property
    def has_text(self) -> bool:
        """Whether there is a haystack."""
        return self.haystack_digest is not None

    def encode(self, body: str, answer_begin: str) -> list[int]:
        """Token ids of the whole prompt."""
        if not self.chat_template:
            return self.tokenizer(f"{body}\n{answer_begin}", verbose=False)["input_ids"]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": body}], add_generation_prompt=True, tokenize=False
        )
        ids = self.tokenizer(text + answer_begin, add_special_tokens=False, verbose=False)
        return ids["input_ids"]

    def check(self, task: Task) -> None:
        """Refuses a task over a text if there is none."""
        if task.needs_text and self._parts["evaluation"] is None:
            free = [other.name for other in TASKS.values() if not other.needs_text]
            raise InvalidArgumentError(
                f"task {task.name} needs a text to hide things in (--haystack); without one: "
                + ", ".join(free)
            )

    def _draft(self, task: Task, length: int, use: str, index: int) -> Draft:
        random_ = rng(self.seed, use, task.name, length, index)
        return task.draft(random_, self._parts[use])

    def _fit(self, task: Task, length: int, use: str, draft: Draft) -> _Fit:
        what = f"length {length} of task {task.name} ({use})"
        return _Fit(self, draft, length - task.answer_tokens, what)

    def _guess(self, task: Task, length: int) -> int:
        """Units that the first evaluation prompt takes: near what the others take."""
        key = (task.name, length)
        if key not in self._guesses:
            draft = self._draft(task, length, "evaluation", 0)
            fit = self._fit(task, length, "evaluation", draft)
            self._guesses[key] = fit.units(max(draft.smallest, length // 24))
        return self._guesses[key]

    def sample(self, task: Task, length: int, use: str, index: int) -> Sample:
        """Prompt number `index`; prompt and room for the answer have `length` tokens together."""
        self.check(task)
        draft = self._draft(task, length, use, index)
        ids = self._fit(task, length, use, draft).ids(self._guess(task, length))
        number = whole_number(self.seed, use, task.name, length, index)
        return Sample(number, task.name, length, tuple(ids), draft.answers, draft.depth)

    def samples(
        self, task: Task, length: int, use: str, count: int, first: int = 0
    ) -> list[Sample]:
        """Prompts number first to first + count - 1. Tokenizers work outside Python's lock."""
        self.check(task)
        self._guess(task, length)
        numbers = range(first, first + count)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda index: self.sample(task, length, use, index), numbers))

    def plain_text(self, length: int, index: int) -> list[int]:
        """`length` tokens of the calibration part of the text, from anywhere in it on."""
        part = self._parts["calibration"]
        if part is None:
            raise InvalidArgumentError("category text needs a text (--haystack)")
        begin = rng(self.seed, "calibration", "text", length, index).randrange(len(part.sentences))
        # A token has at least a byte; texts shorter than the prompt start over.
        sentences: Sequence[str] = part.sentences[begin:] + part.sentences[:begin]
        characters = 0
        chosen = []
        while True:
            for sentence in sentences:
                chosen.append(sentence)
                characters += len(sentence) + 1
                if characters > 8 * length:
                    text = " ".join(chosen)
                    return self.tokenizer(text, verbose=False)["input_ids"][:length]
