"""The sweep: what a point says, interruption at any point, failures, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bsfa
from bsfa.cli import main
from bsfa.eval import calibrating, generation, results, sweep
from bsfa.eval.maps import kept_map
from bsfa.eval.provenance import categories_of, record_categories
from bsfa.eval.results import Failed, Point
from bsfa.eval.sweep import Plan
from bsfa.eval.tasks import TASKS, Generator
from eval_setup import haystack, model, tokenizer
from tiny import SHAPE, table_for

pytestmark = pytest.mark.model

PLAN = Plan(
    tasks=["niah_single_1"],
    lengths=[320, 640],
    budgets=[1, 3],
    prompts=3,
    seed=2,
    calibration_samples=2,
    ttft_runs=1,
)


def run(out: Path, plan: Plan = PLAN, **arguments: Any) -> results.Results:
    return sweep.run(model(), tokenizer(), plan, str(out), **arguments)


def stable(point: Point) -> dict[str, Any]:
    """What does not depend on the clock or the allocator."""
    values = dataclasses.asdict(point)
    times = [values.pop("ttft_s"), values.pop("attention_s")]
    assert [len(t) for t in times] == [PLAN.ttft_runs] * 2
    assert values.pop("peak_memory_bytes") > 0
    return values


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> results.Results:
    """A sweep that nothing interrupted."""
    return run(tmp_path_factory.mktemp("whole") / "r.jsonl")


def test_points(whole: results.Results) -> None:
    assert whole.failed == {}
    assert set(whole.points) == {
        ("niah_single_1", length, mode, budget)
        for length in PLAN.lengths
        for mode, budget in [
            ("dense", None),
            ("threshold", 1),
            ("threshold", 3),
            ("sliding_window", 1),
            ("sliding_window", 3),
        ]
    }
    ids = {tuple(p.id for p in point.prompts) for point in whole.points.values()}
    assert len(ids) == 2  # one set of prompts for each length, whatever the mode
    for point in whole.points.values():
        assert len(point.prompts) == 3
        assert [len(row) for row in point.density_by_head] == [4, 4]
        by_prompt = [prompt.density for prompt in point.prompts]
        assert point.density.measured == pytest.approx(sum(by_prompt) / 3)
        assert (point.density.low, point.density.high) == (min(by_prompt), max(by_prompt))
        heads = [value for row in point.density_by_head for value in row]
        assert sum(heads) / len(heads) == pytest.approx(point.density.measured, abs=1e-4)
        tokens = point.length - TASKS[point.task].answer_tokens
        if point.mode == "dense":
            assert point.density == results.Density(1, 1, 1, 1)
        else:
            assert point.density.predicted == bsfa.predicted_density(point.budget, tokens)
            assert point.density.measured < 1
        if point.mode == "sliding_window":
            assert point.density.measured == pytest.approx(point.density.predicted, abs=1e-4)
    assert whole.header.label == "RULER-like"
    assert whole.header.thresholds.calibrated_on == ["tracing", "aggregation"]
    assert whole.header.thresholds.budgets == [1, 3]


def test_measured_density_is_what_the_model_reports(whole: results.Results) -> None:
    sample = Generator(tokenizer(), seed=2).sample(TASKS["niah_single_1"], 640, "evaluation", 1)
    table = Path(whole.path).with_suffix(".thresholds.safetensors")
    bsfa.enable(model(), table, 1)
    with torch.inference_mode():
        model()(torch.tensor([sample.ids]))
    stats = bsfa.stats(model())
    kept = kept_map(model(), sample.ids, 1, 2)
    bsfa.disable(model())
    prompt = whole.points["niah_single_1", 640, "threshold", 1].prompts[1]
    assert prompt.id == sample.id
    assert prompt.density == pytest.approx(stats.density, abs=1e-4)
    assert sum(map(sum, kept)) == stats.layers[1].kept_blocks[2]
    assert all(kept[i][2 * i] for i in range(len(kept)))  # the diagonal


def test_maps_are_kept_for_the_report(whole: results.Results) -> None:
    found = {(m.length, m.mode, m.budget, m.layer, m.head) for m in whole.maps.values()}
    assert found == {(640, m, k, 1, 0) for m in ("threshold", "sliding_window") for k in (1, 3)}
    window = next(m for m in whole.maps.values() if (m.mode, m.budget) == ("sliding_window", 1))
    assert window.kept()[4] == [False] * 7 + [True] * 3  # the diagonal's two blocks and one before


def test_answers_do_not_depend_on_the_batch() -> None:
    samples = Generator(tokenizer(), seed=4).samples(TASKS["niah_single_1"], 400, "evaluation", 5)
    prompts = [sample.ids for sample in samples]
    bsfa.enable(model(), mode="sliding_window", budget=1)
    one = generation.answer(model(), tokenizer(), prompts, 6)
    three = generation.answer(model(), tokenizer(), prompts, 6, batch=3)
    bsfa.disable(model())
    assert one.tokens == three.tokens
    assert all(len(row) <= 6 for row in one.tokens)
    assert torch.equal(one.kept, three.kept)
    assert one.kept.shape == (5, 2, 4)
    with torch.inference_mode():
        expected = (
            model()
            .generate(
                torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False, pad_token_id=0
            )[0, len(prompts[0]) :]
            .tolist()
        )
    # The model's own attention is dense, but the first token of a copy of it must be the same.
    stock = generation.answer(model(), tokenizer(), prompts[:1], 6)
    assert stock.tokens[0] == expected[: len(stock.tokens[0])]
    assert stock.kept is None


class KilledError(BaseException):
    """Not an Exception: nothing may catch it."""


def test_a_run_killed_at_any_record_goes_on(
    tmp_path: Path, whole: results.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = results.Writer.append
    out = tmp_path / "r.jsonl"
    records = len(whole.points) + len(whole.maps)
    written = 0

    def die_in_the_middle(writer: results.Writer, record: Any) -> None:
        nonlocal written
        written += 1
        if written % 3 == 0:  # half a line reaches the disk
            line = json.dumps(dataclasses.asdict(record))
            with open(writer.path, "a") as file:
                file.write(line[: len(line) // 2])
            raise KilledError
        append(writer, record)

    monkeypatch.setattr(results.Writer, "append", die_in_the_middle)
    kills = 0
    for _ in range(2 * records):
        try:
            found = run(out)
            break
        except KilledError:
            kills += 1
    assert kills >= records // 3
    assert {k: stable(p) for k, p in found.points.items()} == {
        k: stable(p) for k, p in whole.points.items()
    }
    assert found.maps == whole.maps
    assert results.read(out).points == found.points
    assert found.header.thresholds == whole.header.thresholds


def test_a_run_killed_while_calibrating_goes_on(
    tmp_path: Path, whole: results.Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    plan = dataclasses.replace(PLAN, lengths=[320], modes=["threshold"])

    def die(done: int, total: int, name: str) -> None:
        if done == 1:
            raise KilledError

    with pytest.raises(KilledError):
        run(out, plan, calibrating=die)
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr(calibrating, "record_categories", die_at_once)
        with pytest.raises(KilledError):
            run(out, plan)
    assert len(run(out, plan).points) == 2


def die_at_once(*arguments: Any) -> None:
    raise KilledError


def test_a_point_that_fails_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    plan = dataclasses.replace(PLAN, lengths=[320], modes=["dense", "sliding_window"])
    use = sweep._use

    def break_one(model: Any, mode: str, budget: int | None, found: Any) -> None:
        if budget == 1:
            raise bsfa.DeviceError("out of memory")
        use(model, mode, budget, found)

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "_use", break_one)
        seen: list[Point | Failed] = []
        found = run(out, plan, finished=seen.append)
    assert [record.kind for record in seen] == ["point", "failed", "point"]
    assert [record.error for record in found.failed.values()] == ["DeviceError: out of memory"]
    again = run(out, plan)
    assert again.failed == {}
    assert len(again.points) == 3


def test_a_mode_that_falls_back_is_a_failure_not_a_point(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        **{**SHAPE, "vocab_size": len(tokenizer()), "max_position_embeddings": 512},
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention", "full_attention"],
    )
    with_sinks = transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager")
    plan = dataclasses.replace(PLAN, lengths=[320], budgets=[1], modes=["stock", "sliding_window"])
    with pytest.warns(bsfa.FallbackWarning, match="attention sinks"):
        found = sweep.run(with_sinks.eval(), tokenizer(), plan, str(tmp_path / "r.jsonl"))
    assert [point.mode for point in found.points.values()] == ["stock"]
    (failed,) = found.failed.values()
    assert "mode sliding_window did not run" in failed.error
    assert "attention sinks" in failed.error


def test_a_run_may_grow(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    small = dataclasses.replace(PLAN, lengths=[320], budgets=[1], modes=["dense"])
    run(out, small)
    before = out.read_text().split("\n")[1]
    grown = dataclasses.replace(small, modes=["stock", "dense", "sliding_window"], tasks=["vt"])
    found = run(out, grown)
    assert out.read_text().split("\n")[1] == before
    assert found.header.tasks == ["niah_single_1", "vt"]
    assert found.header.settings["modes"] == ["dense", "stock", "sliding_window"]
    assert results.read(out).header == found.header
    stock = found.points["vt", 320, "stock", None]
    assert (stock.density.measured, stock.density_by_head) == (1, [])
    with pytest.raises(
        bsfa.InvalidArgumentError, match=r"holds results with seed 2; this run has 3"
    ):
        run(out, dataclasses.replace(small, seed=3))
    with pytest.raises(bsfa.InvalidArgumentError, match=r"prompts_per_point 3; this run has 4"):
        run(out, dataclasses.replace(small, prompts=4))


def test_uninformative_tasks_are_left_out_on_request(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        PLAN, lengths=[320], modes=["sliding_window", "dense"], skip_uninformative=True
    )
    found = run(tmp_path / "r.jsonl", plan)  # random weights find nothing
    assert [point.mode for point in found.points.values()] == ["dense"]


def test_calibration_and_evaluation_are_kept_apart(tmp_path: Path, whole: results.Results) -> None:
    every = dataclasses.replace(PLAN, tasks=["niah_single_1", "vt", "fwe"])
    with pytest.raises(bsfa.InvalidArgumentError, match="none is left to calibrate on"):
        run(tmp_path / "a.jsonl", every)
    with pytest.raises(bsfa.InvalidArgumentError, match=r"'retrieval', which is evaluated by this"):
        run(tmp_path / "a.jsonl", dataclasses.replace(PLAN, calibrate_on=["retrieval"]))
    with pytest.raises(
        bsfa.InvalidArgumentError, match=r"'text', which is not possible.*--haystack"
    ):
        run(tmp_path / "a.jsonl", dataclasses.replace(PLAN, calibrate_on=["text"]))
    table = Path(whole.path).with_suffix(".thresholds.safetensors")
    assert categories_of(table) == ["tracing", "aggregation"]
    with pytest.raises(bsfa.InvalidArgumentError, match=r"task vt is of category tracing"):
        run(
            tmp_path / "a.jsonl",
            dataclasses.replace(PLAN, tasks=["vt"], thresholds=str(table)),
        )
    found = run(
        tmp_path / "b.jsonl",
        dataclasses.replace(every, lengths=[320], prompts=1, modes=["threshold"], budgets=[2]),
        haystack=haystack(),
    )
    assert found.header.thresholds.calibrated_on == ["text"]
    assert len(found.points) == 3


def test_threshold_files_say_what_they_were_calibrated_on(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    values = torch.randn(2, 2, 4, 16)
    table_for(model(), values, [1, 3]).save(str(path))
    plan = dataclasses.replace(PLAN, lengths=[320], thresholds=str(path), modes=["threshold"])
    out = tmp_path / "r.jsonl"
    with pytest.raises(bsfa.FormatError, match="does not say what it was calibrated on"):
        run(out, plan)
    assert categories_of(path) is None
    assert len(run(out, dataclasses.replace(plan, calibrated_on=["novels"])).points) == 2
    record_categories(path, ["text"])
    assert categories_of(path) == ["text"]
    again = bsfa.ThresholdTable.load(str(path))
    assert torch.equal(torch.from_dlpack(again.thresholds(3)), values[1])
    with pytest.raises(bsfa.InvalidArgumentError, match="says text"):
        run(tmp_path / "c.jsonl", dataclasses.replace(plan, calibrated_on=["novels"]))
    with pytest.raises(bsfa.Error, match=r"budget.*1, 3"):
        run(tmp_path / "c.jsonl", dataclasses.replace(plan, budgets=[2]))
    task = [TASKS["vt"]]
    with pytest.raises(bsfa.InvalidArgumentError, match=r"length is 4000; .* calibrated to 2048"):
        calibrating.load_thresholds(str(path), task, [1], [320, 4000], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["nothing"]}, r"'nothing'; accepted: niah_single_1"),
        ({"tasks": []}, "tasks is empty; accepted: niah_single_1"),
        ({"lengths": [320, 2049]}, r"length is 2049; .* holds 2048"),
        ({"lengths": [40]}, r"length 40 of task niah_single_1 .* needs"),
        (
            {"modes": ["sparse"]},
            r"'sparse'; accepted: stock, dense, threshold, coverage, sliding_window",
        ),
        ({"budgets": []}, "budgets is empty; mode threshold needs"),
        ({"modes": ["threshold"], "skip_uninformative": True}, "needs the mode dense"),
        ({"tasks": ["cwe"]}, "task cwe needs a text"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        run(tmp_path / "r.jsonl", dataclasses.replace(PLAN, **change))
    assert list(tmp_path.iterdir()) == []


def test_results_of_another_version_are_refused_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    out.write_text('{"kind": "header", "format": "bsfa-eval", "version": 9}\n')
    with pytest.raises(bsfa.FormatError, match="version is 9; this bsfa reads 1"):
        run(out)
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], of_a_commit: str) -> None:
    model().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(haystack().text)
    out = tmp_path / "r.jsonl"
    command = ["eval", "sweep", "--model", str(tmp_path / "model"), "--out", str(out)]
    command += ["--tasks", "niah_single_2", "--lengths", "320", "--budgets", "1", "--prompts", "2"]
    command += ["--modes", "dense,sliding_window", "--ttft-runs", "0", "--keep-answers"]
    assert main(command) == 2
    assert "--haystack" in capsys.readouterr().err
    command += ["--haystack", str(tmp_path / "text.txt")]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["points"], summary["failed"], summary["label"]) == (2, [], "RULER-like")
    assert results.read(out).header.versions["commit"] == of_a_commit
    for point in results.read(out).points.values():
        assert (point.ttft_s, len(point.answers)) == ([], 2)
    assert main(command) == 0
    assert "2 points (RULER-like tasks), 0 failed" in capsys.readouterr().out
    assert main(["eval", "sweep", "--model", "m", "--out", "o", "--tasks", "help"]) == 0
    assert "niah_single_2    retrieval" in capsys.readouterr().out
