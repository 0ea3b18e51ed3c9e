"""Transformers: every family, padding, caches, decoding, fallbacks, settings."""

from __future__ import annotations

import copy
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, DynamicCache, StaticCache

import bsfa
from bsfa.hf import masks
from bsfa.hf.compiled import FOLLOWS_CLOSURES
from tiny import DEFAULT_ATTENTION, FAMILIES, SHAPE, logits, table_for, tiny_model, tokens


def dense_table(model: object, blocks: int = 4) -> bsfa.ThresholdTable:
    """Budget 9 keeps everything, budget 1 nothing beside the diagonal."""
    values = torch.full((2, 2, 4, blocks), math.inf)
    values[1] = -math.inf
    return table_for(model, values, [1, 9])


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_is_what_the_model_computed_before(family: str) -> None:
    model = tiny_model(family)
    ids = tokens(2, 300)
    before = logits(model, ids)
    bsfa.enable(model)
    after = logits(model, ids)
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert stats.mode == "dense"
    assert [layer.layer for layer in stats.layers] == [0, 1]
    assert stats.fallbacks == {}
    assert stats.density == 1
    bsfa.disable(model)
    assert model.config._attn_implementation == DEFAULT_ATTENTION.get(family, "sdpa")
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_gate_full_attention_alone(family: str) -> None:
    model = tiny_model(family)
    ids = tokens(1, 400)
    dense = logits(model, ids)
    bsfa.enable(model, dense_table(model), 9)
    torch.testing.assert_close(logits(model, ids), dense, atol=2e-4, rtol=1e-4)
    assert bsfa.stats(model).density == 1

    bsfa.set_budget(model, 1)
    sparse = logits(model, ids)
    for layer in bsfa.stats(model).layers:
        windowed = family == "mistral-windowed" or (family[:5] == "gemma" and layer.layer == 0)
        if windowed:
            assert layer.attention == "windowed"
            assert "window of 70 tokens" in str(layer.reason)
            assert layer.density == 1
        else:
            assert layer.attention == "threshold"
            assert layer.reason is None
            # 4 query blocks on 7 key blocks: only the diagonal is left.
            assert layer.kept_blocks == (7,) * 4
            assert layer.visible_blocks == (2 + 4 + 6 + 7,) * 4
    if family == "mistral-windowed":
        torch.testing.assert_close(sparse, dense, atol=2e-4, rtol=1e-4)
    else:
        assert (sparse - dense)[:, :128].abs().max() < 2e-4
        assert (sparse - dense)[:, 128:].abs().max() > 1e-2


def test_the_gate_is_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention inside a model against the plain form of the method, at a real threshold."""
    from reference import gated_attention, middling_thresholds

    seen = {}

    def spy(module, query, key, value, mask, scaling=None, **kwargs):
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        table = middling_thresholds(gated_attention(q, k, v, causal=True, softmax_scale=scaling)[4])
        seen[module.layer_idx] = table
        out = gated_attention(q, k, v, causal=True, softmax_scale=scaling, thresholds=table)[0]
        return out.to(query.dtype), None

    AttentionInterface.register("spy", spy)
    model = tiny_model("qwen3")
    ids = tokens(1, 400)
    model.set_attn_implementation("spy")
    expected = logits(model, ids)
    model.set_attn_implementation("sdpa")
    values = torch.stack([seen[0], seen[1]])[None]
    bsfa.enable(model, table_for(model, values, [5]), 5)
    torch.testing.assert_close(logits(model, ids), expected, atol=5e-4, rtol=1e-4)
    assert 0.4 < bsfa.stats(model).density < 0.95


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding(family: str, side: str) -> None:
    """A padded batch gives each sequence what it gets alone, gated too."""
    model = tiny_model(family)
    lengths = [300, 190, 40]
    ids = torch.zeros(3, 300, dtype=torch.long)
    mask = torch.zeros(3, 300, dtype=torch.long)
    spans = []
    for row, length in enumerate(lengths):
        first = {"left": 300 - length, "right": 0, "both": (300 - length) // 2}[side]
        span = slice(first, first + length)
        ids[row, span] = tokens(1, length, seed=row)[0]
        mask[row, span] = 1
        spans.append(span)
    before = logits(model, ids, attention_mask=mask)
    bsfa.enable(model, dense_table(model), 9)
    after = logits(model, ids, attention_mask=mask)
    for row, span in enumerate(spans):
        torch.testing.assert_close(after[row, span], before[row, span], atol=3e-4, rtol=1e-4)
    bsfa.set_budget(model, 1)
    together = logits(model, ids, attention_mask=mask)
    kept = sum(sum(layer.kept_blocks) for layer in bsfa.stats(model).layers)
    alone = 0
    for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        # Positions as the padded batch has them: left padding shifts rotary embeddings.
        positions = torch.arange(300)[None, span]
        single = logits(model, tokens(1, length, seed=row), position_ids=positions)
        torch.testing.assert_close(together[row, span], single[0], atol=3e-4, rtol=1e-4)
        alone += sum(sum(layer.kept_blocks) for layer in bsfa.stats(model).layers)
    assert kept == alone
    assert bsfa.stats(model).fallbacks == {}


def test_padding_inside_a_sequence_falls_back() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 100)
    mask = torch.ones(1, 100, dtype=torch.long)
    mask[0, 50] = 0
    before = logits(model, ids, attention_mask=mask)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="padded at their ends"):
        after = logits(model, ids, attention_mask=mask)
    assert torch.equal(after, before)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral-windowed"])
@pytest.mark.parametrize("budget", [1, 9])
def test_chunked_prefill_decides_like_one_call(family: str, budget: int) -> None:
    model = tiny_model(family)
    ids = tokens(1, 384)
    bsfa.enable(model, dense_table(model), budget)
    whole = logits(model, ids)
    cache = DynamicCache(config=model.config)
    parts = []
    with torch.no_grad():
        for chunk in ids.split(128, dim=1):
            parts.append(model(chunk, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-4, rtol=1e-4)
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate(family: str, cache: str) -> None:
    model = tiny_model(family)
    ids = tokens(2, 150)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    arguments = {
        "attention_mask": mask,
        "max_new_tokens": 6,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    before = model.generate(ids, **arguments)
    bsfa.enable(model)
    assert torch.equal(model.generate(ids, **arguments), before)
    stats = bsfa.stats(model)
    assert stats.decode_calls == 2 * 5
    assert stats.fallbacks == {}
    assert [layer.attention for layer in stats.layers] == [
        "windowed" if family == "gemma2" else "dense",
        "dense",
    ]


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_decoding_step_runs_the_same_operations(cache: Any) -> None:
    """Not one torch operation more or less than without bsfa, on the same operands."""

    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
            self.calls.append((func, shapes))
            return func(*args, **(kwargs or {}))

    model = tiny_model("llama")
    ids = tokens(1, 60)
    length = {"max_cache_len": 80} if cache is StaticCache else {}
    logs = []
    for enabled in (False, True):
        if enabled:
            bsfa.enable(model)
        past = cache(config=model.config, **length)
        with torch.inference_mode():
            model(ids, past_key_values=past)
            with Log() as log:
                model(ids[:, :1], past_key_values=past)
        logs.append(log.calls)
    assert len(logs[0]) > 20
    assert logs[0] == logs[1]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 129])
def test_short_prompts(length: int) -> None:
    model = tiny_model("llama")
    ids = tokens(1, length)
    before = logits(model, ids)
    bsfa.enable(model, dense_table(model), 1)
    after = logits(model, ids)
    if length <= 128:
        torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert stats.decode_calls == (2 if length < 32 else 0)
    assert len(stats.layers) == (0 if length < 32 else 2)


def capped_model() -> Any:
    """Gemma 2 as it is trained: scores pass through a softcap that they reach."""
    return tiny_model("gemma2", attention="eager", attn_logit_softcapping=1.5)


def test_softcap_is_computed() -> None:
    model = capped_model()
    ids = tokens(2, 300)
    before = logits(model, ids)
    uncapped = tiny_model("gemma2", attention="eager")
    assert (logits(uncapped, ids) - before).abs().max() > 1e-2
    bsfa.enable(model)
    torch.testing.assert_close(logits(model, ids), before, atol=2e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert stats.fallbacks == {}
    assert [layer.attention for layer in stats.layers] == ["windowed", "dense"]
    with torch.no_grad():
        alone = model.generate(ids[:1], max_new_tokens=5, do_sample=False)
        bsfa.disable(model)
        assert torch.equal(model.generate(ids[:1], max_new_tokens=5, do_sample=False), alone)


def test_the_gate_is_on_the_capped_score() -> None:
    from reference import gated_attention, middling_thresholds

    tables = {}

    def spy(module, query, key, value, mask, scaling=None, softcap=None, **kwargs):
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        window = 70 if module.layer_idx == 0 else None
        given: Any = {"causal": True, "softmax_scale": scaling, "softcap": softcap}
        table = None
        if window is None:
            table = middling_thresholds(gated_attention(q, k, v, **given)[4])
        tables[module.layer_idx] = torch.full((4, 4), -math.inf) if table is None else table
        out = gated_attention(q, k, v, window=window, thresholds=table, **given)[0]
        return out.to(query.dtype), None

    AttentionInterface.register("capped_spy", spy)
    model = capped_model()
    ids = tokens(1, 400)
    model.set_attn_implementation("capped_spy")
    expected = logits(model, ids)
    model.set_attn_implementation("eager")
    values = torch.stack([tables[0], tables[1]])[None]
    bsfa.enable(model, table_for(model, values, [5]), 5)
    torch.testing.assert_close(logits(model, ids), expected, atol=5e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert stats.fallbacks == {}
    assert 0.4 < stats.layers[1].density < 0.95

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=FOLLOWS_CLOSURES, backend="aot_eager")
    after = logits(compiled, ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(after, expected, atol=5e-4, rtol=1e-4)
    assert bsfa.stats(model).fallbacks == {}


def test_sinks_fall_back() -> None:
    import transformers

    config = transformers.GptOssConfig(
        **SHAPE,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=70,
    )
    model = transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager").eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    ids = tokens(1, 100)
    before = logits(model, ids)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="s_aux"):
        after = logits(model, ids)
    assert torch.equal(after, before)


def test_gradients_and_weights_fall_back() -> None:
    model = tiny_model("llama", attention="eager")
    ids = tokens(1, 64)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="gradients are recorded"):
        model(ids).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_a_custom_mask_falls_back() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 64)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    mask[..., 10:, 3] = False
    before = logits(model, ids, attention_mask=mask)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="a mask that is not causal"):
        after = logits(model, ids, attention_mask=mask)
    assert torch.equal(after, before)


def test_packed_sequences_fall_back() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 100)
    positions = torch.cat([torch.arange(60), torch.arange(40)])[None]
    before = logits(model, ids, position_ids=positions)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="a mask that is not causal"):
        after = logits(model, ids, position_ids=positions)
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    ids = tokens(1, 200)
    exact = logits(copy.deepcopy(model).float(), ids)
    before = logits(model, ids)
    bsfa.enable(model)
    after = logits(model, ids)
    error, allowed = (after - exact).abs().max(), (before - exact).abs().max()
    assert error <= 2 * allowed + 1e-3


def test_sliding_window_baseline() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 400)
    dense = logits(model, ids)
    bsfa.enable(model, mode="sliding_window", budget=100)
    torch.testing.assert_close(logits(model, ids), dense, atol=2e-4, rtol=1e-4)
    bsfa.set_budget(model, 1)
    assert (logits(model, ids) - dense).abs().max() > 1e-2
    assert bsfa.stats(model).layers[0].kept_blocks == (2 + 3 + 3 + 2,) * 4
    bsfa.set_mode(model, "dense")
    torch.testing.assert_close(logits(model, ids), dense, atol=2e-4, rtol=1e-4)


def test_settings_change_without_reloading() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 300)
    bsfa.enable(model, dense_table(model), 9)
    dense = logits(model, ids)
    bsfa.set_mode(model, "sliding_window", budget=0)
    narrow = logits(model, ids)
    bsfa.set_mode(model, "threshold", budget=1)
    assert torch.equal(logits(model, ids), narrow)
    bsfa.set_budget(model, 9)
    assert torch.equal(logits(model, ids), dense)
    bsfa.enable(model)  # again, with other settings: what it had before is still sdpa
    bsfa.disable(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    path = tmp_path / "t.safetensors"
    dense_table(model).save(str(path))
    ids = tokens(1, 300)
    monkeypatch.setenv("BSFA_THRESHOLDS", str(path))
    monkeypatch.setenv("BSFA_BUDGET", "1")
    bsfa.enable(model)
    sparse = logits(model, ids)
    assert bsfa.stats(model).mode == "threshold"
    assert bsfa.stats(model).budget == 1

    # A model that asks for the implementation by name is set up by the environment alone.
    named = tiny_model("llama", attention="bsfa")
    assert torch.equal(logits(named, ids), sparse)
    assert bsfa.stats(named).previous == "sdpa"
    monkeypatch.setenv("BSFA_MODE", "dense")
    bsfa.enable(model)
    assert bsfa.stats(model).mode == "dense"
    monkeypatch.setenv("BSFA_BUDGET", "many")
    with pytest.raises(bsfa.InvalidArgumentError, match="BSFA_BUDGET is 'many'"):
        bsfa.enable(model)


def test_thresholds_beyond_their_length_say_so() -> None:
    model = tiny_model("llama")
    bsfa.enable(model, dense_table(model, blocks=2), 1)
    with pytest.warns(bsfa.FallbackWarning, match="300 tokens is beyond the 256"):
        logits(model, tokens(1, 300))
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "fast"}, bsfa.InvalidArgumentError, "mode is 'fast'; accepted: dense, "),
        ({"mode": "threshold"}, bsfa.InvalidArgumentError, "needs thresholds"),
        ({"mode": "sliding_window"}, bsfa.InvalidArgumentError, "budget is None"),
        ({"mode": "sparge"}, bsfa.UnsupportedError, "spas_sage_attn.*cannot be imported"),
        ({"thresholds": "none.safetensors"}, bsfa.FileError, r"none\.safetensors"),
        ({"thresholds": "table"}, bsfa.InvalidArgumentError, "budget is missing.*1, 9"),
        ({"thresholds": "table", "budget": 7}, bsfa.InvalidArgumentError, "budget is 7.*1, 9"),
        ({"thresholds": "table", "budget": 1.5}, bsfa.InvalidArgumentError, r"budget is 1\.5"),
        ({"thresholds": "foreign", "budget": 1}, bsfa.Error, "layers"),
        ({"compute_type": "int8"}, bsfa.InvalidArgumentError, "compute_type is 'int8'"),
    ],
)
def test_refusals_leave_the_model_alone(arguments: dict, error: type, message: str) -> None:
    model = tiny_model("llama")
    if arguments.get("thresholds") == "table":
        arguments = {**arguments, "thresholds": dense_table(model)}
    if arguments.get("thresholds") == "foreign":
        foreign = table_for(model, torch.zeros(1, 3, 4, 2), [1])
        arguments = {**arguments, "thresholds": foreign}
    with pytest.raises(error, match=message):
        bsfa.enable(model, **arguments)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(bsfa.InvalidArgumentError, match="not enabled"):
        bsfa.stats(model)


def test_bad_changes_leave_the_settings_alone() -> None:
    model = tiny_model("llama")
    bsfa.enable(model, dense_table(model), 9)
    for change in (
        lambda: bsfa.set_budget(model, 5),
        lambda: bsfa.set_mode(model, "fast"),
        lambda: bsfa.enable(model, mode="sliding_window", budget=-1),
    ):
        with pytest.raises(bsfa.InvalidArgumentError):
            change()
    stats = bsfa.stats(model)
    assert (stats.mode, stats.budget) == ("threshold", 9)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match="model is of type Linear"):
        bsfa.enable(torch.nn.Linear(2, 2))


def test_models_do_not_share_their_settings() -> None:
    one, two = tiny_model("llama"), tiny_model("llama")
    ids = tokens(1, 300)
    dense = logits(two, ids)
    bsfa.enable(one, dense_table(one), 1)
    assert torch.equal(logits(two, ids), dense)
    bsfa.enable(two)
    logits(one, ids)
    assert bsfa.stats(two).layers == ()


def test_an_enabled_model_saves_and_is_freed(tmp_path: Path) -> None:
    from bsfa.hf import state

    model = tiny_model("llama")
    bsfa.enable(model, dense_table(model), 1)
    logits(model, tokens(1, 100))
    model.save_pretrained(tmp_path)
    assert "bsfa" not in (tmp_path / "config.json").read_text()
    key = id(model.config)
    assert key in state.SWITCHED
    del model
    gc.collect()
    assert key not in state.SWITCHED


def test_a_sequence_without_tokens_and_chunks_of_a_padded_batch() -> None:
    model = tiny_model("llama")
    ids = tokens(3, 256)
    mask = torch.ones_like(ids)
    mask[0, :150] = 0
    mask[1, 200:] = 0
    bsfa.enable(model, dense_table(model), 1)
    whole = logits(model, ids, attention_mask=mask)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [
            model(ids[:, :128], attention_mask=mask[:, :128], past_key_values=cache).logits,
            model(ids[:, 128:], attention_mask=mask, past_key_values=cache).logits,
        ]
    real = mask.bool()
    # Rows of padding may differ: what they hold is nobody's result.
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], atol=3e-4, rtol=1e-4)
    mask[2] = 0
    together = logits(model, ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(together[real], whole[real], atol=3e-4, rtol=1e-4)
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_a_compiled_model_is_one_graph(compiler: str) -> None:
    model = tiny_model("llama")
    ids = tokens(2, 300)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    bsfa.enable(model, dense_table(model), 1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for arguments in ({}, {"attention_mask": mask}):
        with torch.no_grad():
            expected, after = model(ids, **arguments).logits, compiled(ids, **arguments).logits
        torch.testing.assert_close(after, expected, atol=2e-4, rtol=1e-4)
        assert bsfa.stats(model).layers[0].attention == "threshold"
    bsfa.set_budget(model, 9)  # holds without compiling again
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        after, expected = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
        assert bsfa.stats(model).density == 1
    torch.testing.assert_close(after.logits, expected.logits, atol=2e-4, rtol=1e-4)
    with torch.no_grad():  # decoding is traced through to the attention that the model had
        after, expected = compiled(ids[:, :1]).logits, model(ids[:, :1]).logits
    torch.testing.assert_close(after, expected, atol=2e-4, rtol=1e-4)
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral-windowed"])
def test_a_compiled_model_with_windows_is_one_graph(family: str) -> None:
    """Prefill, a second part of the prompt through the cache, and a token, padded on the left.

    With a torch that cannot look into closures the same in several graphs.
    """
    model = tiny_model(family)
    ids = tokens(2, 300)
    mask = torch.ones_like(ids)
    mask[1, :90] = 0
    bsfa.enable(model, dense_table(model), 1)

    @torch.no_grad()
    def run(step: Any) -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config)
        return [
            step(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
            for a, b in ((0, 250), (250, 299), (299, 300))
        ]

    expected = run(model)
    attention = [layer.attention for layer in bsfa.stats(model).layers]
    assert "windowed" in attention
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=FOLLOWS_CLOSURES, backend="aot_eager")
    for after, before in zip(run(compiled), expected, strict=True):
        torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    stats = bsfa.stats(model)
    assert stats.fallbacks == {}
    assert [layer.attention for layer in stats.layers] == attention


def test_a_mask_of_another_kind_breaks_the_graph_and_nothing_else() -> None:
    """Under the compiler Transformers describes a prompt without mask and cache as packed."""
    model = tiny_model("gemma3")
    ids = tokens(1, 300)
    expected = logits(model, ids)
    bsfa.enable(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.warns(bsfa.FallbackWarning, match="not causal or windowed"):
        after = logits(compiled, ids)
    torch.testing.assert_close(after, expected, atol=2e-4, rtol=1e-4)


def test_compiled_decoding_with_a_static_cache_is_one_graph() -> None:
    model = tiny_model("llama")
    ids = tokens(2, 150)

    def generate(step: object) -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=200)
        chosen = []
        with torch.no_grad():
            scores = model(ids, past_key_values=cache).logits[:, -1:]
            for _ in range(5):
                chosen.append(scores.argmax(-1))
                scores = step(chosen[-1], past_key_values=cache).logits[:, -1:]
        return torch.cat(chosen, dim=1)

    before = generate(model)
    bsfa.enable(model)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(generate(compiled), before)
    assert bsfa.stats(model).fallbacks == {}


def test_padding_inside_falls_back_under_the_compiler_too() -> None:
    model = tiny_model("llama")
    ids = tokens(1, 100)
    mask = torch.ones(1, 100, dtype=torch.long)
    mask[0, 50] = 0
    before = logits(model, ids, attention_mask=mask)
    bsfa.enable(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.warns(bsfa.FallbackWarning, match="padded at their ends"):
        after = logits(compiled, ids, attention_mask=mask)
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)


def test_a_placeholder_survives_copies_and_has_the_values_of_the_mask() -> None:
    model = tiny_model("llama", attention="eager")
    arguments = {
        "batch_size": 1,
        "q_length": 64,
        "kv_length": 64,
        "q_offset": 0,
        "kv_offset": 0,
        "mask_function": masks.masking_utils.sliding_window_causal_mask_function(9),
        "attention_mask": None,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    plan = masks.make_plan(arguments)
    assert plan is not None
    assert plan.window == 9
    mask = masks.placeholder(plan, "sdpa", model.config)
    assert (mask.shape, mask.dtype) == ((1, 1, 64, 64), torch.bool)
    for same in (mask.clone(), mask.to("cpu", copy=True), mask[:, :, :, :64], mask.contiguous()):
        assert masks.find_plan(same) is plan
    rows = torch.arange(64)
    away = rows[:, None] - rows[None]
    expected = (away >= 0) & (away < 9)
    assert torch.equal(mask[0, 0, :, 3:], expected[:, 3:])
    assert torch.equal(torch.where(mask, 1.0, 2.0)[0, 0], torch.where(expected, 1.0, 2.0))
    q = torch.randn(1, 1, 64, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(q, q, q, attn_mask=mask), attend(q, q, q, expected))
    # What stands for a plan in a compiled graph is an error where it is taken for a mask.
    number = masks.traced_placeholder(plan)
    assert masks.find_plan(number.clone()) is plan
    with pytest.raises(RuntimeError):
        attend(q, q, q, attn_mask=number)
    with pytest.raises(RuntimeError):
        q @ q.transpose(2, 3) + number
    other = masks.masking_utils.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.int))
    assert masks.make_plan({**arguments, "mask_function": other}) is None
    widened = masks.masking_utils.or_masks(
        masks.masking_utils.causal_mask_function, masks.masking_utils.bidirectional_mask_function
    )
    assert masks.make_plan({**arguments, "mask_function": widened}) is None
