"""The functions of FlashAttention-2's interface, with bsfa's own arguments by keyword.

Names, order and defaults of the positional arguments are those of `flash_attn`, version 2.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from bsfa.errors import InvalidArgumentError
from bsfa.ops import arguments, attend
from bsfa.ops.attend import Scores
from bsfa.ops.segments import Lengths

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bsfa.ops.arguments import OwnArguments


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """Attention forward, dense or gated: `flash_attn.flash_attn_func`, called alike.

    Args:
        q: [batch, seqlen_q, num_heads_q, head_dim], float32, float16 or bfloat16; CPU or CUDA.
        k: [batch, seqlen_k, num_heads_kv, head_dim]; num_heads_q is a multiple of num_heads_kv.
        v: [batch, seqlen_k, num_heads_kv, head_dim_v].
        dropout_p: refused above 0.
        softmax_scale: factor of q·k; default 1/sqrt(head_dim).
        causal: a key is visible iff its position is not after the query's. The last query stands
            beside the last key.
        window_size: (left, right) in tokens, -1 for no limit; a right above 0 is refused where
            there are keys for it.
        softcap: above 0, scores become softcap * tanh(score / softcap). Not on every
            backend.
        alibi_slopes: refused unless None.
        deterministic: accepted; the forward pass always is.
        return_attn_probs: also return the LSE, and None for the probabilities.
        **own: bsfa's own, by keyword:
            thresholds: float32 [num_heads_q, num_q_blocks], or with a batch axis before: the
                method. A block of keys is left out iff its largest score is below its threshold.
                None: dense.
            sliding_window_blocks: the paper's baseline: the diagonal and this many blocks before
                it.
            mass: the policy without calibration, with this c (finite, above 0; 0.1 is the
                method's): a block is kept if the mean over its rows of exp(largest score -
                log-sum-exp of the blocks always kept) is at least min(0.002, c / visible blocks).
                CPU.
            skip_softmax: a baseline, with this lambda (above 0, at most 1): a block is kept if a
                score in it is at most ln(1 / lambda) below the largest of its row so far. CPU.
            skip_order: of skip_softmax: ascending from block 0, or outwards from the diagonal.
            coverage: above 0, up to 1: each query block visits only the blocks that hold this
                share of the attention of some of its rows, which are scored exactly before. CPU
                and cuda-sm90.
            sampled_rows: of coverage: rows of each query block that are scored: 8, 16, 32 (the
                default) or 64.
            mass_floor: of coverage: a block of at least this share is visited too; default 0.003;
                1: coverage alone decides.
            block: the gate grid in tokens (query rows, keys); must be the one of the thresholds.
                Default (128, 64).
            q_offset: position of query row 0 in tokens; default seqlen_k - seqlen_q if causal,
                else 0.
            q_offsets: int32 [batch]: likewise for each sequence.
            seqused_q, seqused_k: int32 [batch]: queries and keys of each sequence that count. Rows
                that do not give 0 and an LSE of -inf.
            leftpad_k: int32 [batch]: keys of each sequence before the first that counts.
            return_lse: also return the LSE.
            return_stats: also return `BlockStats`.
            compute_type: native, float32 or bfloat16 (inputs rounded to it).
            backend: a name from `bsfa.backends()`; empty: the best that serves the call.

    Returns:
        out [batch, seqlen_q, num_heads_q, head_dim_v], dtype of q; or a tuple: out, with
        return_attn_probs LSE and None, else with return_lse LSE, with return_stats the stats. The
        LSE is float32 [batch, num_heads_q, seqlen_q], natural logarithm, -inf for a row that sees
        nothing.
    """
    given = arguments.own_arguments("flash_attn_func", own)
    if dropout_p or alibi_slopes is not None:
        arguments.refuse_unserved(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return padded_answer(q, k, v, scores, given, return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    **own: Unpack[OwnArguments],
) -> Any:
    """Packed sequences of different lengths; see `flash_attn_func` for what is not here.

    Args:
        q: [total_q, num_heads_q, head_dim].
        k: [total_k, num_heads_kv, head_dim].
        v: [total_k, num_heads_kv, head_dim_v].
        cu_seqlens_q: int32 [batch + 1], from 0, ascending: where each sequence starts.
        cu_seqlens_k: int32 [batch + 1].
        max_seqlen_q: the longest sequence in tokens, or a bound.
        max_seqlen_k: likewise for the keys.
        block_table: refused unless None.
        **own: as in `flash_attn_func`; q_offsets instead of q_offset.

    Returns:
        out [total_q, num_heads_q, head_dim_v], or a tuple as `flash_attn_func`; the LSE is float32
        [num_heads_q, total_q]. Rows after the last sequence give 0 and an LSE of -inf.
    """
    given = arguments.own_arguments("flash_attn_varlen_func", own, without=("q_offset",))
    arguments.refuse_unserved(
        dropout_p=dropout_p, alibi_slopes=alibi_slopes, block_table=block_table
    )
    lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return packed_answer(q, k, v, lengths, scores, given, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`flash_attn_func` on qkv [batch, seqlen, 3, num_heads, head_dim]; nothing is copied."""
    split_axis(qkv, "qkv", 3, "batch, seqlen, 3, num_heads, head_dim")
    given = arguments.own_arguments("flash_attn_qkvpacked_func", own)
    arguments.refuse_unserved(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    q, k, v = qkv.unbind(dim=-3)
    return padded_answer(q, k, v, scores, given, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`flash_attn_func` on kv [batch, seqlen_k, 2, num_heads_kv, head_dim]; nothing is copied."""
    split_axis(kv, "kv", 2, "batch, seqlen_k, 2, num_heads_kv, head_dim")
    given = arguments.own_arguments("flash_attn_kvpacked_func", own)
    arguments.refuse_unserved(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    k, v = kv.unbind(dim=-3)
    return padded_answer(q, k, v, scores, given, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`flash_attn_varlen_func` on qkv [total_tokens, 3, num_heads, head_dim]."""
    split_axis(qkv, "qkv", 3, "total_tokens, 3, num_heads, head_dim")
    given = arguments.own_arguments("flash_attn_varlen_qkvpacked_func", own, without=("q_offset",))
    arguments.refuse_unserved(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    lengths = Lengths(cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    q, k, v = qkv.unbind(dim=-3)
    return packed_answer(q, k, v, lengths, scores, given, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **own: Unpack[OwnArguments],
) -> Any:
    """`flash_attn_varlen_func` on kv [total_k, 2, num_heads_kv, head_dim]."""
    split_axis(kv, "kv", 2, "total_k, 2, num_heads_kv, head_dim")
    given = arguments.own_arguments("flash_attn_varlen_kvpacked_func", own, without=("q_offset",))
    arguments.refuse_unserved(dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    lengths = Lengths(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    k, v = kv.unbind(dim=-3)
    return packed_answer(q, k, v, lengths, scores, given, return_attn_probs)


def split_axis(tensor: Any, name: str, count: int, axes: str) -> None:
    """Checks operands that lie in one tensor, beside each other on the third axis from the end."""
    arguments.check_tensor(name, tensor, axes)
    if tensor.shape[-3] != count:
        raise InvalidArgumentError(f"{name} has shape {list(tensor.shape)}; expected [{axes}]")


def padded_answer(
    q: Tensor, k: Tensor, v: Tensor, scores: Scores, own: dict[str, Any], probabilities: bool
) -> Any:
    """A padded call and what is returned for it; probabilities: (out, LSE, None)."""
    if probabilities:
        own = {**own, "return_lse": True}
    results = attend.quick(q, k, v, scores, own)
    if results is None:
        results = attend.padded(q, k, v, scores, own)
    return attend.answer(results, own, *((results.lse, None) if probabilities else ()))


def packed_answer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Lengths,
    scores: Scores,
    own: dict[str, Any],
    probabilities: bool,
) -> Any:
    """A packed call and what is returned for it; probabilities: (out, LSE, None)."""
    if probabilities:
        own = {**own, "return_lse": True}
    results = attend.packed(q, k, v, lengths, scores, own)
    return attend.answer(results, own, *((results.lse, None) if probabilities else ()))
