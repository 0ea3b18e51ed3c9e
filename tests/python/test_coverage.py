"""The sampled selector in Python: the functions, Transformers models, the command line."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import bsfa
from bsfa.cli import main
from operator_arguments import padded
from reference import gated_attention
from test_hf_policies import uneven_model, uneven_tokens
from test_ops import uneven_operands
from tiny import logits

if TYPE_CHECKING:
    from pathlib import Path


def chosen(
    q: torch.Tensor, k: torch.Tensor, rows: int, coverage: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool [heads, query blocks, key blocks] of a causal call without batch, and what is left out.

    As docs/method.md says it, with a floor of 1.
    """
    seqlen, heads = q.shape[1], q.shape[2]
    blocks_q, blocks_k = -(-seqlen // 128), -(-seqlen // 64)
    kept = torch.zeros(heads, blocks_q, blocks_k, dtype=torch.bool)
    left_out = torch.zeros(heads, blocks_q)
    group = heads // k.shape[2]
    for head in range(heads):
        scores = (q[0, :, head] @ k[0, :, head // group].T).double() / q.shape[-1] ** 0.5
        causal = torch.ones(seqlen, seqlen, dtype=torch.bool).tril()
        weights = scores.masked_fill(~causal, -math.inf).softmax(dim=-1)
        for i in range(blocks_q):
            present = min(128, seqlen - 128 * i)
            sampled = [128 * i + (t + 1) * present // min(rows, present) - 1
                       for t in range(min(rows, present))]  # fmt: skip
            padded_weights = torch.nn.functional.pad(weights[sampled], (0, 64 * blocks_k - seqlen))
            mass = padded_weights.view(len(sampled), blocks_k, 64).sum(dim=-1).mean(dim=0)
            seen = min(2 * (i + 1), blocks_k)
            always = {0, *range(max(0, 2 * i - 2), seen)}
            for j in [*always, *mass.argsort(descending=True).tolist()]:
                if j not in always and mass[kept[head, i]].sum() >= coverage:
                    break
                kept[head, i, j] = True
            left_out[head, i] = 1 - mass[kept[head, i]].sum()
    return kept, left_out


@pytest.mark.parametrize("rows", [8, 32])
def test_only_what_is_chosen_is_visited(rows: int) -> None:
    q, k, v = uneven_operands(900)
    kept, left_out = chosen(q, k, rows, 0.9)
    out, stats = bsfa.flash_attn_func(
        q, k, v, causal=True, coverage=0.9, sampled_rows=rows, mass_floor=1, return_stats=True
    )
    assert torch.equal(stats.kept_blocks[0], kept.sum(dim=(1, 2)))
    assert (stats.density < 0.9).all()
    visible = kept.repeat_interleave(128, dim=1).repeat_interleave(64, dim=2)[:, :900, :900]
    visible &= torch.ones(900, 900, dtype=torch.bool).tril()
    for head in range(q.shape[2]):
        scores = (q[0, :, head] @ k[0, :, head * k.shape[2] // q.shape[2]].T).double()
        weights = (scores / q.shape[-1] ** 0.5).masked_fill(~visible[head], -math.inf).softmax(-1)
        expected = weights @ v[0, :, head * k.shape[2] // q.shape[2]].double()
        torch.testing.assert_close(out[0, :, head].double(), expected, atol=1e-5, rtol=0)

    told = torch.empty(2, q.shape[2], 8)
    bsfa.attention_forward(
        q, k, v, torch.empty_like(q), causal=True, coverage=0.9, sampled_rows=rows, mass_floor=1,
        left_out=told,
    )  # fmt: skip
    torch.testing.assert_close(told[0], left_out, atol=1e-5, rtol=0)
    assert told.max() > 0.01


def test_all_of_the_attention_is_dense() -> None:
    q, k, v = uneven_operands(700)
    dense = bsfa.flash_attn_func(q, k, v, causal=True)
    out = bsfa.flash_attn_func(q, k, v, causal=True, coverage=1.0)
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=0)


def test_packed_sequences_have_lists_of_their_own() -> None:
    q, k, v = (t[0] for t in uneven_operands(900))
    starts = torch.tensor([0, 384, 900], dtype=torch.int32)
    own: Any = {"coverage": 0.9, "return_stats": True}
    out, stats = bsfa.flash_attn_varlen_func(q, k, v, starts, starts, 516, 516, causal=True, **own)
    for sequence, span in enumerate((slice(0, 384), slice(384, 900))):
        alone, its = bsfa.flash_attn_func(
            q[None, span], k[None, span], v[None, span], causal=True, **own
        )
        torch.testing.assert_close(out[span], alone[0], atol=1e-6, rtol=0)
        assert torch.equal(stats.kept_blocks[sequence], its.kept_blocks[0])


def test_it_composes_with_a_gate() -> None:
    q, k, v = uneven_operands(900)
    alone = {}
    for name, own in {"mass": {"mass": 0.1}, "coverage": {"coverage": 0.95}}.items():
        stats = bsfa.flash_attn_func(q, k, v, causal=True, return_stats=True, **own)[1]
        alone[name] = stats.kept_blocks
    both = bsfa.flash_attn_func(
        q, k, v, causal=True, return_stats=True, mass=0.1, coverage=0.95
    )[1].kept_blocks  # fmt: skip
    assert (both <= alone["mass"]).all()
    assert (both <= alone["coverage"]).all()


def test_the_operator_traces() -> None:
    q, k, v = uneven_operands(200)
    torch.library.opcheck(
        torch.ops.bsfa.attention.default,
        (q, k, v),
        padded(coverage=0.9, return_lse=True, return_stats=True),
    )


def test_bad_input() -> None:
    q, k, v = uneven_operands(200)
    for own, message in [
        ({"coverage": 0.0}, "selector.coverage is 0; accepted: above 0, up to 1"),
        ({"coverage": math.nan}, "selector.coverage is nan"),
        ({"coverage": 0.9, "sampled_rows": 12}, "selector.rows is 12; accepted: 8, 16, 32, 64"),
        ({"coverage": 0.9, "mass_floor": 2.0}, "selector.floor is 2; accepted: above 0, up to 1"),
        ({"coverage": 0.9, "skip_softmax": 0.1}, "lists"),
    ]:
        with pytest.raises(bsfa.Error, match=message):
            bsfa.flash_attn_func(q, k, v, causal=True, **own)  # type: ignore[arg-type]
    with pytest.raises(bsfa.InvalidArgumentError, match="left_out was given without coverage"):
        bsfa.attention_forward(q, k, v, torch.empty_like(q), left_out=torch.empty(2, 4, 2))
    with pytest.raises(bsfa.InvalidArgumentError, match="left_out has shape"):
        bsfa.attention_forward(
            q, k, v, torch.empty_like(q), causal=True, coverage=0.9, left_out=torch.empty(2, 4, 1)
        )
    with pytest.raises(bsfa.InvalidArgumentError, match="accepted: a function that returns"):
        bsfa.attention_forward(
            q, k, v, torch.empty_like(q), coverage=0.9,
            workspace=torch.empty(1 << 20, dtype=torch.uint8),
        )  # fmt: skip


def test_a_model_visits_what_holds_its_attention() -> None:
    model = uneven_model()
    ids = uneven_tokens(model, 900)
    bsfa.enable(model)
    dense = logits(model, ids)
    bsfa.enable(model, coverage=0.8)
    gated = logits(model, ids)
    stats = bsfa.stats(model)
    assert stats.mode == "coverage"
    assert stats.parameter == 0.8
    assert stats.density < 0.95
    assert 0 < stats.left_out < 0.2
    assert all(len(layer.left_out) == 4 for layer in stats.layers)
    assert all(max(layer.left_out) <= layer.most_left_out <= 0.2 + 1e-6 for layer in stats.layers)
    assert "coverage 0.8" in str(stats)
    assert "left out" in str(stats)
    assert not torch.equal(gated, dense)

    bsfa.set_mode(model, "coverage", parameter=1.0)
    torch.testing.assert_close(logits(model, ids), dense, atol=1e-4, rtol=1e-4)
    assert bsfa.stats(model).left_out == pytest.approx(0, abs=1e-6)

    for arguments in ({"coverage": 0.9, "mode": "dense"}, {"coverage": 0.9, "parameter": 0.5}):
        with pytest.raises(bsfa.InvalidArgumentError, match=r"coverage is 0\.9 with"):
            bsfa.enable(model, **arguments)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"parameter is 1\.5"):
        bsfa.enable(model, coverage=1.5)


def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = uneven_model()
    monkeypatch.setenv("BSFA_COVERAGE", "0.9")
    bsfa.enable(model)
    assert bsfa.stats(model).parameter == 0.9
    assert bsfa.stats(model).mode == "coverage"
    bsfa.enable(model, mode="dense")
    assert bsfa.stats(model).mode == "dense"
    monkeypatch.setenv("BSFA_MODE", "mass")
    with pytest.raises(bsfa.InvalidArgumentError, match=r"BSFA_COVERAGE is '0\.9' and BSFA_MODE"):
        bsfa.enable(model)
    monkeypatch.delenv("BSFA_MODE")
    monkeypatch.setenv("BSFA_COVERAGE", "much")
    with pytest.raises(bsfa.InvalidArgumentError, match="BSFA_COVERAGE is 'much'"):
        bsfa.enable(model)


def test_run_needs_no_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {f"w{n}": n for n in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2")
    model = uneven_model()
    for part in (wrapped, model):
        part.save_pretrained(tmp_path / "model")
    ids = uneven_tokens(model, 1600)[0].tolist()
    (tmp_path / "text.txt").write_text(" ".join(f"w{n}" for n in ids))
    arguments = [
        *("run", "--model", str(tmp_path / "model"), "--prompt-file", str(tmp_path / "text.txt")),
        *("--runs", "1", "--answer-tokens", "2", "--dtype", "float32"),
    ]
    assert main([*arguments, "--coverage", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in report["contestants"]] == ["stock", "dense", "bsfa"]
    assert report["mode"] == "coverage"
    assert report["parameter"] == 0.5
    last = report["contestants"][-1]
    assert last["density"] <= 1
    assert 0 <= last["left_out"] < 0.5
    assert main([*arguments, "--coverage", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "coverage, coverage 0.5" in printed
    assert "left out:" in printed
    assert main(arguments) == 2
    assert "--coverage 0.95 needs" in capsys.readouterr().err


def test_the_reference_of_this_file_is_dense_at_full_coverage() -> None:
    q, k, v = uneven_operands(300)
    assert chosen(q, k, 32, 2.0)[0][:, -1].all()
    expected = gated_attention(q, k, v, causal=True)[0]
    out = bsfa.flash_attn_func(q, k, v, causal=True, coverage=1.0)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
