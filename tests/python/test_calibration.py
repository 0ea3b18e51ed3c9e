"""Calibration on tiny models: against the definition, resumed, merged; the published format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

import bsfa
from bsfa import calibration, published, report
from reference import gated_attention
from tiny import logits, table_for, tiny_model, tokens


def block_maxima(model: object, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """float64 [heads, q blocks, kv blocks] of each layer, in plain torch."""
    seen = {}

    def spy(module, query, key, value, mask, scaling=None, **kwargs):
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        result = gated_attention(q, k, v, causal=True, softmax_scale=scaling)
        seen[module.layer_idx] = result[4][0]
        return result[0].to(query.dtype), None

    AttentionInterface.register("spy", spy)
    model.set_attn_implementation("spy")
    logits(model, ids)
    model.set_attn_implementation("sdpa")
    return seen


def by_definition(maxima: torch.Tensor, budget: int) -> torch.Tensor:
    """The thresholds [heads, q blocks] of one sample (docs/method.md, "Calibration")."""
    heads, rows, _ = maxima.shape
    table = torch.full((heads, rows), -torch.inf, dtype=torch.float64)
    for h in range(heads):
        for i in range(rows):
            before = maxima[h, i, : 2 * i].sort(descending=True).values
            if len(before) > budget:
                table[h, i] = (before[budget - 1] + before[budget]) / 2
    return table


def test_calibration_is_its_definition() -> None:
    model = tiny_model("qwen3")
    samples = [tokens(1, 400, seed=3), tokens(1, 300, seed=4)]
    seen = [block_maxima(model, ids) for ids in samples]
    table = bsfa.calibrate(model, samples, budgets=[2, 1], recommend=1, model_name="tiny")
    assert model.config._attn_implementation == "sdpa"
    assert table.budgets == [1, 2]
    assert (table.model, table.num_samples, table.max_seqlen) == ("tiny", 2, 400)
    assert table.recommended_budget == 1
    assert table.softmax_scale == pytest.approx(16**-0.5)
    for budget in (1, 2):
        values = torch.from_dlpack(table.thresholds(budget))
        for layer in (0, 1):
            expected = by_definition(seen[0][layer], budget)
            shorter = by_definition(seen[1][layer], budget)
            expected[:, :3] = (expected[:, :3] + shorter) / 2
            torch.testing.assert_close(values[layer].double(), expected, atol=1e-4, rtol=1e-4)

    # On the sample itself the budget keeps about what it says.
    bsfa.enable(model, table, 1)
    logits(model, samples[0])
    predicted = bsfa.predicted_density(1, 400)
    assert bsfa.stats(model).density == pytest.approx(predicted, abs=0.15)


def test_layers_that_are_not_gated_stay_dense() -> None:
    model = tiny_model("gemma3")
    table = bsfa.calibrate(model, [tokens(1, 400)], budgets=[1])
    values = torch.from_dlpack(table.thresholds(1))
    assert values[0].isneginf().all()
    assert values[1][:, 1:].isfinite().all()
    windowed = tiny_model("mistral-windowed")
    with pytest.raises(bsfa.InvalidArgumentError, match="no layer that the gate serves"):
        bsfa.calibrate(windowed, [tokens(1, 400)], budgets=[1])


def test_an_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    model = tiny_model("llama")
    samples = [tokens(1, 200, seed=s) for s in range(3)]
    whole = bsfa.calibrate(model, samples, budgets=[1, 2], model_name="tiny")
    out, partial = tmp_path / "t.safetensors", tmp_path / "sums"
    started: list[int] = []

    def interrupt(done: int, total: int, name: str) -> None:
        started.append(done)
        if done == 2:
            raise KeyboardInterrupt

    arguments = {"budgets": [1, 2], "model_name": "tiny", "out": out, "partial": partial}
    with pytest.raises(KeyboardInterrupt):
        bsfa.calibrate(model, samples, progress=interrupt, **arguments)
    assert model.config._attn_implementation == "sdpa"
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1

    resumed: list[int] = []
    bsfa.calibrate(model, samples, progress=lambda *step: resumed.append(step[0]), **arguments)
    assert started == [0, 1, 2]
    assert resumed == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sums", "t.safetensors"]
    np.testing.assert_array_equal(bsfa.ThresholdTable.load(str(out)).values(), whole.values())
    assert bsfa.Calibration.load(str(partial)).num_samples == 3


def test_an_enabled_model_keeps_its_settings() -> None:
    model = tiny_model("llama")
    bsfa.enable(model, table_for(model, torch.zeros(1, 2, 4, 2), [3]), 3)
    bsfa.calibrate(model, [tokens(1, 200)], budgets=[1])
    stats = bsfa.stats(model)
    assert (stats.mode, stats.budget, stats.previous) == ("threshold", 3, "sdpa")


def test_bad_samples_are_refused_by_name() -> None:
    model = tiny_model("llama")
    for data, message in (
        ([], "data has no samples"),
        ([tokens(1, 5)], "sample 0 has 5 tokens"),
        (["text"], "sample 0 is text and tokenizer is missing"),
    ):
        with pytest.raises(bsfa.InvalidArgumentError, match=message):
            bsfa.calibrate(model, data)
    with pytest.raises(bsfa.InvalidArgumentError, match="recommend is 7"):
        bsfa.calibrate(model, [tokens(1, 100)], recommend=7)
    with pytest.raises(bsfa.FileError, match="no folder"):
        bsfa.calibrate(model, [tokens(1, 100)], out="/no/such/folder/t.safetensors")


def test_values_that_are_not_finite_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = torch.nan
    ids = tokens(1, 200)
    ids[0, 10] = 50
    with pytest.raises(bsfa.Error, match="sample 0"):
        bsfa.calibrate(model, [ids], budgets=[1])
    assert model.config._attn_implementation == "sdpa"


def test_reading_samples(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.json").write_text(
        json.dumps([{"input_text": "first", "task_name": "t"}, {"input_text": "more"}])
    )
    assert [s.text for s in calibration.read_samples([tmp_path])] == ["first", "more", "second"]
    for content, message in (
        ("{", "not JSON"),
        ("{}", "expected a list"),
        ('[{"task_name": "t"}]', r"\[0\]: has no string"),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(bsfa.FormatError, match=message):
            calibration.read_samples([tmp_path / "a.json"])
    with pytest.raises(bsfa.FileError, match="cannot be read"):
        calibration.read_samples([tmp_path / "missing.txt"])
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(bsfa.FormatError, match="UTF-8"):
        calibration.read_samples([tmp_path / "raw.txt"])


PUBLISHED = {
    "thresholds": torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5),
    "k_values": [64, 32],
    "q_block_size": 128,
    "k_block_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "aggregation_method": "mean",
}


def test_the_published_format(tmp_path: Path) -> None:
    path = tmp_path / "p.pt"
    torch.save(PUBLISHED, path)
    table = published.load_pt(path, softmax_scale=0.25, model="m")
    assert table.budgets == [32, 64]
    assert table.max_seqlen == 640
    np.testing.assert_array_equal(table.thresholds(64), PUBLISHED["thresholds"][0])
    np.testing.assert_array_equal(table.thresholds(32), PUBLISHED["thresholds"][1])

    back = tmp_path / "back.pt"
    published.save_pt(table, back)
    content = torch.load(back, weights_only=True)
    assert content["k_values"] == [32, 64]
    assert torch.equal(content["thresholds"], PUBLISHED["thresholds"].flip(0))
    again = published.load_pt(back, softmax_scale=0.25, model="m")
    np.testing.assert_array_equal(again.values(), table.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pt", "p.pt"]
    with pytest.raises(bsfa.FileError, match="cannot be written"):
        published.save_pt(table, tmp_path / "none" / "p.pt")


class Evil:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"k_values": [1]}, "has no field 'thresholds'"),
        ({**PUBLISHED, "thresholds": torch.zeros(2, 3)}, "4 axes"),
        ({**PUBLISHED, "k_values": [1]}, "k_values"),
        ({**PUBLISHED, "k_values": [1, 1.5]}, "whole number"),
        ({**PUBLISHED, "num_heads": 8}, "num_heads is 8"),
        ({**PUBLISHED, "thresholds": torch.full((2, 3, 4, 5), torch.nan)}, "NaN"),
        ({**PUBLISHED, "extra": Evil()}, "without executing"),
        (b"not a torch file", "without executing"),
    ],
)
def test_bad_published_files(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(bsfa.FormatError, match=message):
        published.load_pt(path, softmax_scale=0.25, model="m")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(bsfa.FileError, match="cannot be read"):
        published.load_pt(tmp_path / "none.pt", softmax_scale=0.25, model="m")


def test_the_picture() -> None:
    import xml.etree.ElementTree as ElementTree

    table = table_for(None, torch.zeros(2, 2, 4, 3), [1, 2])
    root = ElementTree.fromstring(report.as_svg(table))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * 4
    assert titles[5] == "layer 1, head 1: 0"
