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


# Newer torch hands its tensors over by itself (DLPack's C exchange API); older ones need a capsule.
_EXCHANGES = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _borrowed(value: Any) -> Any:
    """An argument as the extension takes it, without any synchronisation between streams."""
    if _EXCHANGES or not isinstance(value, Tensor):
        return value
    return torch.utils.dlpack.to_dlpack(value.detach() if value.requires_grad else value)


def _stream_of(tensor: Tensor) -> int:
    """The current stream of torch on the tensor's device, as cudaStream_t."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # not public; saves 2 microseconds
    if raw is not None:
        return int(raw(tensor.get_device()))
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def run_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, **arguments: Any) -> None:
    """`bsfa.attention_forward` on torch tensors, on torch's current stream and thread count.

    On CUDA nothing waits for the device. The workspace comes from torch's allocator on the current
    stream and goes back to it before the call has run, which is right because whoever gets it next
    on that stream comes after. Tensors from another stream need the caller's `record_stream` and
    events, as for any torch operator. All of it can be captured in a CUDA graph.
    """
    operands = [q, k, v, out]
    if not _EXCHANGES:
        operands = [_borrowed(operand) for operand in operands]
        arguments = {name: _borrowed(value) for name, value in arguments.items()}
    if q.is_cuda:

        def workspace(num_bytes: int) -> Any:
            return _borrowed(torch.empty(num_bytes, dtype=torch.uint8, device=q.device))

        attention_forward(*operands, **arguments, stream=_stream_of(q), workspace=workspace)
    else:
        attention_forward(*operands, **arguments, num_threads=torch.get_num_threads())


class _Results(NamedTuple):
    """What a call writes; None where it was not asked for."""

    out: Tensor
    lse: Tensor | None
    kept_blocks: Tensor | None
    visible_blocks: Tensor | None


class _Kind(NamedTuple):
    """How one of the two functions differs from the other."""

    packed: bool  # q, k, v are [tokens, heads, head_dim], without a batch axis
    axes: str  # of an operand, for messages
    arguments: dict[str, str]  # of its operator after q, k, v: name and type


def _arguments(sequences: dict[str, str], offset: dict[str, str]) -> dict[str, str]:
    return {
        **sequences,
        "thresholds": "Tensor?",
        "softmax_scale": "float?",
        "causal": "bool",
        **offset,
        "window": "SymInt?",
        "window_blocks": "SymInt?",
        "mass_c": "float?",
        "skip_lambda": "float?",
        "skip_order": "str",
        "block_q": "SymInt",
        "block_kv": "SymInt",
        "compute_type": "str",
        "backend": "str",
        "return_lse": "bool",
        "return_stats": "bool",
    }


_PADDED = _Kind(
    False, "batch, seqlen, num_heads, head_dim", _arguments({}, {"q_offset": "SymInt?"})
)
_PACKED = _Kind(
    True,
    "total_tokens, num_heads, head_dim",
    _arguments(
        {
            "cu_seqlens_q": "Tensor",
            "cu_seqlens_k": "Tensor",
            "max_seqlen_q": "SymInt",
            "max_seqlen_k": "SymInt",
        },
        {"q_offsets": "Tensor?"},
    ),
)


def _room(kind: _Kind, q: Tensor, v: Tensor, call: dict[str, Any]) -> _Results:
    """Fresh tensors for what the call is asked for."""
    heads = q.shape[-2]

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    out = empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    lse = kept = visible = None
    if call["return_lse"]:
        shape = (heads, q.shape[0]) if kind.packed else (q.shape[0], heads, q.shape[1])
        lse = empty(shape, torch.float32)
    if call["return_stats"]:
        sequences = call["cu_seqlens_q"].shape[0] - 1 if kind.packed else q.shape[0]
        kept, visible = (empty((sequences, heads), torch.int64) for _ in range(2))
    return _Results(out, lse, kept, visible)


def _forward(kind: _Kind, q: Tensor, k: Tensor, v: Tensor, call: dict[str, Any]) -> _Results:
    """The call with the arguments of the kind's operator, by name."""
    results = _room(kind, q, v, call)
    out, lse = results.out, results.lse
    arguments = {name: value for name, value in call.items() if value is not None}
    for name in ("return_lse", "return_stats"):
        del arguments[name]
    arguments["block"] = (arguments.pop("block_q"), arguments.pop("block_kv"))
    if kind.packed:
        q, k, v, out = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), out.unsqueeze(0)
        lse = None if lse is None else lse.unsqueeze(0)
    if lse is not None:
        arguments["lse"] = lse
    if results.kept_blocks is not None:
        arguments["kept_blocks"] = results.kept_blocks
        arguments["visible_blocks"] = results.visible_blocks
    run_attention(q, k, v, out, **arguments)
    return results


def _define(name: str, kind: _Kind) -> Any:
    """The kind as an operator of torch.library; an operator has the same results whatever is asked
    for, so that those not asked for are empty.
    """

    def filled(results: _Results, q: Tensor) -> tuple[Tensor, ...]:
        dtypes = (q.dtype, torch.float32, torch.int64, torch.int64)
        return tuple(
            torch.empty(0, dtype=dtype, device=q.device) if result is None else result
            for result, dtype in zip(results, dtypes, strict=True)
        )

    def named(values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(kind.arguments, values, strict=True))

    def forward(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
        return filled(_forward(kind, q, k, v, named(values)), q)

    def fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
        return filled(_room(kind, q, v, named(values)), q)

    types = "".join(f", {type_} {argument}" for argument, type_ in kind.arguments.items())
    operator = torch.library.custom_op(
        name,
        forward,
        mutates_args=(),
        schema=f"(Tensor q, Tensor k, Tensor v{types}) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    operator.register_fake(fake)
    operator.register_autograd(_refuse_backward)
    return operator


_NO_BACKWARD = (
    "bsfa has no backward pass: {what}; call it under torch.no_grad() or on detached tensors"
)


def _refuse_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise UnsupportedError(_NO_BACKWARD.format(what="backward() reached its output"))


_attention = _define("bsfa::attention", _PADDED)
_attention_varlen = _define("bsfa::attention_varlen", _PACKED)


def _runs_eagerly(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether nothing traces, transforms or stands in for the tensors.

    Then no operator is needed, whose way through torch takes longer than all else on the host.
    """
    return (
        not torch.compiler.is_compiling()
        and type(q) is Tensor
        and type(k) is Tensor
        and type(v) is Tensor
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


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


def _quick(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    return_lse: bool,
    return_stats: bool,
    **call: Any,
) -> Any:
    """The call of `flash_attn_func` without operator, copies and checks, for what needs none.

    What the library refuses (before anything is written) is for `_attend`: it makes rows contiguous
    and says what is wrong in the caller's terms.
    """
    plain = q.size(-1) == v.size(-1) and q.is_contiguous()
    out = torch.empty_like(q) if plain else q.new_empty((*q.shape[:-1], v.shape[-1]))
    if not return_lse and not return_stats:
        run_attention(q, k, v, out, **call)
        return out
    answer: list[Any] = [out]
    batch, seqlen, heads, _ = q.shape
    if return_lse:
        call["lse"] = q.new_empty((batch, heads, seqlen), dtype=torch.float32)
        answer.append(call["lse"])
    if return_stats:
        kept, visible = (q.new_empty((batch, heads), dtype=torch.int64) for _ in range(2))
        call["kept_blocks"], call["visible_blocks"] = kept, visible
        answer.append(BlockStats(kept, visible))
    run_attention(q, k, v, out, **call)
    return tuple(answer)


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument


def _attend(
    kind: _Kind,
    operator: Any,
    operands: tuple[Tensor, Tensor, Tensor],
    sequences: dict[str, Any],
    offset: dict[str, Any],
    vectors: dict[str, tuple[Tensor | None, str]],
    *,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    thresholds: Tensor | None,
    sliding_window_blocks: int | None,
    mass: float | None,
    skip_softmax: float | None,
    skip_order: str,
    block: tuple[int, int],
    compute_type: str,
    backend: str,
    return_lse: bool,
    return_stats: bool,
    **flash: Any,
) -> Any:
    """What both functions have in common: the checks, the call, the results asked for.

    sequences, offset: the arguments of the operator that the other one does not have.
    """
    _check_thresholds(thresholds)
    _check_operands(*operands, kind.axes)
    _check_vectors(vectors)
    q, k, v = operands
    others = {"thresholds": thresholds, **{name: vector for name, (vector, _) in vectors.items()}}
    for name, other in (("k", k), ("v", v), *others.items()):
        if other is not None and other.device != q.device:
            raise InvalidArgumentError(f"{name} is on device {other.device}; q is on {q.device}")
    _check_flash_defaults(**flash)
    causal, window = _window(causal, window_size)
    q, k, v = _unit_stride(q), _unit_stride(k), _unit_stride(v)
    call = {
        **{name: _contiguous(value) for name, value in sequences.items()},
        "thresholds": None if thresholds is None else _unit_stride(thresholds),
        "softmax_scale": softmax_scale,
        "causal": causal,
        **{name: _contiguous(value) for name, value in offset.items()},
        "window": window,
        "window_blocks": sliding_window_blocks,
        "mass_c": mass,
        "skip_lambda": skip_softmax,
        "skip_order": skip_order,
        "block_q": block[0],
        "block_kv": block[1],
        "compute_type": compute_type,
        "backend": backend,
        "return_lse": return_lse,
        "return_stats": return_stats,
    }
    results: Any
    if _runs_eagerly(q, k, v):
        results = _forward(kind, q, k, v, call)
    else:
        results = operator(q, k, v, *call.values())
    out, lse, kept, visible = results
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
    mass: float | None = None,
    skip_softmax: float | None = None,
    skip_order: str = "ascending",
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
        mass: the policy without calibration, with this c (finite, above 0; 0.1 is the method's): a
            block is kept if the mean over its rows of exp(largest score - log-sum-exp of the blocks
            always kept) is at least min(0.002, c / visible blocks). CPU.
        skip_softmax: a baseline, with this lambda (above 0, at most 1): a block is kept if a score
            in it is at most ln(1 / lambda) below the largest of its row so far. CPU.
        skip_order: of skip_softmax: ascending from block 0, or outwards from the diagonal.
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
    if (
        _runs_eagerly(q, k, v)
        and q.dim() == 4
        and v.dim() == 4
        and not (dropout_p or softcap or return_attn_probs)
        and alibi_slopes is None
        and block_table is None
        and window_size == (-1, -1)
        and (thresholds is None or type(thresholds) is Tensor)
        and not (
            torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        )
    ):
        try:
            return _quick(
                q,
                k,
                v,
                thresholds=thresholds,
                softmax_scale=softmax_scale,
                causal=causal,
                q_offset=q_offset,
                window_blocks=sliding_window_blocks,
                mass_c=mass,
                skip_lambda=skip_softmax,
                skip_order=skip_order,
                block=block,
                compute_type=compute_type,
                backend=backend,
                return_lse=return_lse,
                return_stats=return_stats,
            )
        except (InvalidArgumentError, UnsupportedError, TypeError):
            pass
    return _attend(
        _PADDED,
        _attention,
        (q, k, v),
        {},
        {"q_offset": q_offset},
        {},
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        thresholds=thresholds,
        sliding_window_blocks=sliding_window_blocks,
        mass=mass,
        skip_softmax=skip_softmax,
        skip_order=skip_order,
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
    mass: float | None = None,
    skip_softmax: float | None = None,
    skip_order: str = "ascending",
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
        _PACKED,
        _attention_varlen,
        (q, k, v),
        {
            "cu_seqlens_q": cu_seqlens_q,
            "cu_seqlens_k": cu_seqlens_k,
            "max_seqlen_q": max_seqlen_q,
            "max_seqlen_k": max_seqlen_k,
        },
        {"q_offsets": q_offsets},
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
        mass=mass,
        skip_softmax=skip_softmax,
        skip_order=skip_order,
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
