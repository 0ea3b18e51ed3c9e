"""Needles in a haystack: one or several facts in a long text, and a question about some of them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

from bsfa.eval.tasks.base import Draft
from bsfa.eval.text import Haystack

_NOISE = (
    "A cart rolls down the lane.",
    "Smoke rises over the roofs.",
    "Somewhere a door is shut.",
    "The afternoon is long and quiet.",
)
_FIRST = """
amber brisk calm candid clever copper crimson curious dapper dusty eager early faint fancy fierce
gentle glossy golden grand hasty hollow humble icy ivory jolly keen late little lively lucky mellow
misty modest narrow nimble noble olive pale patient plain proud quick quiet rapid round rusty
scarlet sharp shiny silent silver simple slender solid stern sturdy sunny tidy tiny upper vivid warm
wide wild windy wise witty young
"""
_SECOND = """
anchor apron badger barrel basket beacon bottle bridge button candle canyon castle cellar cobbler
compass corner cradle curtain desert dragon engine falcon feather ferry fiddle forest garden goblet
hammer harbor helmet island jacket kettle ladder lantern lemon magnet marble meadow mirror monkey
needle orchard otter paddle parrot pencil pepper pillow planet pocket puzzle rabbit ribbon river
saddle shadow shovel spider spoon stable teapot temple thimble ticket timber tunnel turnip valley
violin wagon walnut whistle window winter
"""
_WORDS = [f"{first}-{second}" for first in _FIRST.split() for second in _SECOND.split()]
_KIND = {"number": "number", "word": "word", "uuid": "code"}


def _value(random_: random.Random, kind: str) -> str:
    if kind == "number":
        return str(random_.randint(1_000_000, 9_999_999))
    if kind == "uuid":
        return str(uuid.UUID(int=random_.getrandbits(128), version=4))
    return random_.choice(_WORDS)


def _distinct(random_: random.Random, kind: str, count: int, taken: set[str]) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        value = _value(random_, kind)
        if value not in taken:
            taken.add(value)
            found.append(value)
    return found


def _fact(kind: str, key: str, value: str) -> str:
    return f"The secret {_KIND[kind]} of {key} is {value}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _insert(units: list[str], facts: list[str], depths: list[float]) -> list[str]:
    """The units with each fact at its depth (0: before all, 1: after all); depths ascend."""
    merged, last = [], 0
    for fact, depth in zip(facts, depths, strict=True):
        at = round(depth * len(units))
        merged += [*units[last:at], fact]
        last = at
    return merged + units[last:]


def needles(
    haystack: str,
    key_kind: str,
    value_kind: str,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> Callable[[random.Random, Haystack | None], Draft]:
    """A task's draft function: `keys` facts of `values` values each, asked for `queries` keys.

    haystack: noise (a few sentences again and again), text, or facts (other needles).
    """

    def draft(random_: random.Random, text: Haystack | None) -> Draft:
        taken: set[str] = set()
        names = _distinct(random_, key_kind, keys, taken)
        held = [_distinct(random_, value_kind, values, taken) for _ in names]
        pairs = [(name, value) for name, list_ in zip(names, held, strict=True) for value in list_]
        random_.shuffle(pairs)
        facts = [_fact(value_kind, name, value) for name, value in pairs]
        depths = sorted(random_.random() for _ in facts)
        asked = random_.sample(range(keys), queries)
        answers = tuple(value for index in asked for value in held[index])
        kind = _KIND[value_kind]
        plural = len(answers) > 1
        verb = "are" if plural else "is"
        things = f"{kind}s" if plural else kind
        subject = f"the secret {things} of {_listed([names[i] for i in asked])}"
        start = random_.random()
        other_seed = random_.getrandbits(64)
        joint = " " if haystack == "text" else "\n"

        def body(units: int, filler: str) -> str:
            if haystack == "noise":
                pieces = [" ".join(_NOISE)] * units
            elif haystack == "text":
                assert text is not None
                first = int(start * len(text.sentences))
                pieces = [text.sentences[(first + i) % len(text.sentences)] for i in range(units)]
            else:
                other = random.Random(other_seed)
                seen = set(taken)
                pieces = [
                    _fact(value_kind, _distinct(other, key_kind, 1, seen)[0], value)
                    for value in (_value(other, value_kind) for _ in range(units))
                ]
            context = joint.join(_insert(pieces, facts, depths) + ([filler] if filler else []))
            if plural:
                opening = (
                    f"The text below hides some secret {things}. Remember what it says of them."
                )
            else:
                opening = f"The text below hides a secret {kind}. Remember what it says of it."
            return f"{opening}\n\n{context}\n\nWhat {verb} {subject}?"

        begin = f"{subject[0].upper()}{subject[1:]} {verb}"
        depth = round(depths[0], 4) if len(facts) == 1 else None
        return Draft(body, begin, answers, depth)

    return draft
