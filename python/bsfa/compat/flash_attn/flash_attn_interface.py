"""FlashAttention-2's `flash_attn.flash_attn_interface`: the functions, and the two below them that
other packages build on (rings of devices, for one).
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from bsfa.compat.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from bsfa.errors import UnsupportedError
from bsfa.ops import arguments
from bsfa.ops.operators import NO_BACKWARD

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

_Parts = tuple[Tensor, Tensor, None, None]
"""out, LSE, and neither probabilities nor the state of a random generator: nothing is dropped."""


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> _Parts:
    """`flash_attn_func` with the window in two arguments; always with the LSE."""
    _refuse_probabilities(return_softmax)
    out, lse, _ = flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        (window_size_left, window_size_right),
        softcap,
        alibi_slopes,
        return_attn_probs=True,
    )
    return out, lse, None, None


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
    num_splits: int = 0,
) -> _Parts:
    """`flash_attn_varlen_func` likewise. seqused_k counts the keys before leftpad_k, too."""
    _refuse_probabilities(return_softmax)
    arguments.check_vector("seqused_k", seqused_k, "batch")
    arguments.check_vector("leftpad_k", leftpad_k, "batch")
    if seqused_k is not None and leftpad_k is not None:
        seqused_k = seqused_k - leftpad_k
    out, lse, _ = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        (window_size_left, window_size_right),
        softcap,
        alibi_slopes,
        return_attn_probs=True,
        block_table=block_table,
        leftpad_k=leftpad_k,
        seqused_k=seqused_k,
    )
    return out, lse, None, None


def _flash_attn_backward(*args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(NO_BACKWARD.format(what="_flash_attn_backward was called"))


def _flash_attn_varlen_backward(*args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(NO_BACKWARD.format(what="_flash_attn_varlen_backward was called"))


def _refuse_probabilities(return_softmax: bool) -> None:
    if return_softmax:
        raise UnsupportedError(
            "return_softmax is True; accepted: False (the probabilities are never stored)"
        )
