"""Thresholds for a sweep, from categories that it does not evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bsfa._core import ThresholdTable
from bsfa.errors import FormatError, InvalidArgumentError
from bsfa.eval import results
from bsfa.eval.provenance import categories_of, file_digest, record_categories
from bsfa.eval.tasks import CATEGORIES, TASKS, Generator, Task
from bsfa.text import printable, quote, quote_path

__all__ = ["Calibrated", "calibrate_for", "choose_categories", "load_thresholds"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Calibrated:
    """A threshold table and where it comes from."""

    table: ThresholdTable
    record: results.Thresholds


def _listed(names: Sequence[str]) -> str:
    """Categories, as a file or an argument names them."""
    return printable(", ".join(names), 200)


def choose_categories(
    tasks: Sequence[Task], asked: Sequence[str] | None, has_text: bool
) -> list[str]:
    """Categories to calibrate on: those asked for, or all that no task of the sweep is in."""
    evaluated = {task.category for task in tasks}
    possible = [
        category
        for category in CATEGORIES
        if category not in evaluated and (category != "text" or has_text)
    ]
    hint = "" if has_text else " ('text' too, with --haystack)"
    if asked is None:
        if not possible:
            raise InvalidArgumentError(
                "the tasks are of every category, and none is left to calibrate on; leave out the "
                "tasks of one, or name a text with --haystack"
            )
        return possible
    for category in asked:
        if category in possible:
            continue
        why = "evaluated by this run" if category in evaluated else "not possible here"
        raise InvalidArgumentError(
            f"calibrate-on names {quote(category)}, which is {why}: calibration and evaluation "
            f"have no category in common; accepted: {', '.join(possible) or 'none'}{hint}"
        )
    return list(dict.fromkeys(asked))


def _prompts(
    generator: Generator, categories: Sequence[str], lengths: Sequence[int], count: int
) -> list[list[int]]:
    """`count` prompts of exactly each length, categories and their tasks in turn."""
    usable: dict[str, list[Task]] = {}
    for task in TASKS.values():
        try:
            generator.check(task)
        except InvalidArgumentError:
            continue
        usable.setdefault(task.category, []).append(task)
    prompts = []
    for length in lengths:
        for index in range(count):
            category = categories[index % len(categories)]
            turn = index // len(categories)
            if category == "text":
                prompts.append(generator.plain_text(length, turn))
                continue
            task = usable[category][turn % len(usable[category])]
            sample = generator.sample(task, length + task.answer_tokens, "calibration", turn)
            prompts.append(list(sample.ids))
    return prompts


def _calibrated(path: str, table: ThresholdTable, categories: list[str]) -> Calibrated:
    record = results.Thresholds(
        os.path.basename(path), file_digest(path), list(table.budgets), categories, table.max_seqlen
    )
    return Calibrated(table, record)


def calibrate_for(
    model: Any,
    generator: Generator,
    categories: Sequence[str],
    lengths: Sequence[int],
    budgets: Sequence[int],
    count: int,
    path: str,
    progress: Progress | None = None,
) -> Calibrated:
    """Calibrates with `count` samples of each length, or takes what an earlier run made here."""
    from bsfa.calibration import calibrate

    recorded = categories_of(path) if os.path.exists(path) else None
    if recorded is not None:  # a file that does not say was not finished
        if recorded != list(categories):
            raise InvalidArgumentError(
                f"{quote_path(path)}, made by an earlier run, was calibrated on "
                f"{_listed(recorded)}, and this run is to calibrate on {', '.join(categories)}; "
                "choose another --out"
            )
        table = ThresholdTable.load(path)
        if set(budgets) <= set(table.budgets) and max(lengths) <= table.max_seqlen:
            return _calibrated(path, table, list(categories))
        raise InvalidArgumentError(
            f"{quote_path(path)}, made by an earlier run, has budgets "
            f"{', '.join(map(str, table.budgets))} and lengths to {table.max_seqlen}; keep to "
            "these, name it with --thresholds, or choose another --out"
        )
    calibrate(
        model,
        _prompts(generator, categories, lengths, count),
        budgets=budgets,
        out=path,
        progress=progress,
    )
    record_categories(path, categories)
    return _calibrated(path, ThresholdTable.load(path), list(categories))


def load_thresholds(
    path: str,
    tasks: Sequence[Task],
    budgets: Sequence[int],
    lengths: Sequence[int],
    stated: Sequence[str] | None,
) -> Calibrated:
    """A threshold file that exists, if it may be used to evaluate these tasks."""
    table = ThresholdTable.load(path)
    recorded = categories_of(path)
    if recorded is not None and stated is not None and list(stated) != recorded:
        raise InvalidArgumentError(
            f"calibrated-on is {_listed(stated)}; {quote_path(path)} says {_listed(recorded)}"
        )
    categories = list(stated) if recorded is None and stated is not None else recorded
    if categories is None:
        raise FormatError(
            f"{quote_path(path)} does not say what it was calibrated on; say so with "
            f"--calibrated-on (categories of the tasks: {', '.join(CATEGORIES)}; any other word "
            "for other data)"
        )
    for task in tasks:
        if task.category in categories:
            raise InvalidArgumentError(
                f"{quote_path(path)} was calibrated on {_listed(categories)}, and task "
                f"{task.name} is of category {task.category}: calibration and evaluation have no "
                "category in common; accepted: tasks of "
                + ", ".join(c for c in CATEGORIES if c not in categories and c != "text")
            )
    for budget in budgets:
        table.thresholds(budget)  # refuses, with the list, a budget that is not in the file
    if max(lengths) > table.max_seqlen:
        raise InvalidArgumentError(
            f"length is {max(lengths)}; {quote_path(path)} was calibrated to {table.max_seqlen} "
            "tokens"
        )
    return _calibrated(path, table, categories)
