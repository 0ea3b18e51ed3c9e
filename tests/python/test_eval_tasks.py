"""RULER-like prompts: exact lengths, the same by seed, answers that follow from the prompt."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import bsfa
from bsfa.eval.tasks import TASKS, Generator, Sample, find_tasks, score
from bsfa.eval.text import Haystack, load
from eval_setup import haystack, tokenizer

pytestmark = pytest.mark.model

ALL = list(TASKS.values())


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(tokenizer(), haystack(), seed=5)


def text_of(sample: Sample) -> str:
    return tokenizer().decode(sample.ids)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_prompt_and_answer_have_exactly_the_length(task, chat) -> None:
    made = Generator(tokenizer(), haystack(), seed=1, chat_template=chat)
    for length in (600, 1000, 1501):
        for use in ("evaluation", "calibration"):
            for sample in made.samples(task, length, use, 2):
                assert len(sample.ids) + task.answer_tokens == length
                # Decoded and encoded again it has that length too: no token was cut.
                again = tokenizer()(text_of(sample), add_special_tokens=False)["input_ids"]
                assert len(again) == len(sample.ids)
                assert ("<|im_start|>user" in text_of(sample)) == chat


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_prompts_follow_from_the_seed(task, generator: Generator) -> None:
    again = Generator(tokenizer(), haystack(), seed=5)
    other = Generator(tokenizer(), haystack(), seed=6)
    first = generator.samples(task, 800, "evaluation", 3)
    # Number 2 is the same, whichever were made before it.
    assert again.sample(task, 800, "evaluation", 2) == first[2]
    assert again.samples(task, 800, "evaluation", 3) == first
    assert len({sample.id for sample in first}) == 3
    assert len({sample.ids for sample in first}) == 3
    for different in (
        other.sample(task, 800, "evaluation", 0),
        generator.sample(task, 800, "timing", 0),
        generator.sample(task, 800, "calibration", 0),
    ):
        assert different.id != first[0].id
        assert different.answers != first[0].answers


def facts_in(text: str) -> list[tuple[str, str]]:
    return re.findall(r"The secret \w+ of (\S+) is (\S+)\.", text)


@pytest.mark.parametrize(
    "task", [t for t in ALL if t.category == "retrieval"], ids=lambda t: t.name
)
def test_needles_are_in_the_prompt_and_asked_for(task, generator: Generator) -> None:
    for sample in generator.samples(task, 1200, "evaluation", 3):
        text = text_of(sample)
        found = facts_in(text)
        question = text[text.rindex("What ") :]
        asked = [key for key in dict.fromkeys(key for key, _ in found) if key in question]
        assert {value for key, value in found if key in asked} == set(sample.answers)
        assert score(" and ".join(sample.answers), sample.answers) == 1
        # Nothing after the question gives the answer away.
        assert not any(answer in question for answer in sample.answers)
        if sample.depth is not None:
            place = text.index(f"is {sample.answers[0]}") / len(text)
            assert place == pytest.approx(sample.depth, abs=0.2)
    count = len(facts_in(text))
    expected = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}
    if task.name in ("niah_multikey_2", "niah_multikey_3"):
        assert count > 4
    else:
        assert count == expected.get(task.name, 1)
    assert len(sample.answers) == (4 if task.name in ("niah_multivalue", "niah_multiquery") else 1)


def test_depths_spread_over_the_prompt(generator: Generator) -> None:
    depths = [s.depth for s in generator.samples(TASKS["niah_single_1"], 600, "evaluation", 40)]
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_a_chain_of_variables_leads_to_the_answers(generator: Generator) -> None:
    for sample in generator.samples(TASKS["vt"], 900, "evaluation", 3):
        text = text_of(sample)
        value = re.search(r"Which variables have the value (\d+)", text).group(1)
        held: dict[str, str] = {}
        for name, given in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
            held[name] = held.get(given, given)
        assert {name for name, number in held.items() if number == value} == set(sample.answers)
        assert len(sample.answers) == 5


@pytest.mark.parametrize("length", [600, 2000])
def test_common_words_are_the_most_common(length: int, generator: Generator) -> None:
    for sample in generator.samples(TASKS["cwe"], length, "evaluation", 2):
        counts = Counter(re.findall(r"\d+\. (\w+)", text_of(sample)))
        ranked = counts.most_common()
        assert {word for word, _ in ranked[:10]} == set(sample.answers)
        assert ranked[9][1] > ranked[10][1]


def test_frequent_codes_are_the_most_frequent(generator: Generator) -> None:
    for sample in generator.samples(TASKS["fwe"], 1500, "evaluation", 2):
        body = text_of(sample).split("\n\n")[1]
        counts = Counter(word for word in body.split() if len(word) == 6 and word.islower())
        ranked = counts.most_common()
        assert {word for word, _ in ranked[:3]} == set(sample.answers)
        assert ranked[2][1] > ranked[3][1]
        assert body.split().count("...") > ranked[0][1]


ANSWERS = [
    (" 1234567.", ["1234567"]),
    ("1234568", ["1234567"]),
    ("aLpHa, Gamma and delta", ["alpha", "beta", "GAMMA", "delta"]),
    ("", ["x"]),
    ("\x03alpha\x1fbeta\n", ["alpha\nbeta", "alpha"]),
    ("12345678", ["1234567"]),
    ("  padded  ", ["padded", " padded"]),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_the_score_is_that_of_the_harness(answer: str, expected: list[str]) -> None:
    ruler = pytest.importorskip("lm_eval.tasks.ruler.common_utils")
    theirs = ruler.process_results({"max_length": 4096, "outputs": expected}, [answer])["4096"]
    assert score(answer, expected) == theirs


def test_scores() -> None:
    assert [score(answer, expected) for answer, expected in ANSWERS[:4]] == [1, 0, 0.75, 0]


def test_calibration_and_evaluation_have_no_sentence_in_common() -> None:
    text = haystack()
    first, second = text.part(calibration=True), text.part(calibration=False)
    assert set(first.sentences).isdisjoint(second.sentences)
    assert len(first.sentences) + len(second.sentences) == len(text.sentences)


def test_plain_text(generator: Generator) -> None:
    ids = generator.plain_text(700, 0)
    assert len(ids) == 700
    assert ids == generator.plain_text(700, 0) != generator.plain_text(700, 1)
    sentence = tokenizer().decode(ids).split(".")[1].strip()
    assert sentence in haystack().part(calibration=True).text


def test_texts_without_punctuation_are_cut() -> None:
    assert [len(s.split()) for s in Haystack("word " * 100).sentences] == [40, 40, 20]


def test_refusals(tmp_path) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=r"'niah'; accepted: niah_single_1, .*fwe"):
        find_tasks(["vt", "niah"])
    bare = Generator(tokenizer(), seed=1)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"--haystack.*niah_single_1, niah_multik"):
        bare.sample(TASKS["niah_single_2"], 600, "evaluation", 0)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"leaves 24 tokens .* needs \d+ or more"):
        bare.sample(TASKS["niah_single_1"], 40, "evaluation", 0)
    (tmp_path / "short.txt").write_text("One. Two.")
    with pytest.raises(bsfa.InvalidArgumentError, match="has 2 sentences; accepted: 8 or more"):
        load([tmp_path / "short.txt"])
