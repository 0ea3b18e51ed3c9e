"""Threshold tables for people: text, JSON and a picture."""

from __future__ import annotations

import array
import math
from html import escape
from typing import Any

from bsfa._core import ThresholdTable, predicted_density
from bsfa.text import printable


def default_lengths(max_seqlen: int) -> list[int]:
    """Powers of two up to the calibrated length, and that length: at most six, tokens."""
    lengths = []
    length = 1024
    while length < max_seqlen:
        lengths.append(length)
        length *= 2
    return [*lengths[-5:], max_seqlen]


def _budget_values(table: ThresholdTable, budget: int) -> list[float]:
    values = array.array("f")
    values.frombytes(memoryview(table.thresholds(budget)).cast("B"))
    return values.tolist()


def summarise(table: ThresholdTable, lengths: list[int]) -> dict[str, Any]:
    """The table as the native `bsfa thresholds show --json` describes it."""
    budgets = []
    for budget in table.budgets:
        values = _budget_values(table, budget)
        finite = [value for value in values if math.isfinite(value)]
        entry: dict[str, Any] = {
            "budget": budget,
            "predicted": [
                {
                    "seqlen": length,
                    "predicted_density": predicted_density(budget, length, table.block),
                }
                for length in lengths
            ],
            "dense_entries": sum(value == -math.inf for value in values),
            "entries": len(values),
        }
        if finite:
            entry["lowest"], entry["highest"] = min(finite), max(finite)
        budgets.append(entry)
    return {
        "model": table.model,
        "producer": table.producer,
        "num_samples": table.num_samples,
        "max_seqlen": table.max_seqlen,
        "num_layers": table.num_layers,
        "num_heads_q": table.num_heads_q,
        "num_q_blocks": table.num_q_blocks,
        "q_block": table.block[0],
        "kv_block": table.block[1],
        "softmax_scale": table.softmax_scale,
        "recommended_budget": table.recommended_budget,
        "budgets": budgets,
    }


def as_text(summary: dict[str, Any]) -> str:
    """`summarise` as a table."""
    recommended = summary["recommended_budget"]
    lengths = [cell["seqlen"] for cell in summary["budgets"][0]["predicted"]]
    lines = [
        f"  model          {printable(summary['model'], 200)}",
        f"  made by        {printable(summary['producer'], 200)}",
        f"  samples        {summary['num_samples']}, the longest of {summary['max_seqlen']} tokens",
        f"  shape          {summary['num_layers']} layers, {summary['num_heads_q']} query heads, "
        f"{summary['num_q_blocks']} query blocks",
        f"  gate block     {summary['q_block']} queries x {summary['kv_block']} keys",
        f"  softmax scale  {summary['softmax_scale']:.6g}",
        f"  recommended    {'none' if recommended is None else f'budget {recommended}'}",
        "",
        "Predicted density, by budget and prompt length in tokens (1.00: nothing is left out)",
        "  budget" + "".join(f"{length:9d}" for length in lengths) + "   thresholds",
    ]
    for entry in summary["budgets"]:
        cells = "".join(f"{cell['predicted_density']:9.2f}" for cell in entry["predicted"])
        dense = f"{100 * entry['dense_entries'] / max(1, entry['entries']):.0f} % dense"
        spread = "none finite"
        if "lowest" in entry:
            spread = f"{entry['lowest']:.3g} to {entry['highest']:.3g}"
        lines.append(f"{entry['budget']:8d}{cells}   {spread}, {dense}")
    return "\n".join(lines)


def _colour(share: float) -> str:
    """From pale to dark blue; share in 0..1."""
    low, high = (222, 235, 247), (8, 48, 107)
    mixed = [round(a + (b - a) * share) for a, b in zip(low, high, strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def as_svg(table: ThresholdTable, budget: int | None = None) -> str:
    """A picture: the mean threshold of each layer and head at a budget, and what budgets predict.

    Cells without a finite threshold (always dense) are left white.
    """
    budget = budget or table.recommended_budget or table.budgets[0]
    layers, heads, blocks = table.num_layers, table.num_heads_q, table.num_q_blocks
    values = _budget_values(table, budget)
    means: list[float | None] = []
    for start in range(0, len(values), blocks):
        finite = [v for v in values[start : start + blocks] if math.isfinite(v)]
        means.append(sum(finite) / len(finite) if finite else None)
    known = [mean for mean in means if mean is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    cell, left, top = 14, 60, 50
    width = left + heads * cell + 90 + 320
    height = max(top + layers * cell, top + 220) + 50
    model = escape(printable(table.model, 200))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="13">{model}: mean threshold at budget '
        f"{budget}, {low:.3g} (pale) to {high:.3g} (dark)</text>",
        f'<text x="{left}" y="40">query head</text>',
        f'<text x="8" y="{top + 12}">layer</text>',
    ]
    for index, mean in enumerate(means):
        layer, head = divmod(index, heads)
        fill = "white"
        if mean is not None:
            fill = _colour((mean - low) / (high - low) if high > low else 0.5)
        text = "always dense" if mean is None else f"{mean:.4g}"
        parts.append(
            f'<rect x="{left + head * cell}" y="{top + layer * cell}" width="{cell}" '
            f'height="{cell}" fill="{fill}" stroke="#ddd"><title>layer {layer}, head {head}: '
            f"{text}</title></rect>"
        )
        if head == 0 and layer % 5 == 0:
            parts.append(f'<text x="{left - 24}" y="{top + layer * cell + 11}">{layer}</text>')
    parts += _density_curves(table, left + heads * cell + 90, top)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _density_curves(table: ThresholdTable, x: int, y: int) -> list[str]:
    """Predicted density against prompt length, a line for each budget, 220 x 200 pixels."""
    width, height, steps = 220, 200, 24
    longest = max(table.max_seqlen, 2 * table.block[0])
    parts = [
        f'<text x="{x}" y="{y - 10}">predicted density by prompt length (tokens)</text>',
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="#888"/>',
        f'<text x="{x - 18}" y="{y + 8}">1</text><text x="{x - 18}" y="{y + height}">0</text>',
        f'<text x="{x + width - 30}" y="{y + height + 14}">{longest}</text>',
    ]
    for budget in table.budgets:
        points = []
        for step in range(1, steps + 1):
            density = predicted_density(budget, longest * step // steps, table.block)
            points.append(f"{x + width * step / steps:.1f},{y + height * (1 - density):.1f}")
        end = points[-1].split(",")[1]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="rgb(8,48,107)"/>'
            f'<text x="{x + width + 4}" y="{end}">budget {budget}</text>'
        )
    return parts
