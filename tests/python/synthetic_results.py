"""Made-up results files for the tests of the report. Nothing here was measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from bsfa.eval import results as r

LAYERS, HEADS = 6, 4
SECONDS = {2048: 1.0, 4096: 2.6, 8192: 7.5}


def header(
    tasks: Sequence[str], lengths: Sequence[int], budgets: Sequence[int], modes: Sequence[str]
) -> r.Header:
    """Of a model that does not exist."""
    return r.Header(
        created="2026-01-01",
        model=r.Model("SYNTHETIC (made up by a test)", LAYERS, HEADS, 2, 64, 8192),
        versions={"bsfa": "0.0", "torch": "0.0", "lm_eval": ""},
        device=r.Device("cpu", "no device"),
        dtype="bfloat16",
        threads=2,
        seed=1,
        thresholds=r.Thresholds("made-up.safetensors", "0" * 64, list(budgets), ["prose"], 8192),
        tasks=list(tasks),
        prompts_per_point=30,
        settings={
            "lengths": list(lengths),
            "budgets": list(budgets),
            "modes": list(modes),
        },
    )


def point(
    task: str,
    length: int,
    mode: str,
    budget: int | None,
    scores: Sequence[float],
    *,
    density: float = 1.0,
    predicted: float | None = None,
    seconds: float | None = None,
    depths: Sequence[float | None] | None = None,
) -> r.Point:
    """A point with the scores given; prompt ids count from 0."""
    depths = depths or [None] * len(scores)
    times = [] if seconds is None else [seconds * (1 + 0.01 * (i % 5)) for i in range(10)]
    return r.Point(
        task=task,
        length=length,
        mode=mode,
        budget=budget,
        prompts=[
            r.Prompt(i, score, depth)
            for i, (score, depth) in enumerate(zip(scores, depths, strict=True))
        ],
        density=r.Density(predicted, density, 0.95 * density, min(1.0, 1.05 * density)),
        density_by_head=[
            [
                min(1.0, density * (0.5 + (layer * HEADS + head) / (LAYERS * HEADS)))
                for head in range(HEADS)
            ]
            for layer in range(LAYERS)
        ],
        peak_memory_bytes=2**30,
        ttft_s=times,
        attention_s=[0.7 * time for time in times],
    )


def sweep(
    path: Path,
    *,
    tasks: Sequence[str] = ("niah_single", "vt", "cwe"),
    lengths: Sequence[int] = (2048, 4096, 8192),
    budgets: Sequence[int] = (4, 8, 16, 32),
    modes: Sequence[str] = ("dense", "threshold", "sliding_window"),
    prompts: int = 30,
) -> Path:
    """A whole sweep: the method loses little, the window much; "cwe" is beyond the model."""
    generator = random.Random(0)
    r.create(path, header(tasks, lengths, budgets, modes))
    for task in tasks:
        for length in lengths:
            # The difficulty of each prompt is the same in every mode, so prompts pair up.
            easy = [generator.random() for _ in range(prompts)]
            depths = [i % 10 / 9 for i in range(prompts)] if task == "niah_single" else None
            able = {"niah_single": 0.95, "vt": 0.7}.get(task, 0.2)
            for mode in modes:
                for budget in [None] if mode == "dense" else budgets:
                    share = 1.0 if budget is None else min(1.0, (64 * budget + 128) / length)
                    loss = 0.0
                    if mode == "threshold":
                        loss = 0.25 * (1 - share) ** 4
                    elif mode == "sliding_window":
                        loss = 0.9 * (1 - share)
                    density = min(1.0, share * (1.1 if mode == "threshold" else 1.0))
                    seconds = SECONDS[length] * (0.45 + 0.55 * (1 + density) / 2)
                    r.append(
                        path,
                        point(
                            task,
                            length,
                            mode,
                            budget,
                            [float(e < able - loss) for e in easy],
                            density=density,
                            predicted=share,
                            seconds=seconds,
                            depths=depths,
                        ),
                    )
    for mode in ("threshold",):
        if mode in modes:
            r.append(path, kept_map(lengths[-1], budgets[-1]))
    return path


def kept_map(length: int, budget: int) -> r.Map:
    """A diagonal, a first column and some scattered blocks."""
    rows, columns = length // 128, length // 64
    generator = random.Random(1)
    kept = [
        [
            j < 2 * i + 2 and (j >= 2 * i - 2 or j == 0 or generator.random() < 0.15)
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    return r.Map(
        "niah_single", length, "threshold", budget, 3, 2, 0, rows, columns, r.Map.pack(kept)
    )


def ablation(name: str, setting: str, budget: int, errors: Sequence[float]) -> r.Ablation:
    """One setting with an error for each prompt."""
    prompts = [
        r.AblationPrompt(i, 0.3 + 0.01 * i, error, 1 - error, error / 10)
        for i, error in enumerate(errors)
    ]
    n = len(prompts)
    return r.Ablation(
        name,
        setting,
        budget,
        sum(p.density for p in prompts) / n,
        0.3,
        sum(errors) / n,
        1 - sum(errors) / n,
        sum(errors) / 10 / n,
        n,
        4096,
        prompts,
    )
