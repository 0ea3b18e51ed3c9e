"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from bsfa.errors import InvalidArgumentError
from bsfa.eval.tasks import aggregation, tracing
from bsfa.eval.tasks.base import Task
from bsfa.eval.tasks.niah import needles
from bsfa.text import quote


def _niah(name: str, answer_tokens: int, summary: str, haystack: str, **facts: object) -> Task:
    draft = needles(haystack, **facts)  # type: ignore[arg-type]
    return Task(name, "retrieval", answer_tokens, draft, haystack == "text", summary)


_WORD_NUMBER = {"key_kind": "word", "value_kind": "number"}
_WORD_UUID = {"key_kind": "word", "value_kind": "uuid"}
_UUID_UUID = {"key_kind": "uuid", "value_kind": "uuid"}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _niah("niah_single_1", 16, "a number in repeated noise", "noise", **_WORD_NUMBER),
        _niah("niah_single_2", 16, "a number in a text", "text", **_WORD_NUMBER),
        _niah("niah_single_3", 48, "a UUID in a text", "text", **_WORD_UUID),
        _niah("niah_multikey_1", 16, "one of 4 numbers in a text", "text", **_WORD_NUMBER, keys=4),
        _niah("niah_multikey_2", 16, "one number among numbers only", "facts", **_WORD_NUMBER),
        _niah("niah_multikey_3", 48, "one UUID among UUIDs only", "facts", **_UUID_UUID),
        _niah("niah_multivalue", 64, "4 numbers of one name", "text", **_WORD_NUMBER, values=4),
        _niah(
            "niah_multiquery", 96, "4 numbers of 4 names", "text", **_WORD_NUMBER, keys=4, queries=4
        ),
        Task("vt", "tracing", 40, tracing.draft, False, "5 names along a chain of assignments"),
        Task(
            "cwe", "aggregation", 80, aggregation.common_words, True, "the 10 words that recur most"
        ),
        Task("fwe", "aggregation", 40, aggregation.frequent_words, False, "3 frequent coded words"),
    )
}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, each once; a name that is not known is refused with the list of all."""
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        found = f"tasks names {quote(unknown[0])}" if unknown else "tasks is empty"
        raise InvalidArgumentError(f"{found}; accepted: {', '.join(TASKS)}")
    return [TASKS[name] for name in dict.fromkeys(names)]
