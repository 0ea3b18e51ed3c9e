"""Transformers: the modes that look at rows (mass, skip_softmax in two orders)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, DynamicCache

import bsfa
from bsfa.policies import MODES, POLICIES, find_policy
from reference import gated_attention
from tiny import logits, tiny_model, tokens

POLICY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "mass": {"mass": 0.1},
    "skip_softmax": {"skip_softmax": 0.03},
    "skip_softmax_outwards": {"skip_softmax": 0.03, "skip_order": "outwards"},
}
"""What the modes mean to the function under them, at their defaults."""


def uneven_model() -> Any:
    """A model whose queries all look for one feature of the keys."""
    model = tiny_model("qwen2")
    with torch.no_grad():
        for layer in model.model.layers:
            # The feature that rotary positions turn least.
            layer.self_attn.q_proj.bias.view(4, 16)[:, 7] = 40.0
    return model


def uneven_tokens(model: Any, length: int) -> torch.Tensor:
    """Token ids [1, length] of which runs of 64 have little of the feature and others much."""
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(torch.arange(3, 97)))
        feature = layer.self_attn.k_proj(hidden).view(-1, 2, 16)[:, :, 7].mean(dim=1)
    order = feature.argsort() + 3
    generator = torch.Generator().manual_seed(4)
    runs = []
    for run in range(-(-length // 64)):
        pool = order[:12] if run % 3 == 1 else order[40:60]
        runs.append(pool[torch.randint(0, len(pool), (64,), generator=generator)])
    return torch.cat(runs)[None, :length]


@pytest.mark.parametrize("mode", sorted(POLICY_ARGUMENTS))
def test_a_mode_is_the_policy(mode: str) -> None:
    def plain(module, query, key, value, mask, scaling=None, **kwargs):
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        out = gated_attention(q, k, v, causal=True, softmax_scale=scaling, **POLICY_ARGUMENTS[mode])
        plain.kept += int(out[2].sum())  # type: ignore[attr-defined]
        plain.visible += int(out[3].sum())  # type: ignore[attr-defined]
        return out[0].to(query.dtype), None

    plain.kept = plain.visible = 0  # type: ignore[attr-defined]
    AttentionInterface.register("plain", plain)
    model = uneven_model()
    ids = uneven_tokens(model, 700)
    model.set_attn_implementation("plain")
    expected = logits(model, ids)
    model.set_attn_implementation("sdpa")
    dense = logits(model, ids)
    bsfa.enable(model, mode=mode)
    torch.testing.assert_close(logits(model, ids), expected, atol=5e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert (stats.mode, stats.parameter) == (mode, POLICIES[mode].default)
    assert stats.density == plain.kept / plain.visible < 0.95  # type: ignore[attr-defined]
    assert stats.fallbacks == {}
    assert {layer.attention for layer in stats.layers} == {mode}

    # So little that nothing is left out.
    bsfa.set_mode(model, mode, parameter=1e-30)
    torch.testing.assert_close(logits(model, ids), dense, atol=5e-4, rtol=1e-4)
    assert bsfa.stats(model).density == 1


def test_mass_in_chunks_that_start_on_a_query_block() -> None:
    model = uneven_model()
    ids = uneven_tokens(model, 700)
    bsfa.enable(model, mode="mass")
    whole = logits(model, ids)
    kept = sum(sum(layer.kept_blocks) for layer in bsfa.stats(model).layers)
    cache = DynamicCache(config=model.config)
    parts, kept_in_parts = [], 0
    with torch.no_grad():
        for part in ids.split(256, dim=1):
            parts.append(model(part, past_key_values=cache, use_cache=True).logits.float())
            kept_in_parts += sum(sum(layer.kept_blocks) for layer in bsfa.stats(model).layers)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-4, rtol=1e-4)
    assert kept_in_parts == kept


def test_mass_of_a_padded_batch() -> None:
    model = uneven_model()
    ids = uneven_tokens(model, 500)
    bsfa.enable(model, mode="mass")
    alone = logits(model, ids[:, :450])
    padded = torch.zeros(2, 500, dtype=torch.long)
    mask = torch.zeros(2, 500, dtype=torch.long)
    padded[0], mask[0] = ids[0], 1
    padded[1, 50:], mask[1, 50:] = ids[0, :450], 1
    together = logits(model, padded, attention_mask=mask)
    torch.testing.assert_close(together[1:, 50:], alone, atol=2e-4, rtol=1e-4)


def test_the_number_stays_with_its_mode() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 200)
    bsfa.enable(model, mode="mass", parameter=0.02)
    logits(model, ids)
    assert str(bsfa.stats(model)).startswith("bsfa: mode mass, c 0.02; density")
    bsfa.set_mode(model, "mass")
    assert bsfa.stats(model).parameter == 0.02
    bsfa.set_mode(model, "skip_softmax")
    assert bsfa.stats(model).parameter == 0.03
    bsfa.set_mode(model, "dense")
    assert bsfa.stats(model).parameter is None


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setenv("BSFA_MODE", "mass")
    bsfa.enable(model)
    stats = bsfa.stats(model)
    assert (stats.mode, stats.parameter) == ("mass", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mass", "parameter": 0}, "parameter is 0; mode 'mass' takes a finite c above 0"),
        ({"mode": "mass", "parameter": float("nan")}, "parameter is nan"),
        ({"mode": "mass", "parameter": float("inf")}, "parameter is inf"),
        ({"mode": "mass", "parameter": True}, "parameter is True"),
        ({"mode": "mass", "parameter": "much"}, "parameter is 'much'"),
        ({"mode": "skip_softmax", "parameter": 1.5}, "lambda above 0, at most 1"),
        (
            {"mode": "dense", "parameter": 0.1},
            "parameter is 0.1 with mode 'dense'; it belongs to coverage, mass, skip_softmax, "
            "skip_softmax_outwards",
        ),
    ],
)
def test_bad_numbers_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        bsfa.enable(model, **arguments)
    assert model.config._attn_implementation == "sdpa"


def test_the_table() -> None:
    assert list(MODES) == [policy.name for policy in POLICIES.values()]
    with pytest.raises(bsfa.InvalidArgumentError, match="mode is 'fast'; accepted: dense, "):
        find_policy("fast")
    with pytest.raises(bsfa.UnsupportedError, match="mode 'mass' runs on cpu; the model is on"):
        POLICIES["mass"].check_device("cuda")
    POLICIES["threshold"].check_device("cuda")
