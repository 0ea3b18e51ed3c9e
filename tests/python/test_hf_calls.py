"""Layers of a table are the attention calls that are made: hybrids, modules called twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bsfa
from bsfa.cli import main
from bsfa.hf.models import model_shape
from tiny import SHAPE, logits, tiny_model, tokens

IDS = tokens(1, 300)


def diffllama() -> Any:
    """Two attention calls in a module."""
    config = transformers.DiffLlamaConfig(**SHAPE)
    torch.manual_seed(1)
    return transformers.DiffLlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def lfm2() -> Any:
    """Attention in some layers only, and their layer_idx is not their number."""
    config = transformers.Lfm2Config(
        **{**SHAPE, "num_hidden_layers": 5},
        layer_types=["conv", "full_attention", "conv", "conv", "full_attention"],
    )
    torch.manual_seed(1)
    return transformers.Lfm2ForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def zamba2() -> Any:
    """Attention with a layer_idx of -1, in some layers only."""
    config = transformers.Zamba2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_head_dim=16,
        mamba_d_state=8,
        mamba_headdim=16,
        mamba_ngroups=1,
        n_mamba_heads=4,
        num_mem_blocks=1,
        adapter_rank=4,
        use_mem_rope=True,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    return transformers.Zamba2ForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def cycles() -> Any:
    """Modules that a pass calls again and again."""
    config = transformers.HrmTextConfig(
        **{**SHAPE, "num_hidden_layers": 8}, num_layers_per_stack=1, H_cycles=2, L_cycles=3
    )
    torch.manual_seed(1)
    return transformers.HrmTextForCausalLM._from_config(config, attn_implementation="sdpa").eval()


MODELS = {"diffllama": (diffllama, 4), "lfm2": (lfm2, 2), "zamba2": (zamba2, 2), "hrm": (cycles, 8)}


@pytest.fixture(params=MODELS)
def some(request: pytest.FixtureRequest) -> tuple[Any, int]:
    make, calls = MODELS[request.param]
    return make(), calls


def table_of(model: Any, values: torch.Tensor) -> bsfa.ThresholdTable:
    """A table from values [layers, blocks], alike for all heads."""
    shape = model_shape(model)
    return bsfa.ThresholdTable(
        values[None, :, None].expand(1, -1, shape.num_heads_q, -1).contiguous(),
        budgets=[1],
        softmax_scale=shape.softmax_scale,
        max_seqlen=128 * values.shape[1],
        model="tiny",
        num_samples=1,
        producer="the tests",
    )


def test_dense_counts_every_call(some: tuple[Any, int]) -> None:
    model, calls = some
    before = logits(model, IDS)
    bsfa.enable(model)
    for _ in range(2):
        torch.testing.assert_close(logits(model, IDS), before, atol=3e-4, rtol=1e-3)
        stats = bsfa.stats(model)
        assert stats.fallbacks == {}
        assert [layer.layer for layer in stats.layers] == list(range(calls))
        assert stats.density == 1


def test_each_call_has_its_own_layer(some: tuple[Any, int]) -> None:
    """One call after the other loses its blocks, and no other does."""
    model, calls = some
    dense = logits(model, IDS)
    for gated in range(calls):
        values = torch.full((calls, 3), -math.inf)
        values[gated] = math.inf
        bsfa.enable(model, table_of(model, values), 1)
        for _ in range(2):
            sparse = logits(model, IDS)
            densities = [layer.density for layer in bsfa.stats(model).layers]
            assert [d < 1 for d in densities] == [i == gated for i in range(calls)]
        assert not torch.equal(sparse, dense)
        assert bsfa.stats(model).fallbacks == {}


def test_calibrated_and_run(some: tuple[Any, int]) -> None:
    model, calls = some
    table = bsfa.calibrate(model, [IDS, tokens(1, 400, seed=3)], budgets=[1])
    assert table.num_layers == calls
    values = torch.from_dlpack(table.thresholds(1))
    assert values[:, :, 2].isfinite().all()
    assert not torch.equal(values[0], values[-1])
    assert model.config._attn_implementation == "sdpa"
    bsfa.enable(model, table, 1)
    logits(model, IDS)
    stats = bsfa.stats(model)
    assert len(stats.layers) == calls
    assert stats.density == pytest.approx(bsfa.predicted_density(1, 300), abs=0.2)


def test_a_table_of_other_layers_is_refused(some: tuple[Any, int]) -> None:
    model, calls = some
    for wrong in (calls - 1, calls + 1):
        with pytest.raises(bsfa.Error, match=f"{wrong} layers.*{calls}|{calls}.*{wrong}"):
            bsfa.enable(model, table_of(model, torch.zeros(wrong, 3)), 1)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(bsfa.InvalidArgumentError, match="not enabled"):
        bsfa.stats(model)


def test_a_pass_that_broke_off_shifts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = diffllama()
    values = torch.full((4, 3), -math.inf)
    values[1] = math.inf
    bsfa.enable(model, table_of(model, values), 1)
    expected = logits(model, IDS)

    def break_off(*_: Any) -> None:
        raise RuntimeError("broke off")

    with monkeypatch.context() as patched:
        patched.setattr("bsfa.hf.prefill.run", break_off)
        with pytest.raises(RuntimeError, match="broke off"):
            logits(model, IDS)
    assert torch.equal(logits(model, IDS), expected)


def test_two_calls_in_a_compiled_module() -> None:
    model = diffllama()
    values = torch.full((4, 3), -math.inf)
    values[2] = math.inf
    bsfa.enable(model, table_of(model, values), 1)
    expected = logits(model, IDS)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        after = logits(compiled, IDS, attention_mask=torch.ones_like(IDS))
        torch.testing.assert_close(after, expected, atol=2e-4, rtol=1e-4)
        densities = [layer.density for layer in bsfa.stats(model).layers]
        assert [d < 1 for d in densities] == [False, False, True, False]


def test_a_layer_that_runs_alone_keeps_its_thresholds() -> None:
    """Frameworks that take a model apart call its layers one by one, as often as they like."""
    model = tiny_model("llama")
    values = torch.full((2, 3), -math.inf)
    values[1] = math.inf
    bsfa.enable(model, table_of(model, values), 1)
    x = torch.randn(1, 300, 32)
    positions = model.model.rotary_emb(x, torch.arange(300)[None])
    with torch.no_grad():
        for layer, gated in ((0, False), (1, True), (1, True), (0, False)):
            model.model.layers[layer](x, position_embeddings=positions)
            (one,) = [s for s in bsfa.stats(model).layers if s.layer == layer]
            assert (one.density < 1) == gated


@pytest.mark.parametrize("make", [lfm2, zamba2])
def test_a_file_is_checked_against_the_layers_that_attend(make: Any, tmp_path: Path) -> None:
    model = make()
    path = tmp_path / "t.safetensors"
    for layers, code in ((2, 0), (model.config.num_hidden_layers, 2)):
        table_of(model, torch.zeros(layers, 3)).save(str(path))
        model.config.save_pretrained(tmp_path)
        assert main(["thresholds", "check", str(path), "--model", str(tmp_path)]) == code
