"""All points of tasks x lengths x modes x budgets, measured one after the other and kept."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import bsfa
from bsfa._core import predicted_density
from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.eval import results
from bsfa.eval.calibrating import (
    Calibrated,
    Progress,
    calibrate_for,
    choose_categories,
    load_thresholds,
)
from bsfa.eval.environment import context_of, make_header
from bsfa.eval.generation import (
    Answers,
    PrefillTime,
    answer,
    peak_memory,
    reset_peak_memory,
    timed_prefills,
)
from bsfa.eval.maps import kept_map
from bsfa.eval.provenance import categories_of
from bsfa.eval.results import Density, Failed, Key, Map, Point, Prompt
from bsfa.eval.tasks import Generator, Sample, Task, find_tasks, score
from bsfa.eval.text import Haystack
from bsfa.files import check_writable
from bsfa.hf.models import NAME, text_config
from bsfa.policies import ATTENTIONS, EXACT, STOCK, SWEPT, SWEPT_BY_DEFAULT, find_policy
from bsfa.text import quote, quote_path, shown

__all__ = ["UNINFORMATIVE", "Plan", "run"]

WARM_UP = 2
"""Prefills before the timed ones."""
UNINFORMATIVE = 0.5
"""Where dense attention scores less, a task says nothing about another attention."""


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked for."""

    tasks: Sequence[str]
    lengths: Sequence[int]
    """Tokens of prompt and answer together."""
    budgets: Sequence[int]
    modes: Sequence[str] = SWEPT_BY_DEFAULT
    parameters: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of the modes that have one (`bsfa.policies`), by mode; others run at their default."""
    prompts: int = 100
    seed: int = 0
    chat_template: bool = True
    thresholds: str | None = None
    """A file; None: calibrate, beside the results."""
    calibrated_on: Sequence[str] | None = None
    """What the file was calibrated on, if it does not say."""
    calibrate_on: Sequence[str] | None = None
    calibration_samples: int = 16
    """Of each length."""
    ttft_runs: int = 10
    """Timed prefills of a point; 0: no times."""
    batch: int | None = None
    """Prompts at once; None: as many as the GPU holds, one on the CPU."""
    skip_uninformative: bool = False
    """Leave out the other modes where dense scores below UNINFORMATIVE."""
    maps: Sequence[tuple[int, int]] | None = None
    """(layer, head) to draw for the first task at the greatest length; None: one in the middle."""
    keep_answers: bool = False


def _numbers(plan: Plan, mode: str) -> Sequence[results.Number | None]:
    """What a mode is run at."""
    policy = ATTENTIONS[mode]
    if not policy.setting:
        return [None]
    if policy.default is None:
        return plan.budgets
    return [float(number) for number in plan.parameters.get(mode) or [policy.default]]


def _keys(plan: Plan, tasks: Sequence[Task]) -> Iterator[Key]:
    """Dense first: it decides whether the rest of a task is worth running."""
    modes = sorted(dict.fromkeys(plan.modes), key=lambda mode: mode not in EXACT)
    for length in plan.lengths:
        for task in tasks:
            for mode in modes:
                for number in _numbers(plan, mode):
                    yield task.name, length, mode, number


def _check(plan: Plan, model: Any, generator: Generator) -> list[Task]:
    """Refuses what cannot be run, before anything runs."""
    tasks = find_tasks(plan.tasks)
    for task in tasks:
        generator.check(task)
    unknown = [mode for mode in plan.modes if mode not in SWEPT]
    if unknown or not plan.modes:
        found = f"modes names {quote(unknown[0])}" if unknown else "modes is empty"
        raise InvalidArgumentError(f"{found}; accepted: {', '.join(SWEPT)}")
    if plan.skip_uninformative and "dense" not in plan.modes:
        raise InvalidArgumentError("skip-uninformative needs the mode dense; modes has no dense")
    with_budget = []
    for mode in plan.modes:
        policy = ATTENTIONS[mode]
        if policy is not STOCK:  # which runs wherever the model does
            policy.check_device(model.device.type)
        if policy.has_budget:
            with_budget.append(mode)
    for mode, numbers in plan.parameters.items():
        for number in numbers:
            find_policy(mode).parameter(number)
    if with_budget and not plan.budgets:
        raise InvalidArgumentError(f"budgets is empty; mode {with_budget[0]} needs one or more")
    context = context_of(model)
    most = max(plan.lengths, default=0)
    if not plan.lengths or (context is not None and most > context):
        found = f"length is {most}" if plan.lengths else "lengths is empty"
        raise InvalidArgumentError(
            f"{found}; the model's context holds {context} tokens; accepted: up to that"
        )
    for task in tasks:  # the shortest prompt says whether the length suffices
        generator.sample(task, min(plan.lengths), "evaluation", 0)
    return tasks


def _thresholds(
    plan: Plan, model: Any, generator: Generator, tasks: list[Task], out: str, progress: Any
) -> Calibrated | None:
    if not any(ATTENTIONS[mode].needs_thresholds for mode in plan.modes):
        return None
    if plan.thresholds is not None:
        return load_thresholds(
            plan.thresholds, tasks, plan.budgets, plan.lengths, plan.calibrated_on
        )
    path = os.path.splitext(out)[0] + ".thresholds.safetensors"
    asked = plan.calibrate_on
    if asked is None and os.path.exists(path):
        asked = categories_of(path)  # what the run that is gone on with chose
    categories = choose_categories(tasks, asked, generator.has_text)
    _use(model, STOCK.name, None, None)
    return calibrate_for(
        model,
        generator,
        categories,
        plan.lengths,
        plan.budgets,
        plan.calibration_samples,
        path,
        progress,
    )


def _header(
    plan: Plan, model: Any, generator: Generator, tasks: list[Task], found: Calibrated | None
) -> results.Header:
    settings = {
        "lengths": list(plan.lengths),
        "modes": list(plan.modes),
        "budgets": list(plan.budgets),
        "parameters": {
            mode: list(_numbers(plan, mode))
            for mode in plan.modes
            if ATTENTIONS[mode].has_parameter
        },
        "chat_template": generator.chat_template,
        "haystack": generator.haystack_digest,
        "answer_tokens": {task.name: task.answer_tokens for task in tasks},
        "ttft_runs": plan.ttft_runs,
        "warm_up": WARM_UP,
        "skip_uninformative": plan.skip_uninformative,
    }
    return make_header(
        model,
        seed=plan.seed,
        tasks=[task.name for task in tasks],
        prompts_per_point=plan.prompts,
        thresholds=None if found is None else found.record,
        settings=settings,
    )


_MAY_GROW = ("lengths", "modes", "budgets")


def _open(writer: results.Writer, header: results.Header) -> results.Results:
    """The results so far; refuses a file of a run with which these points cannot be compared."""
    out = writer.path
    if not os.path.exists(out):
        writer.create(header)
        return results.read(out)
    so_far = results.read(out)
    old = so_far.header
    if old.thresholds is None or header.thresholds is None:
        kept = dataclasses.replace(header, thresholds=header.thresholds or old.thresholds)
    else:
        kept = header
    for name in ("model", "device", "dtype", "threads", "seed", "prompts_per_point"):
        _same(out, name, getattr(old, name), getattr(kept, name))
    for name in ("bsfa", "torch", "transformers"):
        _same(out, f"{name} version", old.versions.get(name), kept.versions.get(name))
    _same(out, "bsfa commit", old.versions.get("commit", ""), kept.versions.get("commit", ""))
    if old.thresholds is not None:
        _same(out, "thresholds", old.thresholds, kept.thresholds)
    settings = dict(header.settings)
    for name, value in old.settings.items():
        if name in _MAY_GROW:
            settings[name] = list(dict.fromkeys([*value, *settings.get(name, [])]))
        elif name == "parameters":
            given = settings.get(name, {})
            settings[name] = {
                mode: list(dict.fromkeys([*value.get(mode, []), *given.get(mode, [])]))
                for mode in {**value, **given}
            }
        elif name == "answer_tokens":
            settings[name] = {**value, **settings.get(name, {})}
        elif name in ("chat_template", "haystack"):
            _same(out, name, value, settings.get(name))
    tasks = list(dict.fromkeys([*old.tasks, *header.tasks]))
    so_far.header = dataclasses.replace(kept, created=old.created, tasks=tasks, settings=settings)
    if so_far.header != old:
        writer.replace_header(so_far.header)
    return so_far


def _same(out: str, name: str, old: Any, new: Any) -> None:
    if old != new:
        raise InvalidArgumentError(
            f"{quote_path(out)} holds results with {name} {shown(old)}; this run has {shown(new)}. "
            "Choose another --out, or run as before to go on with it"
        )


def _use(model: Any, mode: str, number: results.Number | None, found: Calibrated | None) -> None:
    """Makes the model attend in a mode."""
    if mode == STOCK.name:
        if text_config(model)._attn_implementation == NAME:
            bsfa.disable(model)
        return
    if ATTENTIONS[mode].has_parameter:
        bsfa.enable(model, mode=mode, parameter=number)
        return
    table = found.table if found is not None and ATTENTIONS[mode].needs_thresholds else None
    assert not isinstance(number, float)
    bsfa.enable(model, table, number, mode=mode)


def _densities(answers: Answers) -> tuple[list[float], list[list[float]]]:
    """By prompt, and by layer and head (mean over the prompts; no heads where bsfa did not run)."""
    if answers.kept is None or answers.visible is None:
        return [1.0] * len(answers.tokens), []
    kept, visible = answers.kept.double(), answers.visible.double()
    by_prompt = kept.sum(dim=(1, 2)) / visible.sum(dim=(1, 2))
    by_head: list[list[float]] = []
    for layer in range(kept.shape[1]):
        if bool((visible[:, layer] > 0).all()):
            mean = (kept[:, layer] / visible[:, layer]).mean(dim=0)
            by_head.append([round(value, 5) for value in mean.tolist()])
        else:
            by_head.append([])
    return [
        round(value, 5) if math.isfinite(value) else 1.0 for value in by_prompt.tolist()
    ], by_head


class _Runner:
    """Measures points of one task and length after the other."""

    def __init__(
        self, plan: Plan, model: Any, generator: Generator, found: Calibrated | None
    ) -> None:
        self.plan = plan
        self.model = model
        self.generator = generator
        self.found = found
        self._samples: dict[tuple[str, int, str], list[Sample]] = {}

    def samples(self, task: Task, length: int, use: str) -> list[Sample]:
        """The prompts of a task at a length, made when they are first needed."""
        key = (task.name, length, use)
        if key not in self._samples:
            if next(iter(self._samples), key)[:2] != key[:2]:
                self._samples.clear()
            count = self.plan.prompts if use == "evaluation" else self.plan.ttft_runs + WARM_UP
            self._samples[key] = self.generator.samples(task, length, use, count)
        return self._samples[key]

    def measure(
        self,
        task: Task,
        length: int,
        mode: str,
        budget: results.Number | None,
        progress: Any,
    ) -> Point:
        """One point."""
        plan, model, tokenizer = self.plan, self.model, self.generator.tokenizer
        samples = self.samples(task, length, "evaluation")
        _use(model, mode, budget, self.found)
        reset_peak_memory(model.device)
        prompts = [sample.ids for sample in samples]
        answers = answer(model, tokenizer, prompts, task.answer_tokens, plan.batch, progress)
        memory = peak_memory(model.device)
        self._check_fallbacks(mode)
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in answers.tokens]
        times: list[PrefillTime] = []
        if plan.ttft_runs:
            held_out = self.samples(task, length, "timing")
            times, memory = timed_prefills(model, [sample.ids for sample in held_out], WARM_UP)
        by_prompt, by_head = _densities(answers)
        predicted = None
        if isinstance(budget, int):
            block = (128, 64) if self.found is None else self.found.table.block
            predicted = predicted_density(budget, length - task.answer_tokens, block)
        elif mode == "dense":
            predicted = 1.0
        return Point(
            task.name,
            length,
            mode,
            budget,
            [
                Prompt(sample.id, score(text, sample.answers), sample.depth, density)
                for sample, text, density in zip(samples, texts, by_prompt, strict=True)
            ],
            Density(predicted, sum(by_prompt) / len(by_prompt), min(by_prompt), max(by_prompt)),
            by_head,
            memory,
            [round(time.ttft_s, 6) for time in times],
            [round(time.attention_s, 6) for time in times],
            texts if plan.keep_answers else [],
        )

    def _check_fallbacks(self, mode: str) -> None:
        """A point is not of a mode in which some layers did not run."""
        fallbacks = {} if mode == STOCK.name else bsfa.stats(self.model).fallbacks
        if fallbacks:
            raise UnsupportedError(f"mode {mode} did not run: {'; '.join(fallbacks)}")

    def maps(
        self, task: Task, length: int, mode: str, budget: results.Number | None
    ) -> Iterator[Map]:
        """The kept blocks of the chosen heads over the first prompt."""
        sample = self.samples(task, length, "evaluation")[0]
        _use(self.model, mode, budget, self.found)
        config = text_config(self.model)
        chosen = self.plan.maps
        if chosen is None:
            chosen = [(int(config.num_hidden_layers) // 2, 0)]
        for layer, head in chosen:
            kept = kept_map(self.model, sample.ids, layer, head)
            yield Map(
                task.name,
                length,
                mode,
                budget,
                layer,
                head,
                sample.id,
                len(kept),
                len(kept[0]),
                Map.pack(kept),
            )


def _failure(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()[:2000]


def run(
    model: Any,
    tokenizer: Any,
    plan: Plan,
    out: str | results.Writer,
    haystack: Haystack | None = None,
    progress: Progress | None = None,
    calibrating: Progress | None = None,
    finished: Callable[[Point | Failed], None] | None = None,
) -> results.Results:
    """Measures all points that `out` does not have, and returns all that it has then.

    A point that fails is recorded as failed, and tried again by the next run.

    out: the results file, new or to go on with, or its writer. While this runs nobody else may
    write to it.
    progress: called with (prompts done, prompts, point).
    calibrating: called with (samples done, samples, sample).
    finished: called with each new point.
    """
    if not isinstance(out, results.Writer):
        check_writable("out", out)
        with results.Writer(out) as writer:
            return run(model, tokenizer, plan, writer, haystack, progress, calibrating, finished)
    writer, out = out, out.path
    generator = Generator(tokenizer, haystack, plan.seed, plan.chat_template)
    tasks = _check(plan, model, generator)
    if os.path.exists(out):
        results.read(out)  # refuses another format before anything is calibrated
    found = _thresholds(plan, model, generator, tasks, out, calibrating)
    so_far = _open(writer, _header(plan, model, generator, tasks, found))
    runner = _Runner(plan, model, generator, found)
    by_name = {task.name: task for task in tasks}
    keys = list(_keys(plan, tasks))
    total = len(keys) * plan.prompts
    for number, key in enumerate(keys):
        name, length, mode, budget = key
        label = f"{name} {length} {mode}" + ("" if budget is None else f" {budget}")
        done = number * plan.prompts
        if progress is not None:
            progress(done, total, label)
        dense = so_far.points.get((name, length, "dense", None))
        skipped = (
            plan.skip_uninformative
            and mode != "dense"
            and dense is not None
            and dense.accuracy < UNINFORMATIVE
        )
        if key in so_far.points or skipped:
            continue

        def tick(count: int, done: int = done, label: str = label) -> None:
            if progress is not None:
                progress(min(done + count, total - 1), total, label)

        task = by_name[name]
        record: Point | Failed
        try:
            record = runner.measure(task, length, mode, budget, tick)
            if name == tasks[0].name and length == max(plan.lengths) and mode not in EXACT:
                for kept in runner.maps(task, length, mode, budget):
                    writer.append(kept)
                    so_far.add(kept)
        except Exception as error:
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            record = Failed(name, length, mode, budget, _failure(error))
        writer.append(record)
        so_far.add(record)
        if finished is not None:
            finished(record)
    if progress is not None:
        progress(total, total, "")
    _use(model, STOCK.name, None, None)
    return so_far
