"""The arguments of the functions: bsfa's own, and which of flash-attention's are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.ops.operators import NO_BACKWARD

if TYPE_CHECKING:
    from collections.abc import Mapping


class CallArguments(TypedDict, total=False):
    """What every function takes by keyword beyond the arguments of the flash-attention package."""

    thresholds: Tensor | None
    """float32 [num_heads_q, num_q_blocks], or with a batch axis before: the method. A block of keys
    is left out iff its largest score is below its threshold. None: dense."""
    sliding_window_blocks: int | None
    """The paper's baseline: the diagonal and this many blocks before it."""
    mass: float | None
    """The policy without calibration, with this c (finite, above 0; 0.1 is the method's): a block
    is kept if the mean over its rows of exp(largest score - log-sum-exp of the blocks always kept)
    is at least min(0.002, c / visible blocks). CPU."""
    skip_softmax: float | None
    """A baseline, with this lambda (above 0, at most 1): a block is kept if a score in it is at
    most ln(1 / lambda) below the largest of its row so far. CPU."""
    skip_order: str
    """Of skip_softmax: ascending from block 0, or outwards from the diagonal."""
    coverage: float | None
    """Above 0, up to 1: each query block visits only the blocks that hold this share of the
    attention of some of its rows, which are scored exactly before. 0.95 is fast, 0.98 careful."""
    sampled_rows: int
    """Of coverage: rows of each query block that are scored: 8, 16, 32 or 64."""
    mass_floor: float
    """Of coverage: a block of at least this share is visited too; 1: coverage alone decides."""
    block: tuple[int, int]
    """The gate grid in tokens (query rows, keys); must be the one of the thresholds. (128, 64)"""
    q_offset: int | None
    """Position of query row 0 in tokens; default seqlen_k - seqlen_q if causal, else 0. Padded
    batches only."""
    q_offsets: Tensor | None
    """int32 [batch]: likewise for each sequence, instead of q_offset."""
    return_lse: bool
    """Also return the natural logarithm of each row's normaliser, float32."""
    return_stats: bool
    """Also return `BlockStats`."""
    compute_type: str
    """native, float32 or bfloat16 (inputs rounded to it)."""
    backend: str
    """A name from `bsfa.backends()`; empty: the best that serves the call."""


class OwnArguments(CallArguments, total=False):
    """And what those take whose arguments do not say already which keys there are."""

    seqused_q: Tensor | None
    """int32 [batch]: queries of each sequence that count, from its first; the rest give 0 and an
    LSE of -inf."""
    seqused_k: Tensor | None
    """int32 [batch]: keys of each sequence that count, from its first after leftpad_k."""
    leftpad_k: Tensor | None
    """int32 [batch]: keys of each sequence before the first that counts."""


OWN_DEFAULTS: dict[str, Any] = {
    "thresholds": None,
    "sliding_window_blocks": None,
    "mass": None,
    "skip_softmax": None,
    "skip_order": "ascending",
    "coverage": None,
    "sampled_rows": 32,
    "mass_floor": 0.003,
    "block": (128, 64),
    "q_offset": None,
    "q_offsets": None,
    "seqused_q": None,
    "seqused_k": None,
    "leftpad_k": None,
    "return_lse": False,
    "return_stats": False,
    "compute_type": "native",
    "backend": "",
}

PER_SEQUENCE = ("q_offsets", "seqused_q", "seqused_k", "leftpad_k")


def own_arguments(
    function: str, given: Mapping[str, Any], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All of bsfa's own arguments; `without`: those that the function does not take."""
    for name in given:
        if name not in OWN_DEFAULTS or name in without:
            raise TypeError(f"{function}() got an unexpected keyword argument '{name}'")
    return {**OWN_DEFAULTS, **given}


def policy_of(own: Mapping[str, Any]) -> dict[str, Any]:
    """Which blocks are kept, by the names that the library has for it."""
    return {
        "thresholds": own["thresholds"],
        "window_blocks": own["sliding_window_blocks"],
        "mass_c": own["mass"],
        "skip_lambda": own["skip_softmax"],
        "skip_order": own["skip_order"],
        "coverage": own["coverage"],
        "sampled_rows": own["sampled_rows"],
        "mass_floor": own["mass_floor"],
    }


# What the flash-attention package takes and bsfa does not compute: the accepted value, and why or
# what instead. Arguments that only say how to compute are not here: they are accepted.
_UNSERVED: dict[str, tuple[Any, str]] = {
    "dropout_p": (0.0, "0 (bsfa is for inference)"),
    "alibi_slopes": (None, "None"),
    "block_table": (None, "None (contiguous k and v)"),
    "page_table": (None, "None (contiguous k and v)"),
    "qv": (None, "None"),
    "q_descale": (None, "None (no fp8 operands)"),
    "k_descale": (None, "None (no fp8 operands)"),
    "v_descale": (None, "None (no fp8 operands)"),
    "attention_chunk": (0, "0 (none)"),
    "rotary_cos": (None, "None (rotate q and k before the call)"),
    "rotary_sin": (None, "None (rotate q and k before the call)"),
    "rotary_seqlens": (None, "None (rotate q and k before the call)"),
}


def refuse_unserved(**given: Any) -> None:
    """Raises UnsupportedError for the first argument that asks for what is not computed."""
    for name, value in given.items():
        default, accepted = _UNSERVED[name]
        if value is default or (isinstance(value, (int, float)) and value == default):
            continue
        what = "was given" if isinstance(value, Tensor) else f"is {value}"
        raise UnsupportedError(f"{name} {what}; accepted: {accepted}")


def check_tensor(name: str, tensor: Any, axes: str) -> None:
    """An operand: its type, rank, dtype and device, and that nothing is to be differentiated."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is of type {type(tensor).__name__}; expected torch.Tensor")
    if tensor.dim() != len(axes.split(",")):
        raise InvalidArgumentError(f"{name} has shape {list(tensor.shape)}; expected [{axes}]")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InvalidArgumentError(
            f"{name} has dtype {tensor.dtype}; accepted: float32, float16, bfloat16"
        )
    if tensor.device.type not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"{name} is on device {tensor.device}; accepted: cpu, cuda")
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise UnsupportedError(NO_BACKWARD.format(what=f"{name} requires grad"))


def check_thresholds(thresholds: Any) -> None:
    """None, or float32 with an axis of heads, one of query blocks, and maybe one of sequences."""
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


def check_vector(name: str, vector: Any, expected: str, length: int | None = None) -> None:
    """None, or int32 with one axis, of `length` entries if that is known."""
    if vector is None:
        return
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} is of type {type(vector).__name__}; expected torch.Tensor")
    if vector.dtype != torch.int32 or vector.dim() != 1:
        raise InvalidArgumentError(
            f"{name} is {vector.dtype} {list(vector.shape)}; expected int32 [{expected}]"
        )
    if length is not None and vector.shape[0] != length:
        raise InvalidArgumentError(
            f"{name} has {vector.shape[0]} entries; the call has {length} sequences"
        )


def check_number(name: str, value: Any) -> None:
    """A number, maybe one that the compiler stands in for."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected a number")


def check_devices(q: Tensor, others: Mapping[str, Any]) -> None:
    """All tensors of a call are on the device of its queries."""
    for name, other in others.items():
        if isinstance(other, Tensor) and other.device != q.device:
            raise InvalidArgumentError(f"{name} is on device {other.device}; q is on {q.device}")


def packed_lengths(cu_seqlens: Tensor) -> Tensor:
    """int32 [batch]: the tokens of each sequence."""
    return cu_seqlens[1:] - cu_seqlens[:-1]


def as_length(name: str, value: Any) -> Any:
    """A length in tokens as an int; a tensor of one entry is read (on a GPU that waits for it)."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected an int, in tokens")
    return value


def mask_of(
    causal: bool, window_size: tuple[int, int], seqlen_q: int, seqlen_k: int, aligned: bool
) -> tuple[bool, int | None]:
    """flash-attention's (left, right) in tokens -> (causal, window of the method page).

    seqlen_q, seqlen_k: bounds. `aligned`: the last query stands beside the last key, so that a side
    that reaches over all keys is no limit, and a single query has no keys on its right.
    """
    if len(window_size) != 2 or any(w < -1 for w in window_size):
        raise InvalidArgumentError(
            f"window_size is {window_size}; accepted: (left, right) in tokens, -1 for no limit"
        )
    left, right = window_size
    if left == -1 and right == -1:
        return causal, None
    if aligned:
        if left >= seqlen_k - 1:
            left = -1
        if right > 0 and right >= seqlen_q - 1:
            right = -1
    if causal or (aligned and seqlen_q == 1 and left != -1):
        right = 0
    if left == -1 and right == -1:
        return False, None
    if right != 0:
        raise UnsupportedError(
            f"window_size is {tuple(window_size)} with causal=False; accepted: (-1, -1), or a "
            "right of 0 (no backend has windows with two sides)"
        )
    return True, None if left == -1 else left + 1
