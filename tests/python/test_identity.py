"""Fingerprints of weights, and what is said where they differ."""

from __future__ import annotations

import hashlib
import warnings

import pytest
import torch

import bsfa
from bsfa import identity
from tiny import logits, table_for, tiny_model, tokens


def by_definition(model: torch.nn.Module) -> str:
    """docs/method.md, "Fingerprints", without the library."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.model.named_parameters()):
        values = parameter.detach().flatten()
        n = len(values)
        if n > 64:
            values = values[[i * (n - 1) // 63 for i in range(64)]]
        samples = values.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
        shape = "".join(f" {extent}" for extent in parameter.shape)
        digest.update(
            f"{len(name)} {name} {parameter.dim()}{shape} {len(samples)}\n".encode() + samples
        )
    return "torch:" + digest.hexdigest()[:32]


def test_a_fingerprint_is_its_definition() -> None:
    for family in ("llama", "qwen3"):
        model = tiny_model(family)
        assert identity.fingerprint(model) == by_definition(model)


def test_a_fingerprint_sees_the_weights_alone() -> None:
    model = tiny_model("llama")
    original = identity.fingerprint(model)
    assert identity.fingerprint(tiny_model("llama")) == original
    assert identity.fingerprint(model.model) == original  # the decoder without its head
    assert identity.fingerprint(model.to(torch.bfloat16)) == original
    model = tiny_model("llama")
    embedding = model.model.embed_tokens.weight
    embedding.data = embedding.data.t().contiguous().t()
    assert not embedding.is_contiguous()
    assert identity.fingerprint(model) == original
    assert identity.fingerprint(tiny_model("llama", num_hidden_layers=3)) != original
    for name, parameter in list(model.model.named_parameters()):
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.01)
        assert identity.fingerprint(model) != original, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert identity.fingerprint(model) == original


def test_weights_that_are_no_numbers_or_not_here() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp.gate_proj
    for values in (
        torch.randint(-100, 100, layer.weight.shape, dtype=torch.int8),
        torch.randn(layer.weight.shape).to(torch.float8_e4m3fn),
        torch.randn(()),
        torch.zeros(0, 5),
    ):
        layer.weight = torch.nn.Parameter(values, requires_grad=False)
        assert identity.fingerprint(model).startswith("torch:")
    layer.weight = torch.nn.Parameter(torch.empty(48, 32, device="meta"))
    assert identity.fingerprint(model) == ""


def table_of(fingerprint: str, name: str = "tiny") -> bsfa.ThresholdTable:
    values = torch.zeros(1, 2, 4, 2)
    return bsfa.ThresholdTable(
        values,
        budgets=[3],
        softmax_scale=0.25,
        max_seqlen=256,
        model=name,
        num_samples=1,
        producer="the tests",
        fingerprint=fingerprint,
    )


def test_enabling_with_thresholds_of_other_weights_warns() -> None:
    model = tiny_model("llama")
    own = bsfa.calibrate(model, [tokens(1, 200)], budgets=[1])
    assert own.fingerprint == identity.fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bsfa.enable(model, own, 1)
        bsfa.enable(model, table_of(own.fingerprint, "another name"), 3)
        bsfa.enable(model, table_of(""), 3)  # an older file, and a model without a name
        bsfa.enable(model, table_of("gguf:" + "1" * 32), 3)  # says nothing about this one
        bsfa.enable(model, table_of("torch:" + "1" * 32), 3, allow_other_model=True)
        model.config._name_or_path = "org/Other-7B"
        bsfa.enable(model, table_of(own.fingerprint), 3)
        bsfa.enable(model, table_of("", "other-7b-instruct"), 3)
    with pytest.warns(bsfa.OtherModelWarning, match="torch:1111.*allow_other_model=True") as said:
        bsfa.enable(model, table_of("torch:" + "1" * 32), 3)
    assert len(said) == 1
    assert said[0].filename == __file__
    for fingerprint in ("", "gguf:" + "1" * 32):
        with pytest.warns(bsfa.OtherModelWarning, match="'tiny'.*'org/Other-7B'"):
            bsfa.enable(model, table_of(fingerprint), 3)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(2)
    with pytest.warns(bsfa.OtherModelWarning, match="made for"):
        bsfa.enable(model, own, 1)
    logits(model, tokens(1, 200))  # and it runs, as was asked


def test_old_tables_have_no_fingerprint() -> None:
    assert table_for(None, torch.zeros(1, 2, 4, 2), [3]).fingerprint == ""
    with pytest.raises(bsfa.InvalidArgumentError, match="fingerprint is 'x'"):
        table_of("x")
