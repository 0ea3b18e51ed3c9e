"""RULER-like tasks: prompts made here, with no download, and scored by RULER's rule.

The tasks have the structure and the names of RULER (arXiv 2404.06654); the wording, the word lists
and the texts are others, so scores are not comparable with published RULER scores.
"""

from bsfa.eval.tasks.base import CATEGORIES, Draft, Sample, Task
from bsfa.eval.tasks.generate import Generator
from bsfa.eval.tasks.registry import TASKS, find_tasks
from bsfa.eval.tasks.scoring import score

__all__ = [
    "CATEGORIES",
    "TASKS",
    "Draft",
    "Generator",
    "Sample",
    "Task",
    "find_tasks",
    "score",
]
