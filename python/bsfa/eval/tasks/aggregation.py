"""Common words and frequent words: what occurs most often in a list that is long."""

from __future__ import annotations

import random
import string

from bsfa.eval.tasks.base import Draft
from bsfa.eval.text import Haystack

_COMMON = 10
_COMMON_REPEATS, _RARE_REPEATS = 30, 3
_CODE_LETTERS = 6
_CODES = 400
_ALPHA = 2.0


def common_words(random_: random.Random, text: Haystack | None) -> Draft:
    """Ten words that occur 30 times each among others that occur 3 times, numbered.

    Short prompts repeat both less often, so that there are other words at all.
    """
    assert text is not None
    words = random_.sample(text.words, len(text.words))
    common, rare = words[:_COMMON], words[_COMMON:]
    seed = random_.getrandbits(64)

    def body(units: int, filler: str) -> str:
        # A unit is three entries. Where 30 repeats do not leave half of the list to other words,
        # the common ones have less.
        entries = 3 * units
        repeats = min(_COMMON_REPEATS, max(2, entries // (2 * _COMMON)))
        rest = max(0, entries - repeats * _COMMON)
        times = _RARE_REPEATS if repeats == _COMMON_REPEATS else 1
        listed = common * repeats
        listed += [rare[i // times % len(rare)] for i in range(rest)]
        random.Random(seed).shuffle(listed)
        context = " ".join(f"{i + 1}. {word}" for i, word in enumerate(listed))
        if filler:
            context += "\n" + filler
        return (
            "Some words of this numbered list come up more often than the others. Remember which."
            f"\n\n{context}\n\nWhich {_COMMON} words come up most often?"
        )

    return Draft(body, "The ten words that come up most often are:", tuple(common), smallest=10)


def frequent_words(random_: random.Random, text: Haystack | None) -> Draft:
    """Invented words whose frequencies fall with the square of their rank; which three lead?

    The first rank belongs to dots, which are to be ignored.
    """
    codes: list[str] = []
    while len(codes) < _CODES:
        code = "".join(random_.choices(string.ascii_lowercase, k=_CODE_LETTERS))
        if code not in codes:
            codes.append(code)
    answers = tuple(codes[1:4])
    codes[0] = "..."
    seed = random_.getrandbits(64)
    norm = sum(rank**-_ALPHA for rank in range(1, _CODES + 1))

    def body(units: int, filler: str) -> str:
        total = 8 * units
        listed: list[str] = []
        for rank, code in enumerate(codes, start=1):
            listed += [code] * round(total * rank**-_ALPHA / norm)
        random.Random(seed).shuffle(listed)
        context = " ".join(listed) + (f" {filler}" if filler else "")
        return (
            "This is a text in coded words. Count how often each of them comes up, and pay no "
            f"attention to the dots.\n\n{context}\n\nWhich three coded words come up most often?"
        )

    return Draft(body, "The three coded words that come up most often are:", answers, smallest=8)
