"""The ablations of a results file, compared prompt by prompt with a reference setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bsfa.eval.results import Ablation, Results
from bsfa.eval.statistics import Interval, mean_interval

__all__ = ["QUANTITIES", "TITLES", "AblationRow", "ablation_rows"]

TITLES = {
    "samples": "Number of calibration samples",
    "domain": "Calibration domain against evaluation domain",
    "position": "A threshold per query block against one per head",
    "gate_block": "Gate block (queries x keys)",
}
QUANTITIES = {
    "density": "measured density (kept / visible blocks)",
    "error": "relative error of the attention output",
    "agreement": "tokens whose likeliest successor is that of dense",
    "perplexity_change": "perplexity over that of dense, less 1",
}
ARROW = " -> "
"""In the setting of a domain: calibrated on, evaluated on."""
_REFERENCES = {"samples": "16", "position": "per query block", "gate_block": "128x64"}


@dataclass(frozen=True)
class AblationRow:
    """One setting and budget."""

    name: str
    setting: str
    budget: int
    length: int | None
    n: int
    density_predicted: float | None
    quantities: dict[str, Interval | None]
    """By name: mean over the prompts with its t interval; without width where the file has means
    alone."""
    differences: dict[str, Interval] = field(default_factory=dict)
    """To the reference setting on the same prompts; empty for the reference."""


def reference_of(name: str, setting: str) -> str | None:
    """What a setting is compared with: the paper's, or thresholds of the evaluation domain."""
    if name == "domain":
        target = setting.split(ARROW)[-1]
        return target + ARROW + target
    return _REFERENCES.get(name)


def _values(ablation: Ablation, quantity: str) -> dict[int, float]:
    found = {prompt.id: getattr(prompt, quantity) for prompt in ablation.prompts}
    return {key: value for key, value in found.items() if value is not None}


def _quantity(ablation: Ablation, quantity: str) -> Interval | None:
    values = _values(ablation, quantity)
    if values:
        return mean_interval(list(values.values()))
    mean = getattr(ablation, quantity)
    return None if mean is None else Interval(mean, mean, mean, 1)


def _differences(ablation: Ablation, reference: Ablation | None) -> dict[str, Interval]:
    if reference is None or reference is ablation:
        return {}
    found = {}
    for quantity in QUANTITIES:
        ours, theirs = _values(ablation, quantity), _values(reference, quantity)
        changes = [ours[key] - theirs[key] for key in ours if key in theirs]
        if changes:
            found[quantity] = mean_interval(changes)
    return found


def ablation_rows(results: Results) -> dict[str, Sequence[AblationRow]]:
    """By name of the ablation, in the order of the file."""
    rows: dict[str, list[AblationRow]] = {}
    for ablation in results.ablations.values():
        reference = reference_of(ablation.name, ablation.setting)
        rows.setdefault(ablation.name, []).append(
            AblationRow(
                ablation.name,
                ablation.setting,
                ablation.budget,
                ablation.length,
                ablation.n,
                ablation.density_predicted,
                {quantity: _quantity(ablation, quantity) for quantity in QUANTITIES},
                _differences(
                    ablation,
                    results.ablations.get((ablation.name, reference, ablation.budget)),
                ),
            )
        )
    return {
        name: sorted(rows[name], key=lambda row: row.budget)
        for name in sorted(rows, key=lambda name: [*TITLES, name].index(name))
    }
