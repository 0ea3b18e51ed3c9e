"""Packed batches of which only a part of each sequence counts, as packed batches of which all does.

A sequence is cut into pieces: keys before those that count, the queries and keys that count,
queries that do not, keys that do not. Each piece is a sequence of its own, all but one of them
without queries or without keys, so that what does not count is never looked at, nothing is copied,
and rows that do not count see nothing: their result is 0, their LSE -inf. On a GPU nothing is
waited for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError


class Lengths(NamedTuple):
    """Where the sequences of a packed batch lie."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: Any
    max_seqlen_k: Any


class Pieces(NamedTuple):
    """A packed batch in pieces."""

    lengths: Lengths
    per_sequence: int  # of a sequence
    used: int  # the one that counts

    def spread(self, values: Tensor | None) -> Tensor | None:
        """Something with an axis of sequences in front, for the pieces."""
        if values is None:
            return None
        return values.repeat_interleave(self.per_sequence, dim=0)

    def gather(self, per_piece: Tensor | None) -> Tensor | None:
        """The part of a result with an axis of pieces in front that belongs to what counts."""
        return None if per_piece is None else per_piece[self.used :: self.per_sequence].contiguous()


def cut(
    lengths: Lengths,
    seqused_q: Tensor | None,
    seqused_k: Tensor | None,
    leftpad_k: Tensor | None,
    readable: bool,
) -> Pieces:
    """The pieces of a packed batch; `readable`: the tensors may be looked at from here.

    What is not readable is kept within its sequence; what is readable and beyond it is refused.
    """
    start_q, end_q = lengths.cu_seqlens_q[:-1], lengths.cu_seqlens_q[1:]
    start_k, end_k = lengths.cu_seqlens_k[:-1], lengths.cu_seqlens_k[1:]
    first_k = start_k if leftpad_k is None else start_k + leftpad_k
    last_k = end_k if seqused_k is None else first_k + seqused_k
    last_q = end_q if seqused_q is None else start_q + seqused_q
    if readable:
        _check("seqused_q", "queries", start_q, start_q, last_q, end_q)
        _check("leftpad_k and seqused_k", "keys", start_k, first_k, last_k, end_k)
    else:
        first_k = torch.minimum(torch.maximum(first_k, start_k), end_k)
        last_k = torch.minimum(torch.maximum(last_k, first_k), end_k)
        last_q = torch.minimum(torch.maximum(last_q, start_q), end_q)
    cuts = [(start_q, first_k)]
    if leftpad_k is not None:
        cuts.insert(0, (start_q, start_k))
    if seqused_q is not None:
        cuts.append((last_q, last_k))
    if seqused_k is not None:
        cuts.append((end_q, last_k))
    cu_seqlens_q, cu_seqlens_k = (
        torch.cat([torch.stack(starts, dim=1).flatten(), whole[-1:]])
        for starts, whole in zip(
            zip(*cuts, strict=True), (lengths.cu_seqlens_q, lengths.cu_seqlens_k), strict=True
        )
    )
    max_seqlen_q, max_seqlen_k = lengths.max_seqlen_q, lengths.max_seqlen_k
    if readable and start_q.shape[0] > 0:
        # The bounds may be those of what counts; the library checks them against every piece.
        max_seqlen_q = max(max_seqlen_q, int(cu_seqlens_q.diff().max()))
        max_seqlen_k = max(max_seqlen_k, int(cu_seqlens_k.diff().max()))
    return Pieces(
        Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        len(cuts),
        0 if leftpad_k is None else 1,
    )


def _check(names: str, what: str, start: Tensor, first: Tensor, last: Tensor, end: Tensor) -> None:
    wrong = ((first < start) | (last < first) | (last > end)).nonzero().flatten().tolist()
    if wrong:
        b = wrong[0]
        raise InvalidArgumentError(
            f"{names}: sequence {b} would have the {what} [{int(first[b] - start[b])}, "
            f"{int(last[b] - start[b])}); it has {int(end[b] - start[b])}"
        )
