"""Transformers on a GPU. `pytest tests/python -m gpu`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import bsfa
from bsfa.hf.compiled import FOLLOWS_CLOSURES
from gpu import needs_gpu
from tiny import save_model, table_for, tiny_model, tokens, words

pytestmark = needs_gpu

WIDE = {"head_dim": 64, "hidden_size": 256}


def gpu_model(family: str = "llama", **changes: Any) -> Any:
    if family == "gemma3":
        changes["query_pre_attn_scalar"] = 64
    return tiny_model(family, **WIDE, **changes).to("cuda", torch.bfloat16)


def table() -> bsfa.ThresholdTable:
    """Budget 9 keeps everything, budget 3 some, budget 1 nothing beside the diagonal."""
    values = torch.full((3, 2, 4, 8), torch.inf)
    values[1] = 0.05
    values[2] = -torch.inf
    return table_for(None, values, [1, 3, 9], head_dim=64)


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return model(ids, use_cache=False, **arguments).logits.float()


def close(one: torch.Tensor, other: torch.Tensor, like: torch.Tensor) -> bool:
    """Whether two bf16 computations differ by no more than their rounding explains."""
    return bool((one - other).abs().max() <= 0.03 * like.abs().max())


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-windowed", "gemma3"])
def test_dense_and_gated(family: str, cuda_backend: str) -> None:
    model = gpu_model(family)
    ids = tokens(2, 700).cuda()
    before = logits(model, ids)
    bsfa.enable(model, table(), 9, backend=cuda_backend)
    assert close(logits(model, ids), before, before)
    stats = bsfa.stats(model)
    assert stats.fallbacks == {}
    assert stats.density == 1
    bsfa.set_budget(model, 1)
    sparse = logits(model, ids)
    stats = bsfa.stats(model)
    gated = [layer for layer in stats.layers if layer.attention == "threshold"]
    assert len(gated) == {"mistral-windowed": 0, "gemma3": 1}.get(family, 2)
    for layer in gated:
        assert layer.kept_blocks == (2 * 11,) * 4  # the diagonal alone: 11 key blocks
    if gated:
        assert (sparse - before)[:, 128:].abs().max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_padded_batch_is_each_sequence_alone(side: str, cuda_backend: str) -> None:
    model = gpu_model()
    lengths = [700, 420, 200]
    ids = torch.zeros(3, 700, dtype=torch.long)
    mask = torch.zeros(3, 700, dtype=torch.long)
    spans = []
    for row, length in enumerate(lengths):
        first = {"left": 700 - length, "right": 0, "both": (700 - length) // 2}[side]
        spans.append(slice(first, first + length))
        ids[row, spans[row]] = tokens(1, length, seed=row)[0]
        mask[row, spans[row]] = 1
    ids, mask = ids.cuda(), mask.cuda()
    bsfa.enable(model, table(), 3, backend=cuda_backend)
    together = logits(model, ids, attention_mask=mask)
    kept = [layer.kept_blocks for layer in bsfa.stats(model).layers]
    alone = [[0] * 4, [0] * 4]
    for row, span in enumerate(spans):
        positions = torch.arange(700, device="cuda")[None, span]
        single = logits(model, ids[row : row + 1, span], position_ids=positions)
        assert close(together[row, span], single[0], single)
        for index, layer in enumerate(bsfa.stats(model).layers):
            alone[index] = [a + b for a, b in zip(alone[index], layer.kept_blocks, strict=True)]
    # Activations of one layer may round differently in a batch, so decisions near a threshold may.
    for together_kept, alone_kept in zip(kept, alone, strict=True):
        for one, other in zip(together_kept, alone_kept, strict=True):
            assert abs(one - other) <= 1 + 0.02 * other
    assert bsfa.stats(model).fallbacks == {}


def test_layers_do_not_wait_for_the_device(no_waiting: object) -> None:
    """A whole prefill of a padded batch: the mask is read once, before; then nothing waits."""
    from bsfa.hf import masks

    model = gpu_model()
    bsfa.enable(model, table(), 3)
    ids = tokens(2, 600).cuda()
    for pads in ([], [(0, slice(0, 200))], [(0, slice(0, 200)), (1, slice(500, 600))]):
        mask = torch.ones_like(ids)
        for row, span in pads:
            mask[row, span] = 0
        arguments = {
            "batch_size": 2,
            "q_length": 600,
            "kv_length": 600,
            "q_offset": 0,
            "kv_offset": 0,
            "mask_function": masks.masking_utils.causal_mask_function,
            "attention_mask": mask,
            "device": mask.device,
        }
        expected = logits(model, ids, attention_mask=mask)
        plan = masks.make_plan(arguments)
        assert plan is not None
        placeholder = masks.placeholder(plan, "sdpa", model.config)
        positions = torch.arange(600, device="cuda")[None]
        with torch.inference_mode(), no_waiting:
            hidden = model.model.embed_tokens(ids)
            rotary = model.model.rotary_emb(hidden, position_ids=positions)
            for layer in model.model.layers:
                hidden = layer(
                    hidden, attention_mask=placeholder, position_embeddings=rotary, use_cache=False
                )
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            after = model.lm_head(model.model.norm(hidden)).float()
        real = mask.bool()
        assert close(after[real], expected[real], expected)


def test_chunked_prefill(cuda_backend: str) -> None:
    model = gpu_model()
    ids = tokens(1, 640).cuda()
    bsfa.enable(model, table(), 1, backend=cuda_backend)
    whole = logits(model, ids)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        parts = [model(chunk, past_key_values=cache).logits for chunk in ids.split(128, dim=1)]
    assert close(torch.cat(parts, dim=1).float(), whole, whole)
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate(cache: str) -> None:
    model = gpu_model().float()  # what the kernels do not take goes to the model's own attention
    ids = tokens(2, 150).cuda()
    arguments = {
        "max_new_tokens": 6,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    before = model.generate(ids, **arguments)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="float32"):
        assert torch.equal(model.generate(ids, **arguments), before)
    half = model.to(torch.bfloat16)
    half.generate(ids, **arguments)
    stats = bsfa.stats(half)
    assert stats.decode_calls == 2 * 2 * 5
    assert [layer.attention for layer in stats.layers] == ["dense", "dense"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_model(family: str) -> None:
    model = gpu_model(family)
    ids = tokens(2, 400).cuda()
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    real = mask.bool()
    exact = logits(copy.deepcopy(model).float(), ids, attention_mask=mask)[real]
    before = logits(model, ids, attention_mask=mask)[real]
    bsfa.enable(model, table(), 9)  # keeps everything: no decision hangs on rounding
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=family == "llama" or FOLLOWS_CLOSURES)
    after = logits(compiled, ids, attention_mask=mask)[real]
    assert (after - exact).abs().max() <= 2 * (before - exact).abs().max()
    stats = bsfa.stats(model)
    first = "windowed" if family == "gemma3" else "threshold"
    assert [layer.attention for layer in stats.layers] == [first, "threshold"]
    assert stats.density == 1
    bsfa.set_budget(model, 1)
    sparse = logits(compiled, ids, attention_mask=mask)[real]
    assert bsfa.stats(model).density < 1
    assert (sparse - exact).abs().max() > 2 * (before - exact).abs().max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT RUN: needs two CUDA devices")
def test_a_model_on_another_card_than_the_current(cuda_backend: str) -> None:
    ids = tokens(2, 700)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    results = []
    for device in ("cuda:0", "cuda:1"):
        model = gpu_model().to(device)
        bsfa.enable(model, table(), 3, backend=cuda_backend)
        with torch.cuda.device(0):
            out = logits(model, ids.to(device), attention_mask=mask.to(device))
            kept = [layer.kept_blocks for layer in bsfa.stats(model).layers]
            assert bsfa.stats(model).fallbacks == {}
            bsfa.disable(model)
            made = bsfa.calibrate(model, [ids[0]], budgets=[1, 3])
        assert out.device == torch.device(device)
        results.append((out.cpu()[mask.bool()], kept, torch.from_dlpack(made.values())))
    assert close(results[1][0], results[0][0], results[0][0])
    assert results[1][1] == results[0][1]
    torch.testing.assert_close(results[1][2], results[0][2])


def test_calibration_on_the_gpu_is_that_of_the_cpu() -> None:
    model = gpu_model()
    samples = [tokens(1, 700, seed=5), tokens(1, 500, seed=6)]
    on_gpu = bsfa.calibrate(model, samples, budgets=[1, 3])
    on_cpu = bsfa.calibrate(model.cpu(), samples, budgets=[1, 3], compute_type="bfloat16")
    gpu_values, cpu_values = (torch.from_dlpack(t.values()) for t in (on_gpu, on_cpu))
    finite = cpu_values.isfinite()
    assert torch.equal(finite, gpu_values.isfinite())
    assert finite.any()
    torch.testing.assert_close(gpu_values[finite], cpu_values[finite], atol=2e-2, rtol=2e-2)


def test_run_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m bsfa run` end to end on the card, with random weights."""
    import json

    from bsfa.cli import main

    folder = save_model(tmp_path / "model", gpu_model())
    text = tmp_path / "text.txt"
    text.write_text(words(400))
    thresholds = tmp_path / "t.safetensors"
    table().save(str(thresholds))
    code = main(
        [
            *("run", "--model", str(folder), "--prompt-file", str(text), "--dtype", "bfloat16"),
            *("--thresholds", str(thresholds), "--budget", "3", "--runs", "2"),
            *("--answer-tokens", "3", "--json", "--compare", "stock,dense,sliding_window"),
        ]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["device"] == "cuda:0"
    for contestant in report["contestants"]:
        assert contestant["peak_memory_bytes"] > 0
        assert len(contestant["ttft"]) == 2
    assert report["contestants"][-1]["density"] <= 1
