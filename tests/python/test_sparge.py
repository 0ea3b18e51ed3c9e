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


CAUSAL = "spas_sage_attn_meansim_topk_cuda"
RECOMMENDED = "spas_sage2_attn_meansim_topk_cuda"


class StandIn(types.ModuleType):
    """The package as its source of December 2025 reads, computing exactly, on any device.

    Both functions have these names and defaults, take as many key heads as query heads, 128 tokens
    or more, and give a tensor of the shape and dtype of q. The recommended one skips blocks of keys
    after the diagonal, but masks nothing inside the diagonal's.
    """

    def __init__(self) -> None:
        super().__init__("spas_sage_attn")
        self.seen: list[dict[str, Any]] = []
        setattr(self, CAUSAL, self.function(CAUSAL, block=1))
        setattr(self, RECOMMENDED, self.function(RECOMMENDED, block=128))

    def function(self, name: str, block: int) -> Any:
        def attention(
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
            topk=0.5,
            pvthreshd=50,
            attention_sink=False,
            tensor_layout="HND",
            output_dtype=torch.float16,
            return_sparsity=False,
        ):
            assert tensor_layout == "HND"
            assert q.shape == k.shape == v.shape
            assert q.shape[2] >= 128
            assert type(topk) is float
            assert type(pvthreshd) in (int, float)
            if len(q) > 1 or q.shape[1] > 1:  # not the trial
                self.seen.append({"name": name, **locals()})
            rows = torch.arange(q.shape[2])
            mask = rows[None] // block <= rows[:, None] // block
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

        return attention


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "spas_sage_attn", module)
    monkeypatch.setattr(sparge, "_DEVICE", "cpu")
    return module


@pytest.fixture
def calls(package: StandIn) -> list[dict[str, Any]]:
    """The calls of the stand-in, less those that try it out."""
    return package.seen


def test_arguments_and_result(calls: list[dict[str, Any]]) -> None:
    model = tiny_model("llama", **HEAD_DIM).bfloat16()
    ids = tokens(2, 200)
    before = logits(model, ids)
    bsfa.enable(model, mode="sparge", sparge=bsfa.Sparge(topk=1, pv_threshold=20))
    after = logits(model, ids)
    torch.testing.assert_close(after, before, atol=3e-2, rtol=3e-2)
    assert len(calls) == 2
    for call in calls:
        assert call["name"] == CAUSAL
        assert call["q"].shape == (2, 4, 200, 64)  # keys and values as well
        assert call["is_causal"] is True
        assert call["scale"] == 64**-0.5
        assert (call["topk"], call["pvthreshd"]) == (1, 20)
        assert (call["cdfthreshd"], call["attn_mask"], call["return_sparsity"]) == (
            None,
            None,
            False,
        )
    stats = bsfa.stats(model)
    assert [layer.attention for layer in stats.layers] == ["sparge", "sparge"]
    assert stats.layers[0].kept_blocks == ()
    assert "sparge" in str(stats)
    bsfa.set_mode(model, "sparge", sparge=bsfa.Sparge(topk=0.7))
    logits(model, ids)
    assert (calls[-1]["topk"], calls[-1]["pvthreshd"]) == (0.7, 15)


def test_the_recommended_function_once_it_is_causal(package: StandIn) -> None:
    setattr(package, RECOMMENDED, package.function(RECOMMENDED, block=1))
    model = tiny_model("llama", **HEAD_DIM).bfloat16()
    bsfa.enable(model, mode="sparge")
    logits(model, tokens(1, 256))
    assert [call["name"] for call in package.seen] == [RECOMMENDED] * 2


def test_a_package_that_sees_later_keys_is_refused(package: StandIn) -> None:
    delattr(package, CAUSAL)
    model = tiny_model("llama", **HEAD_DIM).bfloat16()
    with pytest.raises(bsfa.UnsupportedError, match=f"not compute causal.*{RECOMMENDED} lets"):
        bsfa.enable(model, mode="sparge")
    assert model.config._attn_implementation == "sdpa"


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
    few = tiny_model("llama", **HEAD_DIM).bfloat16()
    bsfa.enable(few, mode="sparge", sparge=bsfa.Sparge(topk=0.3))
    with pytest.warns(bsfa.FallbackWarning, match="less than two key blocks"):
        logits(few, tokens(1, 384))
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
    monkeypatch.setattr(sparge, "_DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "spas_sage_attn", types.ModuleType("spas_sage_attn"))
    with pytest.raises(bsfa.UnsupportedError, match="has none of the functions"):
        bsfa.enable(tiny_model("llama"), mode="sparge")
