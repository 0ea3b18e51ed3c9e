"""What the attention layers of a model did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bsfa.policies import POLICIES


@dataclass(frozen=True)
class LayerStats:
    """One attention layer in the last forward pass that was not decoding."""

    layer: int
    attention: str
    """The mode (`bsfa.policies`); windowed (the model's own window); previous (a fallback)."""
    reason: str | None = None
    """Why the mode that is set did not apply to this layer; None if it did."""
    kept_blocks: tuple[int, ...] = ()
    """By query head, summed over the batch; empty if the layer fell back or ran sparge."""
    visible_blocks: tuple[int, ...] = ()
    left_out: tuple[float, ...] = ()
    """Of mode coverage, by query head: the share of the attention of the rows that were scored
    which the lists leave out, the mean over query blocks. Empty if it is not known."""
    most_left_out: float = math.nan
    """The largest share that a query block of any head leaves out."""

    @property
    def densities(self) -> tuple[float, ...]:
        """Kept over visible blocks by query head."""
        pairs = zip(self.kept_blocks, self.visible_blocks, strict=True)
        return tuple(kept / visible if visible else math.nan for kept, visible in pairs)

    @property
    def density(self) -> float:
        """Kept over visible blocks of all heads; NaN if the layer fell back."""
        visible = sum(self.visible_blocks)
        return sum(self.kept_blocks) / visible if visible else math.nan


@dataclass(frozen=True)
class ModelStats:
    """The last forward pass of a model that was not decoding. `print` shows it as a table."""

    mode: str
    budget: int | None
    previous: str
    """The attention implementation that serves decoding and fallbacks."""
    layers: tuple[LayerStats, ...] = ()
    fallbacks: dict[str, int] = field(default_factory=dict)
    """Calls that went to the previous attention since enable, by reason."""
    decode_calls: int = 0
    """Calls of fewer than 32 queries since enable; they run the previous attention. Those inside a
    compiled graph are not counted."""
    parameter: float | None = None
    """Of coverage its share, of mass its c, of the skip_softmax modes their lambda."""

    @property
    def density(self) -> float:
        """Kept over visible blocks of all layers that bsfa ran; NaN if there is none."""
        visible = sum(sum(layer.visible_blocks) for layer in self.layers)
        kept = sum(sum(layer.kept_blocks) for layer in self.layers)
        return kept / visible if visible else math.nan

    @property
    def left_out(self) -> float:
        """Of mode coverage: the mean share of attention that is left out; NaN if not known."""
        shares = [share for layer in self.layers for share in layer.left_out]
        return sum(shares) / len(shares) if shares else math.nan

    def __str__(self) -> str:
        """A table of one row for each layer."""
        setting = "" if self.budget is None else f", budget {self.budget}"
        if self.parameter is not None:
            setting = f", {POLICIES[self.mode].setting} {self.parameter:g}"
        lines = [f"bsfa: mode {self.mode}{setting}; density {self.density:.3f}"]
        if not math.isnan(self.left_out):
            most = max(layer.most_left_out for layer in self.layers if layer.left_out)
            lines[0] += f"; left out {self.left_out:.2%} of the attention, {most:.2%} at most"
        if self.layers:
            lines.append("layer  attention       density  lowest..highest head")
        for layer in self.layers:
            if layer.visible_blocks:
                spread = f"{min(layer.densities):.3f}..{max(layer.densities):.3f}"
                row = f"{layer.layer:5d}  {layer.attention:14s}  {layer.density:7.3f}  {spread}"
            else:
                row = f"{layer.layer:5d}  {layer.attention}"
            lines.append(row + (f"  ({layer.reason})" if layer.reason else ""))
        lines += [
            f"{count} calls went to {self.previous}: {why}" for why, count in self.fallbacks.items()
        ]
        if self.decode_calls:
            lines.append(f"{self.decode_calls} decoding calls ran {self.previous}")
        return "\n".join(lines)
