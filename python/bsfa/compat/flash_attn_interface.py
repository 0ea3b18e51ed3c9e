"""FlashAttention-3's module `flash_attn_interface`, computed by bsfa. Forward only.

Names, order and defaults of the positional arguments are FlashAttention-3's; bsfa's own arguments
go by keyword, as in `bsfa.flash_attn_func`. num_splits, pack_gqa, deterministic, sm_margin and
scheduler_metadata only say how to compute, and are accepted; what asks for another result and is
not computed is refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfa.compat import distributions
from bsfa.errors import InvalidArgumentError
from bsfa.ops import arguments, attend, flash
from bsfa.ops.attend import Scores
from bsfa.ops.kvcache import WITHOUT, CacheCall, cache_answer
from bsfa.ops.operators import PADDED
from bsfa.ops.segments import Lengths

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bsfa.ops.arguments import CallArguments, OwnArguments

__version__ = distributions.FLASH_ATTENTION_3

__all__ = [
    "__version__",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`bsfa.flash_attn_func` in FlashAttention-3's order; return_attn_probs: (out, LSE)."""
    given = arguments.own_arguments("flash_attn_func", own)
    arguments.refuse_unserved(
        qv=qv,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
    )
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return flash.padded_answer(q, k, v, scores, _with_lse(given, return_attn_probs), False)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    **own: Unpack[CallArguments],
) -> Any:
    """`bsfa.flash_attn_varlen_func` in FlashAttention-3's order; return_attn_probs: (out, LSE).

    Without cu_seqlens_q, q is padded: [batch, seqlen_q, num_heads_q, head_dim], and so are the
    results; without cu_seqlens_k, k and v are. seqused_q, seqused_k: int32 [batch], what counts of
    each sequence from its first token on; rows that do not count give 0 and an LSE of -inf.
    """
    without = ("q_offset", "seqused_q", "seqused_k", "leftpad_k")
    given = arguments.own_arguments("flash_attn_varlen_func", own, without)
    arguments.refuse_unserved(
        qv=qv,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
    )
    given = _with_lse(given, return_attn_probs)
    given = {**given, "seqused_q": seqused_q, "seqused_k": seqused_k}
    scores = Scores(softmax_scale, causal, window_size, softcap)
    if cu_seqlens_q is None and cu_seqlens_k is None:
        return flash.padded_answer(q, k, v, scores, given, False)
    extent = None
    if cu_seqlens_q is None:
        arguments.check_tensor("q", q, PADDED.axes)
        batch, seqlen = extent = q.shape[:2]
        cu_seqlens_q, max_seqlen_q = attend.even_lengths(batch, seqlen, q.device), seqlen
        q = q.flatten(0, 1)
    if cu_seqlens_k is None:
        for name, tensor in (("k", k), ("v", v)):
            arguments.check_tensor(name, tensor, PADDED.axes)
        batch, seqlen = k.shape[:2]
        cu_seqlens_k, max_seqlen_k = attend.even_lengths(batch, seqlen, k.device), seqlen
        k, v = k.flatten(0, 1), v.flatten(0, 1)
    lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    results = attend.packed(q, k, v, lengths, scores, given)
    if extent is not None:
        results = attend.padded_results(results, extent[0], extent[1], given)
    return attend.answer(results, given)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`flash_attn_func` on queries, keys and values that lie in one tensor; nothing is copied.

    qkv: [batch, seqlen, 3, num_heads, head_dim]; or with num_heads_q [batch, seqlen, num_heads_q +
    2 * num_heads_kv, head_dim].
    """
    given = arguments.own_arguments("flash_attn_qkvpacked_func", own)
    arguments.refuse_unserved(
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
    )
    if num_heads_q is None:
        flash.split_axis(qkv, "qkv", 3, "batch, seqlen, 3, num_heads, head_dim")
        q, k, v = qkv.unbind(dim=-3)
    else:
        arguments.check_tensor("qkv", qkv, "batch, seqlen, heads, head_dim")
        others = qkv.shape[2] - num_heads_q
        if num_heads_q < 1 or others < 2 or others % 2 != 0:
            raise InvalidArgumentError(
                f"num_heads_q is {num_heads_q}; qkv has {qkv.shape[2]} heads, expected num_heads_q "
                "and as many of keys as of values"
            )
        q, k, v = qkv.split([num_heads_q, others // 2, others // 2], dim=2)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return flash.padded_answer(q, k, v, scores, _with_lse(given, return_attn_probs), False)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    **own: Unpack[CallArguments],
) -> Any:
    """`bsfa.flash_attn_with_kvcache` in FlashAttention-3's order; return_softmax_lse: (out, LSE).

    With cu_seqlens_q and max_seqlen_q, q is packed: [total_q, num_heads_q, head_dim], and so are
    the results (a cache whose sequences do not lie one after the other is copied to be read then).
    With cu_seqlens_k_new, k and v are.
    """
    given = arguments.own_arguments("flash_attn_with_kvcache", own, WITHOUT)
    arguments.refuse_unserved(
        qv=qv,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        page_table=page_table,
        rotary_seqlens=rotary_seqlens,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
    )
    call = CacheCall(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cache_seqlens,
        cache_batch_idx,
        cache_leftpad,
        cu_seqlens_q,
        max_seqlen_q,
        cu_seqlens_k_new,
    )
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return cache_answer(call, scores, given, return_softmax_lse)


def get_scheduler_metadata(*args: Any, **kwargs: Any) -> None:
    """None: calls need no schedule made before. `flash_attn_with_kvcache` takes it."""


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over parts of them. Plain torch.

    Args:
        out_partial: float32 [parts, batch, seqlen, num_heads, head_dim].
        lse_partial: float32 [parts, batch, seqlen, num_heads]; -inf where a part saw nothing.
        out: where to write, [batch, seqlen, num_heads, head_dim].
        out_dtype: default float32, or that of out.

    Returns:
        out, and its LSE [batch, seqlen, num_heads].
    """
    if out_partial.dim() != 5 or lse_partial.shape != out_partial.shape[:4]:
        raise InvalidArgumentError(
            f"out_partial has shape {list(out_partial.shape)} and lse_partial "
            f"{list(lse_partial.shape)}; expected [parts, batch, seqlen, num_heads, head_dim] and "
            "the same without head_dim"
        )
    lse = lse_partial.logsumexp(dim=0)
    share = torch.exp(lse_partial - lse).nan_to_num(0.0)  # 0 where no part saw anything
    whole = (out_partial * share[..., None]).sum(dim=0)
    if out is None:
        return whole.to(out_dtype or out_partial.dtype), lse
    if out.shape != whole.shape or out_dtype not in (None, out.dtype):
        raise InvalidArgumentError(
            f"out is {out.dtype} {list(out.shape)}; expected {out_dtype or out.dtype} "
            f"{list(whole.shape)}"
        )
    return out.copy_(whole), lse


def _with_lse(own: dict[str, Any], asked: bool) -> dict[str, Any]:
    """FlashAttention-3 returns what bsfa's return_lse does."""
    return {**own, "return_lse": True} if asked else own
