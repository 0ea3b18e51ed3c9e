"""What the tests compare with: the method written in plain torch, in fp64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    q_offset: int | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    thresholds: Tensor | None = None,
    window_blocks: int | None = None,
    mass: float | None = None,
    skip_softmax: float | None = None,
    skip_order: str = "ascending",
    block: tuple[int, int] = (128, 64),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns out [b, n, h, d], lse [b, h, n], kept and visible [b, h], block_max [b, h, i, j].

    For q_offset >= 0 on a multiple of the query block, so that rows of the result line up.
    """
    batch, seqlen_q, heads, dim = q.shape
    seqlen_k = k.shape[1]
    scale = softmax_scale if softmax_scale is not None else dim**-0.5
    if q_offset is None:
        q_offset = seqlen_k - seqlen_q if causal else 0
    group = heads // k.shape[2]
    keys = k.double().repeat_interleave(group, dim=2)
    values = v.double().repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), keys) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)

    position = torch.arange(seqlen_q)[:, None] + q_offset
    key = torch.arange(seqlen_k)[None, :]
    see = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if causal:
        see &= key <= position
    if window is not None:
        see &= key > position - window
    scores = scores.masked_fill(~see, -math.inf)

    first = q_offset // block[0]
    last = (q_offset + seqlen_q - 1) // block[0]
    kept_keys = torch.zeros_like(scores, dtype=torch.bool)
    columns = math.ceil(seqlen_k / block[1])
    block_max = torch.full((batch, heads, last - first + 1, columns), -math.inf).double()
    kept = torch.zeros(batch, heads, dtype=torch.int64)
    visible = torch.zeros(batch, heads, dtype=torch.int64)
    for i in range(first, last + 1):
        rows = slice(max(0, i * block[0] - q_offset), (i + 1) * block[0] - q_offset)
        spans = [slice(j * block[1], (j + 1) * block[1]) for j in range(columns)]
        seen = [j for j in range(columns) if see[rows, spans[j]].any()]
        begin, end = i * block[0] // block[1], -(-(i + 1) * block[0] // block[1])
        if skip_softmax is not None and skip_order == "outwards":
            seen.sort(key=lambda j: (not begin <= j < end, j != 0, j >= end, abs(j - begin)))
        always = [j for j in seen if j == 0 or begin - 2 <= j < end]  # of mass
        compared = (
            torch.cat([scores[:, :, rows, spans[j]] for j in always], dim=-1).logsumexp(dim=-1)
            if always
            else None
        )
        running = torch.full(scores[:, :, rows].shape[:3], -math.inf).double()
        for j in seen:
            span = spans[j]
            of_rows = scores[:, :, rows, span].amax(dim=-1)
            largest = of_rows.amax(dim=-1)
            block_max[:, :, i - first, j] = largest
            diagonal = j * block[1] < (i + 1) * block[0] and i * block[0] < (j + 1) * block[1]
            if thresholds is not None:
                limit = thresholds[..., min(i, thresholds.shape[-1] - 1)].double()
                keep = ~(largest < limit) | diagonal
            elif window_blocks is not None:
                nearest = i * block[0] // block[1] - window_blocks
                keep = torch.full_like(largest, diagonal or j >= nearest, dtype=torch.bool)
            elif mass is not None:
                assert compared is not None
                mean = torch.exp(of_rows - compared).nan_to_num(0.0).mean(dim=-1)
                keep = (mean >= min(0.002, mass / len(seen))) | (j in always)
            elif skip_softmax is not None:
                rise = torch.where(of_rows > -math.inf, of_rows - running, -math.inf)
                keep = (rise.amax(dim=-1) >= math.log(skip_softmax)) | diagonal | (j == 0)
                running = torch.maximum(running, of_rows)
            else:
                keep = torch.ones_like(largest, dtype=torch.bool)
            kept_keys[:, :, rows, span] = keep[:, :, None, None]
            kept += keep
            visible += 1
    scores = scores.masked_fill(~kept_keys, -math.inf)
    lse = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - lse[..., None]).nan_to_num(0.0)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, values)
    return out, lse, kept, visible, block_max


def middling_thresholds(block_max: Tensor, quantile: float = 0.5) -> Tensor:
    """A table that keeps about 1 - quantile of the blocks: float32 [heads, q blocks].

    It stands in the gap between two maxima, so that rounding cannot change a decision.
    """
    heads, rows = block_max.shape[1:3]
    table = torch.full((heads, rows), -math.inf)
    for h in range(heads):
        for i in range(rows):
            found = block_max[:, h, i].flatten()
            found = found[found.isfinite()].sort().values
            at = int(quantile * (len(found) - 1))
            if len(found) > 1:
                table[h, i] = ((found[at] + found[at + 1]) / 2).float()
    return table
