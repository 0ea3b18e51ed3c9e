"""The two operators of `torch.library`, `bsfa::attention` and `bsfa::attention_varlen`."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from bsfa.errors import UnsupportedError
from bsfa.ops.launch import is_served, run_attention


class Results(NamedTuple):
    """What a call writes; None where it was not asked for."""

    out: Tensor
    lse: Tensor | None
    kept_blocks: Tensor | None
    visible_blocks: Tensor | None


class Kind(NamedTuple):
    """How one of the two operators differs from the other."""

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
        "coverage": "float?",
        "sampled_rows": "SymInt",
        "mass_floor": "float",
        "softcap": "float",
        "block_q": "SymInt",
        "block_kv": "SymInt",
        "compute_type": "str",
        "backend": "str",
        "return_lse": "bool",
        "return_stats": "bool",
    }


PADDED = Kind(
    False,
    "batch, seqlen, num_heads, head_dim",
    _arguments(
        {"seqused_k": "Tensor?", "leftpad_k": "Tensor?"},
        {"q_offset": "SymInt?", "q_offsets": "Tensor?"},
    ),
)
PACKED = Kind(
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


def room(kind: Kind, q: Tensor, v: Tensor, call: dict[str, Any]) -> Results:
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
    return Results(out, lse, kept, visible)


def _library_call(
    kind: Kind, operands: tuple[Tensor, Tensor, Tensor], results: Results, call: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Any]]:
    """The arguments of `run_attention` for the arguments of the kind's operator, by name."""
    tensors = [*operands, results.out]
    lse = results.lse
    arguments = {name: value for name, value in call.items() if value is not None}
    for name in ("return_lse", "return_stats"):
        del arguments[name]
    arguments["block"] = (arguments.pop("block_q"), arguments.pop("block_kv"))
    if kind.packed:
        tensors = [tensor.unsqueeze(0) for tensor in tensors]
        lse = None if lse is None else lse.unsqueeze(0)
    if lse is not None:
        arguments["lse"] = lse
    if results.kept_blocks is not None:
        arguments["kept_blocks"] = results.kept_blocks
        arguments["visible_blocks"] = results.visible_blocks
    return tensors, arguments


def forward(kind: Kind, q: Tensor, k: Tensor, v: Tensor, call: dict[str, Any]) -> Results:
    """The call with the arguments of the kind's operator, by name."""
    results = room(kind, q, v, call)
    tensors, arguments = _library_call(kind, (q, k, v), results, call)
    run_attention(*tensors, **arguments)
    return results


def serves(kind: Kind, q: Tensor, k: Tensor, v: Tensor, call: dict[str, Any]) -> bool:
    """Whether `forward` would take the call."""
    tensors, arguments = _library_call(kind, (q, k, v), room(kind, q, v, call), call)
    return is_served(*tensors, **arguments)


def _define(name: str, kind: Kind) -> Any:
    """The kind as an operator of torch.library; an operator has the same results whatever is asked
    for, so that those not asked for are empty.
    """

    def filled(results: Results, q: Tensor) -> tuple[Tensor, ...]:
        dtypes = (q.dtype, torch.float32, torch.int64, torch.int64)
        return tuple(
            torch.empty(0, dtype=dtype, device=q.device) if result is None else result
            for result, dtype in zip(results, dtypes, strict=True)
        )

    def named(values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(kind.arguments, values, strict=True))

    def implementation(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
        return filled(forward(kind, q, k, v, named(values)), q)

    def fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
        return filled(room(kind, q, v, named(values)), q)

    types = "".join(f", {type_} {argument}" for argument, type_ in kind.arguments.items())
    operator = torch.library.custom_op(
        name,
        implementation,
        mutates_args=(),
        schema=f"(Tensor q, Tensor k, Tensor v{types}) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    operator.register_fake(fake)
    operator.register_autograd(_refuse_backward)
    return operator


NO_BACKWARD = (
    "bsfa has no backward pass: {what}; call it under torch.no_grad() or on detached tensors"
)


def _refuse_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise UnsupportedError(NO_BACKWARD.format(what="backward() reached its output"))


_OPERATORS = {
    PADDED.packed: _define("bsfa::attention", PADDED),
    PACKED.packed: _define("bsfa::attention_varlen", PACKED),
}


def runs_eagerly(q: Tensor, k: Tensor, v: Tensor) -> bool:
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


def through_torch(kind: Kind, q: Tensor, k: Tensor, v: Tensor, call: dict[str, Any]) -> Results:
    """The call as an operator: all results are there, those not asked for empty."""
    return Results(*_OPERATORS[kind.packed](q, k, v, *call.values()))
