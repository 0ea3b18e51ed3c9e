"""Transformers under autocast, and under autograd in every form."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import bsfa
from tiny import logits, table_for, tiny_model, tokens


def gated_model() -> Any:
    """A model whose thresholds keep the diagonal alone."""
    model = tiny_model("llama")
    values = torch.full((1, 2, 4, 4), math.inf)
    bsfa.enable(model, table_for(model, values, [1]), 1)
    return model


def dense_logits(ids: torch.Tensor) -> torch.Tensor:
    return logits(tiny_model("llama"), ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_pytorch_does(dtype: torch.dtype) -> None:
    model, ids = tiny_model("llama"), tokens(1, 400)
    with torch.autocast("cpu", dtype):
        before = logits(model, ids)
    bsfa.enable(model)
    with torch.autocast("cpu", dtype), warnings.catch_warnings():
        warnings.simplefilter("error")
        after = logits(model, ids)
    assert bsfa.stats(model).fallbacks == {}
    assert bsfa.stats(model).density == 1
    torch.testing.assert_close(after, before, atol=5e-2, rtol=5e-2)


def test_what_the_library_refuses_goes_to_the_attention_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bsfa.hf import prefill

    def refuse(*_: Any, **__: Any) -> None:
        raise bsfa.InvalidArgumentError("v has dtype bfloat16; k has float32")

    ids = tokens(1, 200)
    model = gated_model()
    monkeypatch.setattr(prefill, "run_attention", refuse)
    with pytest.warns(bsfa.FallbackWarning, match="v has dtype bfloat16") as caught:
        got = logits(model, ids)
    assert len(caught) == 1  # said once, not once a layer
    torch.testing.assert_close(got, dense_logits(ids), atol=2e-4, rtol=1e-4)
    assert sum(bsfa.stats(model).fallbacks.values()) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_dense_in_both_passes(reentrant: bool) -> None:
    ids = tokens(1, 400)
    plain, model = tiny_model("llama").train(), gated_model().train()
    losses, gradients = [], []
    for m in (plain, model):
        m.gradient_checkpointing_enable({"use_reentrant": reentrant})
        m.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = m(ids, labels=ids, use_cache=False).loss
            loss.backward()
        losses.append(loss.detach())
        gradients.append(m.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert any("autograd" in r or "gradients" in r for r in bsfa.stats(model).fallbacks)
    # The backward pass calls the layers again, which makes them no further ones.
    assert [layer.layer for layer in bsfa.stats(model).layers] == [0, 1]


def test_a_checkpoint_of_ones_own() -> None:
    ids = tokens(1, 400)
    model = gated_model()
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()

    def run(inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=inputs, use_cache=False).logits

    with pytest.warns(bsfa.FallbackWarning, match="autograd.Function"):
        got = checkpoint(run, embeddings, use_reentrant=True)
    torch.testing.assert_close(got.detach(), dense_logits(ids), atol=2e-4, rtol=1e-4)


def test_forward_mode_is_dense() -> None:
    import torch.autograd.forward_ad as forward_ad

    ids = tokens(1, 200)
    model = tiny_model("llama", attention="eager")
    bsfa.enable(model, table_for(model, torch.full((1, 2, 4, 4), math.inf), [1]), 1)
    embeddings = model.get_input_embeddings()(ids).detach()
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(embeddings, torch.ones_like(embeddings))
        with pytest.warns(bsfa.FallbackWarning, match="forward-mode"):
            out = model(inputs_embeds=dual, use_cache=False).logits
        primal, tangent = forward_ad.unpack_dual(out)
    assert tangent is not None
    torch.testing.assert_close(primal, dense_logits(ids), atol=2e-4, rtol=1e-4)


def test_inference_is_gated_as_before() -> None:
    ids = tokens(1, 400)
    for mode in (torch.no_grad, torch.inference_mode):
        model = gated_model()
        with mode(), warnings.catch_warnings():
            warnings.simplefilter("error")
            model(ids, use_cache=False)
        assert bsfa.stats(model).fallbacks == {}
        density = bsfa.stats(model).density
        assert density is not None
        assert density < 0.6
