"""Sequences of different lengths in one batch: where they are, for one call of the kernel.

What a forward pass has to know about padding on the host it reads once, where Transformers' own
masks look too; the layers then take the lengths from the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Span = tuple[int, int]


class Packing(NamedTuple):
    """Real tokens of a padded batch one after the other, as a packed call takes them."""

    q_index: tuple[Tensor, Tensor]
    """(sequence, row) of each query, int64 [total_q]."""
    k_index: tuple[Tensor, Tensor]
    """(sequence, row) of each key, int64 [total_k]."""
    cu_seqlens_q: Tensor
    """int32 [batch + 1]."""
    cu_seqlens_k: Tensor
    """int32 [batch + 1]."""
    max_seqlen_q: int
    max_seqlen_k: int


class Padding:
    """The real key rows of each sequence, [first, last), and the same on devices, made once."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self._leftpad: dict[torch.device, Tensor] = {}
        self._packings: dict[tuple[torch.device, int, int], Packing] = {}

    def common(self) -> Span | None:
        """The span if all sequences stand alike."""
        return self.spans[0] if len(set(self.spans)) == 1 else None

    def only_left(self, end: int) -> bool:
        """Whether every sequence has tokens, and up to row `end`."""
        return all(first < end <= last for first, last in self.spans)

    def leftpad(self, device: torch.device) -> Tensor:
        """int32 [batch]: padding rows before the first token."""
        if device not in self._leftpad:
            firsts = torch.tensor([first for first, _ in self.spans], dtype=torch.int32)
            self._leftpad[device] = to_device(firsts, device)
        return self._leftpad[device]

    def packing(self, device: torch.device, q_offset: int, q_length: int) -> Packing:
        """How to pack queries at key rows [q_offset, q_offset + q_length) and the keys they see."""
        key = (device, q_offset, q_length)
        if key not in self._packings:
            q_rows, k_rows = [], []
            for first, last in self.spans:
                end = max(q_offset, min(last, q_offset + q_length))
                top = min(end, max(first, q_offset))
                q_rows.append(torch.arange(top - q_offset, end - q_offset))
                k_rows.append(torch.arange(first, end) if end > top else torch.arange(0))
            self._packings[key] = Packing(
                _index(q_rows, device),
                _index(k_rows, device),
                _cumulative(q_rows, device),
                _cumulative(k_rows, device),
                max(map(len, q_rows)),
                max(map(len, k_rows)),
            )
        return self._packings[key]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy from the CPU that the host does not wait for."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _index(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    sequence = torch.cat([torch.full_like(row, index) for index, row in enumerate(rows)])
    return to_device(sequence, device), to_device(torch.cat(rows), device)


def _cumulative(rows: list[Tensor], device: torch.device) -> Tensor:
    lengths = torch.tensor([0] + [len(row) for row in rows])
    return to_device(lengths.cumsum(0).to(torch.int32), device)


def read_padding(attention_mask: Tensor | None, batch: int, first: int, end: int) -> Padding | None:
    """The real key rows of each sequence in [first, end), relative to first.

    attention_mask: [batch, >= end], 0 where there is padding. None is returned if the padding of a
    sequence is not at its ends. Reads three numbers for each sequence from the device.
    """
    length = max(0, end - first)
    if attention_mask is None:
        return Padding([(0, length)] * batch)
    real = attention_mask[:, first:end].bool()
    if real.shape[1] == 0:
        return Padding([(0, 0)] * batch)
    counts = real.sum(dim=1)
    starts = real.to(torch.uint8).argmax(dim=1) * (counts > 0)
    rows = torch.arange(real.shape[1], device=real.device)
    inside = (rows >= starts[:, None]) & (rows < (starts + counts)[:, None])
    whole = (inside == real).all(dim=1)
    facts = torch.stack([starts, starts + counts, whole], dim=1).tolist()
    if not all(row[2] for row in facts):
        return None
    return Padding([(row[0], row[1]) for row in facts])
