"""What is enabled belongs to the model: copies, pickles, shared configurations."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import transformers

import bsfa
from bsfa.hf import state
from tiny import logits, table_for, tiny_model, tokens

IDS = tokens(1, 300)


def gated(model: Any) -> Any:
    """Nothing but the diagonal is kept."""
    bsfa.enable(model, table_for(model, torch.full((1, 2, 4, 3), math.inf), [1]), 1)
    return model


def test_a_deep_copy_is_gated_by_its_own_state() -> None:
    model = tiny_model("llama")
    dense = logits(model, IDS)
    sparse = logits(gated(model), IDS)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, IDS), sparse)
    assert bsfa.stats(copied).density < 1
    bsfa.set_mode(copied, "dense")
    torch.testing.assert_close(logits(copied, IDS), dense, atol=2e-4, rtol=1e-4)
    assert torch.equal(logits(model, IDS), sparse)
    assert (bsfa.stats(model).mode, bsfa.stats(copied).mode) == ("threshold", "dense")
    bsfa.disable(model)
    assert copied.config._attn_implementation == "bsfa"
    bsfa.disable(copied)
    assert torch.equal(logits(copied, IDS), dense)


def test_a_deep_copy_outlives_the_model_and_compiles() -> None:
    model = gated(tiny_model("llama"))
    sparse = logits(model, IDS)
    copied = copy.deepcopy(model)
    del model
    gc.collect()
    torch._dynamo.reset()
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    after = logits(compiled, IDS, attention_mask=torch.ones_like(IDS))
    torch.testing.assert_close(after, sparse, atol=2e-4, rtol=1e-4)
    assert bsfa.stats(copied).layers[1].attention == "threshold"
    key = id(copied.config)
    assert key in state.SWITCHED
    del copied, compiled
    torch._dynamo.reset()
    gc.collect()
    assert key not in state.SWITCHED


def test_one_layer_is_copied() -> None:
    model = gated(tiny_model("llama"))
    layer = copy.deepcopy(model.model.layers[1])
    assert layer.self_attn._bsfa_mark.state is not model.model.layers[1].self_attn._bsfa_mark.state
    assert layer.self_attn._bsfa_mark.position == 1


@pytest.mark.parametrize("how", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())])
def test_an_enabled_model_is_not_pickled(how: Any) -> None:
    model = gated(tiny_model("llama"))
    with pytest.raises(bsfa.UnsupportedError, match=r"bsfa\.enable .* bsfa\.disable\(model\)"):
        how(model)
    weights = model.state_dict()
    assert not any("bsfa" in name for name in weights)
    bsfa.disable(model)
    how(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, IDS), logits(model, IDS))


def test_a_shared_configuration_is_no_shared_gate() -> None:
    one = tiny_model("llama")
    two = transformers.LlamaForCausalLM(one.config).eval()
    two.load_state_dict(one.state_dict())
    assert two.config is one.config
    mask = torch.ones_like(IDS)
    mask[0, :40] = 0
    dense, padded = logits(two, IDS), logits(two, IDS, attention_mask=mask)
    sparse = logits(gated(one), IDS)
    assert (sparse - dense).abs().max() > 1e-2
    assert torch.equal(logits(two, IDS), dense)
    assert torch.equal(logits(two, IDS, attention_mask=mask), padded)
    with pytest.raises(bsfa.InvalidArgumentError, match="not enabled"):
        bsfa.stats(two)
    bsfa.enable(two)
    torch.testing.assert_close(logits(two, IDS), dense, atol=2e-4, rtol=1e-4)
    assert torch.equal(logits(one, IDS), sparse)
    assert (bsfa.stats(one).mode, bsfa.stats(two).mode) == ("threshold", "dense")
    bsfa.disable(one)  # the other one still runs
    assert torch.equal(logits(one, IDS), dense)
    logits(two, IDS)
    assert bsfa.stats(two).density == 1
    bsfa.disable(two)
    assert one.config._attn_implementation == "sdpa"
    assert torch.equal(logits(two, IDS), dense)


def test_models_loaded_by_name_on_one_configuration() -> None:
    one = tiny_model("llama", attention="bsfa")
    two = transformers.LlamaForCausalLM(one.config).eval()
    logits(one, IDS)
    logits(two, IDS)
    bsfa.set_mode(one, "sliding_window", budget=0)
    narrow = logits(one, IDS)
    logits(two, IDS)
    assert bsfa.stats(two).density == 1
    assert bsfa.stats(one).density < 1
    copied = copy.deepcopy(one)
    assert torch.equal(logits(copied, IDS), narrow)


def test_what_runs_is_asked_and_not_remembered() -> None:
    model = gated(tiny_model("llama"))
    logits(model, IDS)
    model.set_attn_implementation("eager")
    for use in (bsfa.stats, lambda m: bsfa.set_budget(m, 1), lambda m: bsfa.set_mode(m, "dense")):
        with pytest.raises(bsfa.InvalidArgumentError, match="runs attention 'eager', which was"):
            use(model)
    bsfa.disable(model)
    assert model.config._attn_implementation == "eager"  # what was set, not what was before

    gated(model)
    model.set_attn_implementation("sdpa")
    bsfa.enable(model)
    assert bsfa.stats(model).previous == "sdpa"
    assert bsfa.stats(model).layers == ()
    bsfa.disable(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_refused_enable_keeps_what_was_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gated(tiny_model("llama"))
    sparse = logits(model, IDS)

    def refuse(*_: Any) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(type(model), "set_attn_implementation", refuse)
        with pytest.raises(RuntimeError, match="no"):
            bsfa.enable(model)
    assert torch.equal(logits(model, IDS), sparse)
    assert bsfa.stats(model).mode == "threshold"


def test_calibration_leaves_copies_and_sharers_alone() -> None:
    one = gated(tiny_model("llama"))
    two = transformers.LlamaForCausalLM(one.config).eval()
    sparse, other = logits(one, IDS), logits(two, IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", bsfa.FallbackWarning)
        bsfa.calibrate(two, [IDS], budgets=[1])
    assert torch.equal(logits(one, IDS), sparse)
    assert torch.equal(logits(two, IDS), other)
    with pytest.raises(bsfa.InvalidArgumentError, match="not enabled"):
        bsfa.stats(two)
