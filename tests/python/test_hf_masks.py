"""Models that read the mask they are given, masks that do not stay, weights that are elsewhere."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bsfa
from bsfa.hf import masks
from bsfa.hf.reading import reads_its_mask
from tiny import SHAPE, logits, table_for, tiny_model, tokens

IDS = tokens(2, 150)


def padded() -> torch.Tensor:
    mask = torch.ones_like(IDS)
    mask[1, :40] = 0
    return mask


def doge(attention: str) -> Any:
    """Computes a mask of its own from the one it is given."""
    config = transformers.DogeConfig(**SHAPE, keep_window_size=48)
    torch.manual_seed(1)
    return transformers.DogeForCausalLM._from_config(config, attn_implementation=attention).eval()


def deepseek_v4() -> Any:
    """Adds columns to the mask, for keys that its layers make."""
    config = transformers.DeepseekV4Config(
        vocab_size=97,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        q_lora_rank=8,
        o_groups=2,
        o_lora_rank=8,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_shared_experts=1,
        sliding_window=64,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=8,
        max_position_embeddings=2048,
    )
    torch.manual_seed(1)
    return transformers.DeepseekV4ForCausalLM._from_config(
        config, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("mask", [None, padded()], ids=["whole", "padded"])
def test_a_model_that_reads_its_mask_keeps_its_attention(mask: torch.Tensor | None) -> None:
    model = doge("eager")
    before = logits(model, IDS, attention_mask=mask)
    bsfa.enable(model, mode="sliding_window", budget=0)
    with pytest.warns(bsfa.FallbackWarning, match="a mask that is not causal or windowed"):
        after = logits(model, IDS, attention_mask=mask)
    assert torch.equal(after, before)
    assert [layer.attention for layer in bsfa.stats(model).layers] == ["previous", "previous"]


def test_a_model_that_reads_its_mask_under_sdpa() -> None:
    """There it gets a tensor even where sdpa would have had none, and is causal."""
    model = doge("sdpa")
    expected = logits(doge("eager"), IDS, attention_mask=padded())
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning):
        after = logits(model, IDS, attention_mask=padded())
    real = padded().bool()
    torch.testing.assert_close(after[real], expected[real], atol=2e-4, rtol=1e-4)


def test_a_model_that_adds_to_its_mask() -> None:
    model = deepseek_v4()
    before = logits(model, IDS)
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning):
        after = logits(model, IDS)
    assert torch.equal(after, before)
    stats = bsfa.stats(model)
    assert all(layer.attention == "previous" for layer in stats.layers)


@pytest.mark.parametrize("make", [lambda: doge("eager"), deepseek_v4], ids=["doge", "deepseek"])
def test_a_model_that_reads_its_mask_compiles(make: Any) -> None:
    model = make()
    before = logits(model, IDS, attention_mask=padded())
    bsfa.enable(model, mode="sliding_window", budget=0)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.warns(bsfa.FallbackWarning):
        after = logits(compiled, IDS, attention_mask=padded())
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)


def test_which_layers_read_their_mask() -> None:
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Attention
    from transformers.models.doge.modeling_doge import DogeAttention
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    assert [reads_its_mask(kind) for kind in (DogeAttention, DeepseekV4Attention)] == [True] * 2
    plain = (Gemma3Attention, LlamaAttention, Qwen3Attention, torch.nn.Linear, torch.nn.Module)
    assert [reads_its_mask(kind) for kind in plain] == [False] * 5


class Reader(torch.nn.Module):
    """Around an attention layer, code that does things to its mask."""

    def __init__(self, inner: Any, use: Any) -> None:
        super().__init__()
        self.inner, self.use = inner, use

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return self.inner(*args, attention_mask=self.use(attention_mask), **kwargs)


def reading(use: Any) -> Any:
    model = tiny_model("llama", attention="eager")
    for layer in model.model.layers:
        layer.self_attn = Reader(layer.self_attn, use)
    return model


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m[:, :, :, :150],
        lambda m: m.clone().contiguous(),
        lambda m: m.to(device="cpu", dtype=torch.float32, copy=True),
        lambda m: m if m.dim() == 4 and m.shape[-1] == 150 and m.dtype.is_floating_point else None,
        lambda m: copy.copy(m),
    ],
    ids=["slice", "clone", "to", "look", "copy"],
)
def test_copies_and_looks_cost_no_gate(use: Any) -> None:
    plain = tiny_model("llama")
    bsfa.enable(plain, table_for(plain, torch.full((1, 2, 4, 2), math.inf), [1]), 1)
    expected = logits(plain, IDS, attention_mask=padded())
    model = reading(use)
    bsfa.enable(model, table_for(model, torch.full((1, 2, 4, 2), math.inf), [1]), 1)
    after = logits(model, IDS, attention_mask=padded())
    real = padded().bool()
    torch.testing.assert_close(after[real], expected[real], atol=2e-4, rtol=1e-4)
    assert bsfa.stats(model).fallbacks == {}


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m + 0.5,
        lambda m: torch.cat([m[..., :100], m[..., 100:] * 2], dim=-1),
        lambda m: m.masked_fill(m < 0, -3.0),
        lambda m: m[:, :, :, :150].expand(-1, 4, -1, -1),
    ],
    ids=["add", "cat", "fill", "expand"],
)
def test_changed_masks_are_the_models_own(use: Any) -> None:
    model = reading(use)
    before = logits(model, IDS, attention_mask=padded())
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning, match="a mask that is not causal"):
        after = logits(model, IDS, attention_mask=padded())
    assert torch.equal(after, before)


def test_a_mask_that_cannot_be_read_names_the_way_out() -> None:
    model = reading(lambda m: m + 0.5)
    config = model.config
    plan = masks.make_plan(
        {
            "batch_size": 1,
            "q_length": 64,
            "kv_length": 64,
            "q_offset": 0,
            "mask_function": masks.masking_utils.causal_mask_function,
            "attention_mask": None,
            "device": torch.device("cpu"),
        }
    )
    assert plan is not None
    with pytest.raises(bsfa.UnsupportedError, match=r"'flash_attention_2'.*bsfa\.disable\(model\)"):
        masks.placeholder(plan, "flash_attention_2", config) + 1
    late = masks.placeholder(plan, "eager", config)
    late.plan = None
    del plan
    gc.collect()
    with pytest.raises(bsfa.UnsupportedError, match=r"earlier forward.*bsfa\.disable\(model\)"):
        late + 1


def test_layers_that_are_compiled_one_by_one() -> None:
    model = tiny_model("llama")
    bsfa.enable(model, table_for(model, torch.full((1, 2, 4, 2), math.inf), [1]), 1)
    expected = logits(model, IDS, attention_mask=padded())
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    real = padded().bool()
    for _ in range(2):
        after = logits(model, IDS, attention_mask=padded())
        torch.testing.assert_close(after[real], expected[real], atol=2e-4, rtol=1e-4)
        assert bsfa.stats(model).density < 1
    assert bsfa.stats(model).fallbacks == {}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """Every mask that is built."""
    seen: list[weakref.ref[torch.Tensor]] = []
    real = masks.build_mask

    def watching(*arguments: Any) -> Any:
        mask = real(*arguments)
        if isinstance(mask, torch.Tensor):
            seen.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(masks, "build_mask", watching)
    return seen


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [lambda: tiny_model("llama", attention="eager")], ids=["llama"])
def test_no_mask_stays(built: list[Any], compiled: bool, make: Any) -> None:
    model = make()
    mask = padded()
    mask[0, 50] = 0  # inside: falls back
    bsfa.enable(model)
    step = model
    if compiled:
        torch._dynamo.reset()
        step = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        with pytest.warns(bsfa.FallbackWarning) if not built else torch.no_grad():
            logits(step, IDS, attention_mask=mask)
        assert len(built) > 0
        assert all(ref() is None for ref in built)
    if not compiled:
        assert len(built) == 2  # one a pass, not one a layer
    bsfa.disable(model)
    del model, step
    gc.collect()
    plans = [p for p in gc.get_objects() if type(p) is masks.MaskPlan and p._built]
    assert plans == []


def test_no_mask_that_was_read_stays(built: list[Any]) -> None:
    model = doge("eager")
    bsfa.enable(model)
    with pytest.warns(bsfa.FallbackWarning):
        logits(model, IDS)
    assert len(built) == 1
    assert built[0]() is None


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights(where: str, tmp_path: Path) -> None:
    """They are on no device until a layer runs; calls are where they are computed."""
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama")
    ids = tokens(1, 300)
    table = bsfa.calibrate(model, [ids], budgets=[1])
    bsfa.enable(model, table, 1)
    expected = logits(model, ids)
    bsfa.disable(model)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
    again = bsfa.calibrate(model, [ids], budgets=[1])
    assert torch.equal(torch.from_dlpack(again.values()), torch.from_dlpack(table.values()))
    bsfa.enable(model, again, 1)
    assert torch.equal(logits(model, ids), expected)
    assert bsfa.stats(model).fallbacks == {}
    assert bsfa.stats(model).layers[0].attention == "threshold"
