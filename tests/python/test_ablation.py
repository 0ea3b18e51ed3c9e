"""The ablations on a tiny model: what is calibrated, what is measured, and resumption."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import bsfa
import tiny
from bsfa.calibration import Sample
from bsfa.cli import eval_ablate
from bsfa.eval import ablation_measure
from bsfa.eval import results as r
from bsfa.eval.ablation_data import split
from bsfa.eval.ablation_measure import Measurer, coarser, one_per_head

LENGTH = 500


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text: str, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[3 + ord(letter) % 90 for letter in text]])}


def _measurer(tmp_path: Path, **changes: Any) -> Measurer:
    return Measurer(tiny.tiny_model("llama", **changes), [2, 4], str(tmp_path))


@pytest.mark.parametrize("block", [(128, 64), (64, 128), (128, 128)])
@pytest.mark.parametrize("length", [512, 331])
def test_block_maxima_combine_exactly(block: tuple[int, int], length: int) -> None:
    q, k, v = torch.randn(3, 1, length, 2, 16)
    maxima = {}
    for gate in ((64, 64), block):
        shape = [-(-length // size) for size in gate]
        maxima[gate] = torch.full((1, 2, *shape), torch.nan)
        bsfa.attention_forward(
            q, k, v, torch.empty_like(q), causal=True, block=gate, block_max=maxima[gate]
        )
    assert torch.equal(coarser(maxima[64, 64], block), maxima[block])


def test_calibration_is_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurer = _measurer(tmp_path)
    samples = list(tiny.tokens(3, LENGTH))
    for sample in samples:
        measurer.calibrate(sample, [(64, 64), (128, 64), (128, 128)])
    table = measurer.table(samples)
    expected = bsfa.calibrate(measurer.model, samples, budgets=[2, 4])
    assert torch.equal(torch.from_dlpack(table.values()), torch.from_dlpack(expected.values()))
    assert measurer.table(samples, (128, 128)).budgets == [1, 2]
    # Each sample was kept: a new measurer does not calibrate again.
    again = Measurer(measurer.model, [2, 4], str(tmp_path))
    monkeypatch.delattr(Measurer, "_probing")
    again.calibrate(samples[0], [(128, 64)])
    assert again.table(samples[:2]).num_samples == 2


def test_measured_is_what_the_product_does(tmp_path: Path) -> None:
    measurer = _measurer(tmp_path)
    sample, prompt = tiny.tokens(2, LENGTH)
    measurer.calibrate(sample, [(128, 64)])
    table = measurer.table([sample])
    found = measurer.measure(prompt, table, 2)
    bsfa.enable(measurer.model, table, 2)
    logits = tiny.logits(measurer.model, prompt[None])[0]
    assert found.density == pytest.approx(bsfa.stats(measurer.model).density)
    bsfa.set_mode(measurer.model, "dense")
    dense = tiny.logits(measurer.model, prompt[None])[0]
    bsfa.disable(measurer.model)
    same = (logits.argmax(dim=1) == dense.argmax(dim=1)).float().mean().item()
    assert found.agreement == pytest.approx(same)
    losses = [torch.nn.functional.cross_entropy(x[:-1], prompt[1:]).item() for x in (logits, dense)]
    change = torch.tensor(losses[0] - losses[1]).expm1().item()
    assert found.perplexity_change == pytest.approx(change, abs=1e-5)
    assert 0 < found.error < 1


def test_a_table_that_keeps_everything_changes_nothing(tmp_path: Path) -> None:
    measurer = _measurer(tmp_path)
    (prompt,) = tiny.tokens(1, LENGTH)
    values = torch.full((2, 2, 4, 4), -torch.inf)
    found = measurer.measure(prompt, tiny.table_for(measurer.model, values, [2, 4]), 4)
    assert vars(found) == {
        "density": 1,
        "error": 0,
        "agreement": 1,
        "perplexity_change": 0,
    }


@pytest.mark.parametrize("block", [(64, 64), (128, 128)])
def test_other_gates_keep_about_their_budget(tmp_path: Path, block: tuple[int, int]) -> None:
    measurer = _measurer(tmp_path)
    (sample,) = tiny.tokens(1, 1024)
    measurer.calibrate(sample, [block])
    budget = ablation_measure.blocks_of(4, block)
    found = measurer.measure(sample, measurer.table([sample], block), 4)
    # A sample at its own thresholds keeps its budget in the first layer, whose inputs are the same.
    predicted = bsfa.predicted_density(budget, 1024, block)
    assert found.density == pytest.approx(predicted, abs=0.05)


def test_one_threshold_per_head() -> None:
    values = torch.arange(32.0).reshape(1, 2, 4, 4)
    values[..., 0] = -torch.inf
    values[0, 1, 3] = -torch.inf
    table = one_per_head(tiny.table_for(None, values, [2]))
    found = torch.from_dlpack(table.values())
    assert found[0, 0, 0].tolist() == [2.0] * 4
    assert found[0, 1, 3].tolist() == [-torch.inf] * 4


def test_texts_are_never_in_both() -> None:
    texts = [Sample(str(i), chr(65 + i) * 40) for i in range(6)]
    domain = split("letters", texts, Letters(), 60, 1, 2)
    seen = [{*prompt.tolist()} for prompt in (*domain.evaluation, *domain.calibration)]
    assert all(len(prompt) == 60 for prompt in (*domain.evaluation, *domain.calibration))
    assert not seen[0] & (seen[1] | seen[2])
    long = [Sample(str(i), chr(65 + i) * 130) for i in range(4)]
    domain = split("long", long, Letters(), 60, 2, 4)
    assert [prompt[0].item() - 68 for prompt in domain.evaluation] == [0, 0]
    assert [prompt[0].item() - 68 for prompt in domain.calibration] == [1, 2, 3, 1]
    with pytest.raises(bsfa.InvalidArgumentError, match="2 prompts of 60 tokens for evaluation"):
        split("letters", texts, Letters(), 60, 2, 3)


def _options(tmp_path: Path, *extra: str) -> argparse.Namespace:
    for name, shift in (("x", 0), ("y", 7)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for i in range(8):
            text = "".join(chr(65 + (j * (i + 3) + j * j % 11 + shift) % 60) for j in range(300))
            (folder / f"{i}.txt").write_text(text)
    parser = argparse.ArgumentParser()
    eval_ablate.add_arguments(parser)
    return parser.parse_args(
        [
            *("--model", "tiny", "--device", "cpu"),
            *("--domain", f"x={tmp_path / 'x'}", "--domain", f"y={tmp_path / 'y'}"),
            *("--out", str(tmp_path / "r.jsonl"), "--length", "300", "--prompts", "2"),
            *("--samples", "1,2,4", "--calibrate-on", "2", "--budgets", "2"),
            *extra,
        ]
    )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, of_a_commit: str) -> None:
    """The tiny model in place of one from disk."""
    pair = (tiny.tiny_model("llama"), Letters())
    monkeypatch.setattr(eval_ablate, "load_model", lambda options: pair)


def test_an_interrupted_run_goes_on(
    tmp_path: Path, loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    measure = Measurer.measure

    def counted(self: Measurer, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(Measurer, "measure", counted)
    (tmp_path / "whole").mkdir()
    stop = 0
    eval_ablate.run(_options(tmp_path / "whole"))
    # 3 numbers of samples, 3 further domain pairs, per head, 2 further gates; 2 prompts each.
    assert calls == 18
    whole = r.read(tmp_path / "whole" / "r.jsonl").ablations
    assert len(whole) == 3 + 4 + 2 + 3

    for after in (3, 8):
        calls, stop = 0, after
        with pytest.raises(KeyboardInterrupt):
            eval_ablate.run(_options(tmp_path))
    calls = stop = 0
    eval_ablate.run(_options(tmp_path))
    resumed = r.read(tmp_path / "r.jsonl").ablations
    assert list(resumed) == list(whole)
    assert resumed == whole
    assert calls < 18

    calls = 0
    eval_ablate.run(_options(tmp_path))
    assert calls == 0


def test_what_several_ablations_share_is_the_same(tmp_path: Path, loaded: None) -> None:
    eval_ablate.run(_options(tmp_path))
    found = r.read(tmp_path / "r.jsonl").ablations
    standard = [
        found[key].prompts
        for key in (
            ("samples", "2", 2),
            ("domain", "x -> x", 2),
            ("position", "per query block", 2),
            ("gate_block", "128x64", 2),
        )
    ]
    assert all(prompts == standard[0] for prompts in standard)
    for record in found.values():
        assert record.n == len(record.prompts) == 2
        assert record.length == 300
        assert 0 < record.density <= 1
        assert record.density_predicted is not None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ablations", "samples,colour"], "colour.*samples, domain, position, gate_block"),
        (["--budgets", "3"], "even numbers"),
        (["--samples", "400"], "400"),
        (["--length", "4000"], "context holds 2048"),
        (["--domain", "z"], "NAME=PATH"),
    ],
)
def test_refusals(tmp_path: Path, loaded: None, extra: list[str], message: str) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        eval_ablate.run(_options(tmp_path, *extra))


def test_one_domain_compares_nothing(tmp_path: Path, loaded: None) -> None:
    options = _options(tmp_path)
    options.domain = options.domain[:1]
    with pytest.raises(bsfa.InvalidArgumentError, match="given once"):
        eval_ablate.run(options)


def test_another_model_is_refused(tmp_path: Path, loaded: None) -> None:
    options = _options(tmp_path, "--ablations", "position")
    eval_ablate.run(options)
    text = Path(options.out).read_text().replace('"layers": 2', '"layers": 3')
    Path(options.out).write_text(text)
    with pytest.raises(bsfa.InvalidArgumentError, match="layers of the model"):
        eval_ablate.run(options)


def test_layers_with_windows_are_refused(tmp_path: Path) -> None:
    measurer = Measurer(tiny.tiny_model("mistral-windowed"), [2], str(tmp_path))
    (prompt,) = tiny.tokens(1, LENGTH)
    with pytest.raises(bsfa.UnsupportedError, match="layer 0 has a window"):
        measurer.calibrate(prompt, [(128, 64)])
    # The model is as it was.
    assert measurer.model.config._attn_implementation == "sdpa"
