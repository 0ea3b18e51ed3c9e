"""Attention on torch tensors: the flash-attention package's functions, with a block gate.

Registered with `torch.library` as `bsfa::attention` and `bsfa::attention_varlen`, so that they run
under `torch.compile(fullgraph=True)`. Forward only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from bsfa._core import attention_forward
from bsfa.errors import InvalidArgumentError, UnsupportedError

__all__ = ["BlockStats", "flash_attn_func", "flash_attn_varlen_func"]


class BlockStats(NamedTuple):
    """Gate blocks of a call, by sequence and head."""

    kept_blocks: Tensor
    """int64 [batch, num_heads_q]: blocks whose values were used."""
    visible_blocks: Tensor
    """int64 [batch, num_heads_q]: blocks that the mask lets through at all."""

    @property
    def density(self) -> Tensor:
        """float32 [batch, num_heads_q]: kept over visible blocks; 1 where nothing is visible."""
        return torch.where(
            self.visible_blocks > 0, self.kept_blocks / self.visible_blocks.clamp(min=1), 1.0
        )


def _capsule(tensor: Tensor | None) -> Any:
    """The tensor as a DLPack capsule, without any synchronisation between streams."""
    if tensor is None:
        return None
    return torch.utils.dlpack.to_dlpack(tensor.detach() if tensor.requires_grad else tensor)


def run_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, **arguments: Any) -> None:
    """`bsfa.attention_forward` on torch tensors, on torch's current stream and thread count.

    On CUDA nothing waits for the device. The workspace comes from torch's allocator on the current
    stream and goes back to it before the call has run, which is right because whoever gets it next
    on that stream comes after. Tensors from another stream need the caller's `record_stream` and
    events, as for any torch operator. All of it can be captured in a CUDA graph.
    """
    call = {
        name: _capsule(value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    operands = [_capsule(t) for t in (q, k, v, out)]
    if q.device.type == "cuda":

        def workspace(num_bytes: int) -> Any:
            return _capsule(q.new_empty(num_bytes, dtype=torch.uint8))

        stream = torch.cuda.current_stream(q.device).cuda_stream  # the library sets the device
        attention_forward(*operands, **call, stream=stream, workspace=workspace)
    else:
        attention_forward(*operands, **call, num_threads=torch.get_num_threads())


def _outputs(
    q: Tensor, v: Tensor, num_sequences: int, return_lse: bool, return_stats: bool, packed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fresh out, lse, kept_blocks, visible_blocks; empty where not asked for."""
    heads = q.shape[-2]
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    if not return_lse:
        lse_shape: tuple[int, ...] = (0,)
    elif packed:
        lse_shape = (heads, q.shape[0])
    else:
        lse_shape = (q.shape[0], heads, q.shape[1])
    stats_shape = (num_sequences, heads) if return_stats else (0, heads)
    return (
        out,
        q.new_empty(lse_shape, dtype=torch.float32),
        q.new_empty(stats_shape, dtype=torch.int64),
        q.new_empty(stats_shape, dtype=torch.int64),
    )


@torch.library.custom_op("bsfa::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    thresholds: Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    q_offset: int | None,
    window: int | None,
    window_blocks: int | None,
    block_q: int,
    block_kv: int,
    compute_type: str,
    backend: str,
    return_lse: bool,
    return_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, lse, kept, visible = _outputs(q, v, q.shape[0], return_lse, return_stats, packed=False)
    run_attention(
        q,
        k,
        v,
        out,
        thresholds=thresholds,
        softmax_scale=softmax_scale,
        causal=causal,
        q_offset=q_offset,
        window=window,
        window_blocks=window_blocks,
        block=(block_q, block_kv),
        compute_type=compute_type,
        backend=backend,
        lse=lse if return_lse else None,
        kept_blocks=kept if return_stats else None,
        visible_blocks=visible if return_stats else None,
    )
    return out, lse, kept, visible


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return_lse, return_stats = others[-2:]
    return _outputs(q, v, q.shape[0], return_lse, return_stats, packed=False)


@torch.library.custom_op("bsfa::attention_varlen", mutates_args=())
def _attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    thresholds: Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    q_offsets: Tensor | None,
    window: int | None,
    window_blocks: int | None,
    block_q: int,
    block_kv: int,
    compute_type: str,
    backend: str,
    return_lse: bool,
    return_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sequences = cu_seqlens_q.shape[0] - 1
    out, lse, kept, visible = _outputs(q, v, sequences, return_lse, return_stats, packed=True)
    run_attention(
        q.unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        out.unsqueeze(0),
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        thresholds=thresholds,
        softmax_scale=softmax_scale,
        causal=causal,
        q_offsets=q_offsets,
        window=window,
        window_blocks=window_blocks,
        block=(block_q, block_kv),
        compute_type=compute_type,
        backend=backend,
        lse=lse.unsqueeze(0) if return_lse else None,
        kept_blocks=kept if return_stats else None,
        visible_blocks=visible if return_stats else None,
    )
    return out, lse, kept, visible


@_attention_varlen.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return_lse, return_stats = others[-2:]
    return _outputs(q, v, cu_seqlens_q.shape[0] - 1, return_lse, return_stats, packed=True)


_NO_BACKWARD = (
    "bsfa has no backward pass: {what}; call it under torch.no_grad() or on detached tensors"
)


def _refuse_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise UnsupportedError(_NO_BACKWARD.format(what="backward() reached its output"))


_attention.register_autograd(_refuse_backward)
_attention_varlen.register_autograd(_refuse_backward)


def _check_operands(q: Tensor, k: Tensor, v: Tensor, axes: str) -> None:
    rank = len(axes.split(","))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is of type {type(tensor).__name__}; expected torch.Tensor")
        if tensor.dim() != rank:
            raise InvalidArgumentError(f"{name} has shape {list(tensor.shape)}; expected [{axes}]")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise InvalidArgumentError(
                f"{name} has dtype {tensor.dtype}; accepted: float32, float16, bfloat16"
            )
        if tensor.device.type not in ("cpu", "cuda"):
            raise InvalidArgumentError(f"{name} is on device {tensor.device}; accepted: cpu, cuda")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise UnsupportedError(_NO_BACKWARD.format(what=f"{name} requires grad"))


def _check_thresholds(thresholds: Tensor | None) -> None:
    if thresholds is None:
        return
    if not isinstance(thresholds, Tensor):
        raise TypeError(
            f"thresholds is of type {type(thresholds).__name__}; expected torch.Tensor "
            "(see ThresholdTable.thresholds)"
        )
    if thresholds.dtype != torch.float32:
        raise InvalidArgumentError(f"thresholds has dtype {thresholds.dtype}; accepted: float32")
    if thresholds.dim() not in (2, 3):
        raise InvalidArgumentError(
            f"thresholds has shape {list(thresholds.shape)}; expected [num_heads_q, num_q_blocks] "
            "or [batch, num_heads_q, num_q_blocks]"
        )


def _check_vectors(vectors: dict[str, tuple[Tensor | None, str]]) -> None:
    for name, (vector, expected) in vectors.items():
        if vector is None:
            continue
        if not isinstance(vector, Tensor):
            raise TypeError(f"{name} is of type {type(vector).__name__}; expected torch.Tensor")
        if vector.dtype != torch.int32 or vector.dim() != 1:
            raise InvalidArgumentError(
                f"{name} is {vector.dtype} {list(vector.shape)}; expected int32 [{expected}]"
            )


# What flash-attention takes and bsfa does not: the only accepted value, and why or what instead.
_FLASH_DEFAULTS: dict[str, tuple[Any, str]] = {
    "dropout_p": (0.0, "0 (bsfa is for inference)"),
    "softcap": (0.0, "0 (none)"),
    "alibi_slopes": (None, "None"),
    "block_table": (None, "None (contiguous k and v)"),
    "return_attn_probs": (
        False,
        "False (the probabilities are never stored; return_lse=True gives their normaliser)",
    ),
}


def _check_flash_defaults(**given: Any) -> None:
    for name, value in given.items():
        default, accepted = _FLASH_DEFAULTS[name]
        if value is default or (isinstance(value, (int, float)) and value == default):
            continue
        what = "was given" if isinstance(value, Tensor) else f"is {value}"
        raise UnsupportedError(f"{name} {what}; accepted: {accepted}")


def _window(causal: bool, window_size: tuple[int, int]) -> tuple[bool, int | None]:
    """flash-attention's (left, right) in tokens -> (causal, window of the method page)."""
    if len(window_size) != 2 or any(w < -1 for w in window_size):
        raise InvalidArgumentError(
            f"window_size is {window_size}; accepted: (left, right) in tokens, -1 for no limit"
        )
    left, right = window_size
    if causal:
        right = 0
    if left == -1 and right == -1:
        return False, None
    if right != 0:
        raise UnsupportedError(
            f"window_size is {window_size} with causal=False; accepted: (-1, -1), or a right of 0"
        )
    return True, None if left == -1 else left + 1


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


def _attend(
    operator: Any,
    axes: str,
    operands: tuple[Tensor, Tensor, Tensor],
    sequences: tuple[Any, ...],
    offset: Any,
    vectors: dict[str, tuple[Tensor | None, str]],
    *,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    thresholds: Tensor | None,
    sliding_window_blocks: int | None,
    block: tuple[int, int],
    compute_type: str,
    backend: str,
    return_lse: bool,
    return_stats: bool,
    **flash: Any,
) -> Any:
    """What both functions have in common: the checks, the call, the results asked for.

    sequences: the operator's arguments between v and thresholds; offset: the one after causal.
    """
    _check_thresholds(thresholds)
    _check_operands(*operands, axes)
    _check_vectors(vectors)
    others = {"thresholds": thresholds, **{name: vector for name, (vector, _) in vectors.items()}}
    device = operands[0].device
    for name, other in (("k", operands[1]), ("v", operands[2]), *others.items()):
        if other is not None and other.device != device:
            raise InvalidArgumentError(f"{name} is on device {other.device}; q is on {device}")
    _check_flash_defaults(**flash)
    causal, window = _window(causal, window_size)
    out, lse, kept, visible = operator(
        *(_unit_stride(t) for t in operands),
        *(_contiguous(argument) for argument in sequences),
        None if thresholds is None else _unit_stride(thresholds),
        softmax_scale,
        causal,
        _contiguous(offset),
        window,
        sliding_window_blocks,
        block[0],
        block[1],
        compute_type,
        backend,
        return_lse,
        return_stats,
    )
    if not return_lse and not return_stats:
        return out
    answer: list[Any] = [out]
    if return_lse:
        answer.append(lse)
    if return_stats:
        answer.append(BlockStats(kept, visible))
    return tuple(answer)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    block_table: Tensor | None = None,
    return_attn_probs: bool = False,
    thresholds: Tensor | None = None,
    sliding_window_blocks: int | None = None,
    block: tuple[int, int] = (128, 64),
    q_offset: int | None = None,
    return_lse: bool = False,
    return_stats: bool = False,
    compute_type: str = "native",
    backend: str = "",
) -> Any:
    """Attention forward, dense or gated, with the arguments of `flash_attn.flash_attn_func`.

    Args:
        q: [batch, seqlen_q, num_heads_q, head_dim], float32, float16 or bfloat16; CPU or CUDA.
        k: [batch, seqlen_k, num_heads_kv, head_dim]; num_heads_q is a multiple of num_heads_kv.
        v: [batch, seqlen_k, num_heads_kv, head_dim_v].
        softmax_scale: factor of q·k; default 1/sqrt(head_dim).
        causal: a key is visible iff its position is not after the query's.
        window_size: (left, right) in tokens, -1 for no limit; a right above 0 is refused.
        thresholds: float32 [num_heads_q, num_q_blocks], or with a batch axis before: the method.
            A block of keys is left out iff its largest score is below its threshold. None: dense.
        sliding_window_blocks: the paper's baseline: the diagonal and this many blocks before it.
        block: the gate grid in tokens (query rows, keys); must be the one of the thresholds.
        q_offset: position of query row 0 in tokens; default seqlen_k - seqlen_q if causal, else 0.
        return_lse: also return float32 [batch, num_heads_q, seqlen_q], natural logarithm.
        return_stats: also return `BlockStats`.
        compute_type: native, float32 or bfloat16 (inputs rounded to it).
        backend: a name from `bsfa.backends()`; empty: the best that serves the call.
        deterministic: accepted; the forward pass always is.
        dropout_p, softcap, alibi_slopes, block_table, return_attn_probs: refused unless at their
            defaults.

    Returns:
        out [batch, seqlen_q, num_heads_q, head_dim_v], dtype of q; or a tuple (out, lse, stats) of
        those asked for.
    """
    return _attend(
        _attention,
        "batch, seqlen, num_heads, head_dim",
        (q, k, v),
        (),
        q_offset,
        {},
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        thresholds=thresholds,
        sliding_window_blocks=sliding_window_blocks,
        block=block,
        compute_type=compute_type,
        backend=backend,
        return_lse=return_lse,
        return_stats=return_stats,
        dropout_p=dropout_p,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        block_table=block_table,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
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
    block_table: Tensor | None = None,
    return_attn_probs: bool = False,
    thresholds: Tensor | None = None,
    sliding_window_blocks: int | None = None,
    block: tuple[int, int] = (128, 64),
    q_offsets: Tensor | None = None,
    return_lse: bool = False,
    return_stats: bool = False,
    compute_type: str = "native",
    backend: str = "",
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
        q_offsets: int32 [batch], position of the first query of each sequence; default bottom-right
            aligned if causal, else 0.
        return_lse: also return float32 [num_heads_q, total_q].

    Returns:
        out [total_q, num_heads_q, head_dim_v], or a tuple (out, lse, stats) of those asked for.
    """
    return _attend(
        _attention_varlen,
        "total_tokens, num_heads, head_dim",
        (q, k, v),
        (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        q_offsets,
        {
            "cu_seqlens_q": (cu_seqlens_q, "batch + 1"),
            "cu_seqlens_k": (cu_seqlens_k, "batch + 1"),
            "q_offsets": (q_offsets, "batch"),
        },
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        thresholds=thresholds,
        sliding_window_blocks=sliding_window_blocks,
        block=block,
        compute_type=compute_type,
        backend=backend,
        return_lse=return_lse,
        return_stats=return_stats,
        dropout_p=dropout_p,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        block_table=block_table,
        return_attn_probs=return_attn_probs,
    )
