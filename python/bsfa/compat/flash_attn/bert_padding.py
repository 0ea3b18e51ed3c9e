"""FlashAttention-2's `flash_attn.bert_padding`: from padded batches to packed ones and back.

Plain torch, with gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """The entries of the first axis at `indices` [n], in their order."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """The reverse: values at `indices` of an axis of `first_axis_dim` entries, 0 elsewhere."""
    room = values.new_zeros((first_axis_dim, *values.shape[1:]))
    return room.index_copy(0, indices.long(), values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The tokens of a padded batch one after the other.

    Args:
        hidden_states: [batch, seqlen, ...].
        attention_mask: [batch, seqlen], bool or integer, 1 for a token that counts.
        unused_mask: likewise, 1 for a token that has a place but does not count.

    Returns:
        tokens [total, ...]; their places int64 [total] among batch * seqlen; cu_seqlens int32
        [batch + 1]; the longest sequence, an int (read from the device); tokens that count, int32
        [batch].
    """
    counts = attention_mask.sum(dim=-1, dtype=torch.int32)
    placed = attention_mask.bool() if unused_mask is None else (attention_mask + unused_mask).bool()
    lengths = placed.sum(dim=-1, dtype=torch.int32)
    cu_seqlens = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, dim=0, out=cu_seqlens[1:])
    indices = placed.flatten().nonzero().flatten()
    longest = int(lengths.max()) if lengths.numel() > 0 else 0
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, cu_seqlens, longest, counts


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Tokens [total, ...] at their places in a padded batch: [batch, seqlen, ...], 0 elsewhere."""
    room = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return room.view(batch, seqlen, *hidden_states.shape[1:])
