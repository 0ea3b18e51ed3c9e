"""Variable tracking: a chain of assignments in noise, and which names hold a value."""

from __future__ import annotations

import itertools
import random
import string

from bsfa.eval.tasks.base import Draft
from bsfa.eval.text import Haystack

_HOPS = 4
_NAME = 5
"""Letters of a variable's name."""
_NOISE = "Leaves turn on the water. The road bends at the hill. It is dark by six. Nobody calls."


def draft(random_: random.Random, text: Haystack | None) -> Draft:
    """One chain of four hops: five names for one number."""
    names: list[str] = []
    while len(names) <= _HOPS:
        name = "".join(random_.choices(string.ascii_uppercase, k=_NAME))
        if name not in names:
            names.append(name)
    value = random_.randint(10_000, 99_999)
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(names)]
    depths = sorted(random_.random() for _ in lines)

    def body(units: int, filler: str) -> str:
        pieces: list[str] = []
        done = 0
        for line, depth in zip(lines, depths, strict=True):
            at = round(depth * units)
            pieces += [_NOISE] * (at - done) + [line]
            done = at
        pieces += [_NOISE] * (units - done) + ([filler] if filler else [])
        context = "\n".join(pieces)
        return (
            "Variables are assigned in the text below, some of them from one another. Keep track "
            f"of their values.\n\n{context}\n\nWhich variables have the value {value}?"
        )

    begin = f"These {len(names)} variables have the value {value}:"
    return Draft(body, begin, tuple(names))
