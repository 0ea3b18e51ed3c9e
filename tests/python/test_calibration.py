"""Calibration on tiny models: against the definition, resumed, merged; the published format."""

from __future__ import annotations

import json
import random
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


def test_a_refused_calibration_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    windowed = tiny_model("mistral-windowed")
    samples = [tokens(1, 400, seed=s) for s in range(2)]
    out, partial = tmp_path / "t.safetensors", tmp_path / "sums"
    started: list[int] = []
    for _ in range(2):  # the second time as the first
        with pytest.raises(bsfa.InvalidArgumentError, match="nothing was calibrated"):
            bsfa.calibrate(
                windowed, samples, budgets=[1], out=out, partial=partial,
                progress=lambda *step: started.append(step[0]),
            )  # fmt: skip
        assert list(tmp_path.iterdir()) == []
    assert started == [0, 0]  # not after hours
    assert windowed.config._attn_implementation == "sdpa"


def test_sums_of_nothing_do_not_become_a_table(tmp_path: Path) -> None:
    """As an earlier version left them beside the file."""
    sums = bsfa.Calibration(budgets=[1], softmax_scale=0.25, model="m", num_layers=1, num_heads_q=1)
    sums.begin_sample("s", 400)
    sums.add(0, 0, 400, torch.full((1, 1, 4), -torch.inf))
    sums.end_sample()
    for use in (sums.finish, lambda: sums.save(str(tmp_path / "sums"))):
        with pytest.raises(bsfa.InvalidArgumentError, match="nothing was calibrated"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_not_averaged_in(tmp_path: Path) -> None:
    model = tiny_model("llama")
    samples = [tokens(1, 200, seed=s) for s in range(2)]
    out = tmp_path / "t.safetensors"
    arguments = {"budgets": [1], "model_name": "tiny", "out": out}

    def interrupt(done: int, total: int, name: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bsfa.calibrate(model, samples, progress=interrupt, **arguments)
    (sums,) = tmp_path.iterdir()
    before = sums.read_bytes()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(1.01)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"different weights.*remove the file"):
        bsfa.calibrate(model, samples, **arguments)
    assert sums.read_bytes() == before
    table = bsfa.calibrate(model, samples, allow_other_model=True, **arguments)
    assert (table.num_samples, table.fingerprint) == (2, "")
    assert list(tmp_path.iterdir()) == [out]


def test_sums_that_do_not_say_of_which_weights_they_are(tmp_path: Path) -> None:
    """As an earlier version left them: taken, and said."""
    model = tiny_model("llama")
    samples = [tokens(1, 200, seed=s) for s in range(2)]
    name = "n" * 250  # and under a name to which nothing can be added
    out = tmp_path / name

    def interrupt(done: int, total: int, sample: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    arguments = {"budgets": [1], "model_name": "tiny", "out": out}
    with pytest.raises(KeyboardInterrupt):
        bsfa.calibrate(model, samples, progress=interrupt, **arguments)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(".bsfa-")
    older = bsfa.Calibration(
        budgets=[1], softmax_scale=16**-0.5, model="tiny", num_layers=2, num_heads_q=4
    )
    older.begin_sample("s", 200)
    for layer in (0, 1):
        older.add(layer, 0, 200, torch.ones((1, 4, 2)))
    older.end_sample()
    older.save(str(path))
    with pytest.warns(bsfa.OtherModelWarning, match="does not say of which weights"):
        table = bsfa.calibrate(model, samples, **arguments)
    assert (table.num_samples, table.fingerprint) == (2, "")
    assert list(tmp_path.iterdir()) == [out]


def test_out_and_partial_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("t")
    with pytest.raises(bsfa.InvalidArgumentError, match="one file"):
        bsfa.calibrate(
            tiny_model("llama"), [tokens(1, 100)], out=tmp_path / "t", partial=tmp_path / "link"
        )


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
        ([tokens(2, 100)], r"sample 0 has token ids of shape \[2, 100\]; accepted: \[tokens\]"),
        ([tokens(1, 100), tokens(1, 100)[None]], r"sample 1 has token ids of shape \[1, 1, 100\]"),
        ([[1, [2]]], "sample 0 is of type list"),
        ([{"input_text": "a"}], "sample 0 is of type dict"),
        ([torch.ones(100)], "token ids of torch.float32"),
        ("a text", "data is of type str"),
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
    """By the library's reader, whose own tests hold it to more."""
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.JSON").write_text(
        json.dumps([{"input_text": "first", "task_name": "t"}, {"input_text": "more"}, "and"])
    )
    (tmp_path / "c.jsonl").write_text('{"input_text": "third"}\n\n"last"\n')
    found = calibration.read_samples([tmp_path])
    assert [s.text for s in found] == ["first", "more", "and", "second", "third", "last"]
    assert found[1].name == f"{tmp_path}/a.JSON[1]"
    assert found[5].name == f"{tmp_path}/c.jsonl:3"
    for content, message in (
        ("[", "not JSON"),
        ("{}", "expected a list"),
        ('[{"task_name": "t"}]', r"\[0\]: has no string"),
        ('[{"input_text": 5}]', r"\[0\]: has no string"),
        ("[" * 100_000, r"\[0\]: is a list"),
        (f"[{'7' * 5000}]", "a.JSON"),
    ):
        (tmp_path / "a.JSON").write_text(content)
        with pytest.raises(bsfa.FormatError, match=message):
            calibration.read_samples([tmp_path / "a.JSON"])
    with pytest.raises(bsfa.FileError, match="cannot be opened"):
        calibration.read_samples([tmp_path / "missing.txt"])
    for name, content, message in (
        ("raw.txt", b"\xff\xfe", "UTF-8"),
        ("zero", b"a\0b", "a NUL"),
        ("table.csv", b"a,b", r"suffix '\.csv' .* accepted: plain text"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(bsfa.FormatError, match=message):
            calibration.read_samples([tmp_path / name])


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
    with pytest.raises(bsfa.FileError, match="no file can be made"):
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


def survives(path: Path) -> bool:
    """Whether the file is read; if not, it is refused with a message for people."""
    try:
        published.load_pt(path, softmax_scale=0.25, model="m")
    except bsfa.FormatError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 600
        return False
    return True


def test_damaged_published_files(tmp_path: Path) -> None:
    """The same ones in every run: bytes changed, cut out and put in."""
    path = tmp_path / "p.pt"
    torch.save(PUBLISHED, path)
    good = path.read_bytes()
    generator = random.Random(20261201)
    read = 0
    for _ in range(600):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(bad))
            count = generator.randint(1, 16)
            action = generator.randrange(4)
            if action == 0:
                bad[at] ^= 1 << generator.randrange(8)
            elif action == 1:
                bad[at : at + count] = generator.randbytes(count)
            elif action == 2:
                del bad[at : at + count]
            else:
                bad[at:at] = generator.choice(
                    [b"(", b"\x80\x02", b"c__builtin__\neval\n", b"\xff" * 9]
                )
        path.write_bytes(bad)
        read += survives(path)
    assert 0 < read < 600  # both answers have to occur


ODD_VALUES = [
    None,
    True,
    "text \ud800 \x1b[2J" * 1000,
    10**5000,
    -1,
    2**31,
    2**70,
    1.5,
    [],
    [[[[]]]],
    {"a": 1},
    torch.zeros(0),
    torch.tensor([64, 32]),
    torch.tensor(64, device="meta"),
    torch.zeros(2, 3, 4, 5, requires_grad=True),
    torch.zeros(2, 3, 4, 5, device="meta"),
    torch.zeros(2, 3, 4, 5).to_sparse(),
    torch.zeros(2, 3, 4, 5, dtype=torch.int32),
    torch.zeros(2, 3, 4, 5, dtype=torch.complex64),
    torch.zeros(2, 0, 4, 5),
    [32, 32],
    [2**70, 1],
    list(range(100_000)),
]


@pytest.mark.parametrize("field", [*PUBLISHED, "max_num_blocks"])
def test_odd_values_in_published_files(tmp_path: Path, field: str) -> None:
    path = tmp_path / "p.pt"
    outcomes = set()
    for value in ODD_VALUES:
        torch.save({**PUBLISHED, field: value}, path)
        outcomes.add(survives(path))
    assert False in outcomes or field == "aggregation_method"


def test_the_picture() -> None:
    import xml.etree.ElementTree as ElementTree

    table = table_for(None, torch.zeros(2, 2, 4, 3), [1, 2])
    root = ElementTree.fromstring(report.as_svg(table))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * 4
    assert titles[5] == "layer 1, head 1: 0"
