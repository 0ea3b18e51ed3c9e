"""Mode sparge, on a stand-in with the signature of spas_sage_attn: what it is given, and when.

The package itself needs an NVIDIA card and a build of its own; nothing here runs its kernels.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bsfa
from bsfa.hf import sparge
from tiny import logits, tiny_model, tokens

HEAD_DIM = {"head_dim": 64, "hidden_size": 256}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of the stand-in, which computes exact causal attention."""
    seen: list[dict[str, Any]] = []

    # The signature of the package, names and defaults.
    def spas_sage2_attn_meansim_topk_cuda(
        q,
        k,
        v,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        smooth_k=True,
        simthreshd1=-0.1,
        cdfthreshd=None,
        topk=0.35,
        pvthreshd=50,
        attention_sink=False,
        tensor_layout="HND",
        output_dtype=torch.float16,
        return_sparsity=False,
        return_lse=False,
    ):
        seen.append({**locals()})
        assert tensor_layout == "HND"
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, scale=scale, enable_gqa=True
        )

    module = types.ModuleType("spas_sage_attn")
    module.spas_sage2_attn_meansim_topk_cuda = spas_sage2_attn_meansim_topk_cuda
    monkeypatch.setitem(sys.modules, "spas_sage_attn", module)
    monkeypatch.setattr(sparge, "_DEVICE", "cpu")
    return seen


def test_arguments_and_result(calls: list[dict[str, Any]]) -> None:
    model = tiny_model("llama", **HEAD_DIM).bfloat16()
    ids = tokens(2, 200)
    before = logits(model, ids)
    bsfa.enable(model, mode="sparge", sparge=bsfa.Sparge(topk=0.7, pv_threshold=20))
    after = logits(model, ids)
    torch.testing.assert_close(after, before, atol=3e-2, rtol=3e-2)
    assert len(calls) == 2
    for call in calls:
        assert call["q"].shape == (2, 4, 200, 64)
        assert call["k"].shape == call["v"].shape == (2, 2, 200, 64)  # never repeated
        assert call["is_causal"] is True
        assert call["scale"] == 64**-0.5
        assert (call["topk"], call["pvthreshd"]) == (0.7, 20)
        assert (call["cdfthreshd"], call["attn_mask"], call["return_sparsity"]) == (
            None,
            None,
            False,
        )
    stats = bsfa.stats(model)
    assert [layer.attention for layer in stats.layers] == ["sparge", "sparge"]
    assert stats.layers[0].kept_blocks == ()
    assert "sparge" in str(stats)
    bsfa.set_mode(model, "sparge", sparge=bsfa.Sparge(topk=0.3))
    logits(model, ids)
    assert (calls[-1]["topk"], calls[-1]["pvthreshd"]) == (0.3, 15)


def test_what_it_does_not_compute_falls_back(calls: list[dict[str, Any]]) -> None:
    for model, arguments, reason in (
        (tiny_model("llama", **HEAD_DIM), {}, "torch.float32"),
        (tiny_model("llama").bfloat16(), {}, "head_dim 16"),
        (
            tiny_model("llama", **HEAD_DIM).bfloat16(),
            {"attention_mask": torch.tensor([[0] * 9 + [1] * 191])},
            "padding",
        ),
    ):
        ids = tokens(1, 200)
        before = logits(model, ids, **arguments)
        bsfa.enable(model, mode="sparge")
        with pytest.warns(bsfa.FallbackWarning, match=reason):
            assert torch.equal(logits(model, ids, **arguments), before)
    short = tiny_model("llama", **HEAD_DIM).bfloat16()
    bsfa.enable(short, mode="sparge")
    with pytest.warns(bsfa.FallbackWarning, match="on 100 tokens; accepted: 128"):
        logits(short, tokens(1, 100))
    assert calls == []


def test_a_model_elsewhere_is_refused(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparge, "_DEVICE", "cuda")
    model = tiny_model("llama")
    with pytest.raises(bsfa.UnsupportedError, match="on device cpu; accepted: cuda"):
        bsfa.enable(model, mode="sparge")
    assert model.config._attn_implementation == "sdpa"
    assert calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (bsfa.Sparge(topk=0), "sparge.topk is 0"),
        (bsfa.Sparge(topk=1.5), "sparge.topk is 1.5"),
        (bsfa.Sparge(pv_threshold=-1), "sparge.pv_threshold is -1"),
    ],
)
def test_options_are_checked(
    calls: list[dict[str, Any]], options: bsfa.Sparge, message: str
) -> None:
    model = tiny_model("llama")
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        bsfa.enable(model, mode="sparge", sparge=options)
    assert model.config._attn_implementation == "sdpa"


def test_an_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spas_sage_attn", types.ModuleType("spas_sage_attn"))
    with pytest.raises(bsfa.UnsupportedError, match="has no function spas_sage2_attn_meansim"):
        bsfa.enable(tiny_model("llama"), mode="sparge")
