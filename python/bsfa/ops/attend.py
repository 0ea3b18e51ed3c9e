"""What all functions come down to: a padded or a packed call, checked and run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.ops import arguments, operators, segments
from bsfa.ops.launch import is_served, run_attention
from bsfa.ops.operators import PACKED, PADDED, Kind, Results


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


class Scores(NamedTuple):
    """Which scores there are and what becomes of them: what all functions of the package take."""

    softmax_scale: float | None
    causal: bool
    window_size: tuple[int, int]
    softcap: float


def padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Scores,
    own: dict[str, Any],
    names: tuple[str, str, str] = ("q", "k", "v"),
    dry: bool = False,
) -> Results:
    """Operands [batch, seqlen, num_heads, head_dim]; lse [batch, num_heads_q, seqlen_q].

    names: of the operands, for messages. dry: only raises what the call would raise (under a
    compiler what the library itself refuses comes later); the results are not filled.
    """
    _check(PADDED, dict(zip(names, (q, k, v), strict=True)), own, q.shape[0])
    if own["seqused_q"] is not None:
        if own["q_offset"] is not None:
            raise InvalidArgumentError(
                "q_offset was given with seqused_q; accepted: q_offsets, one for each sequence"
            )
        flat = [tensor.reshape(-1, *tensor.shape[2:]) for tensor in (q, k, v)]
        lengths = segments.Lengths(
            even_lengths(q.shape[0], q.shape[1], q.device),
            even_lengths(k.shape[0], k.shape[1], q.device),
            q.shape[1],
            k.shape[1],
        )
        results = packed(flat[0], flat[1], flat[2], lengths, scores, own, names, dry)
        return padded_results(results, q.shape[0], q.shape[1], own)
    call = {name: own[name] for name in ("seqused_k", "leftpad_k", "q_offset", "q_offsets")}
    return _run(PADDED, (q, k, v), call, (q.shape[1], k.shape[1]), scores, own, dry)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: segments.Lengths,
    scores: Scores,
    own: dict[str, Any],
    names: tuple[str, str, str] = ("q", "k", "v"),
    dry: bool = False,
) -> Results:
    """Operands [total_tokens, num_heads, head_dim]; lse [num_heads_q, total_q]."""
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        cu_seqlens = getattr(lengths, name)
        if cu_seqlens is None:
            raise TypeError(f"{name} is None; expected int32 [batch + 1]")
        arguments.check_vector(name, cu_seqlens, "batch + 1")
    lengths = lengths._replace(
        max_seqlen_q=arguments.as_length("max_seqlen_q", lengths.max_seqlen_q),
        max_seqlen_k=arguments.as_length("max_seqlen_k", lengths.max_seqlen_k),
    )
    batch = lengths.cu_seqlens_q.shape[0] - 1
    operands = dict(zip(names, (q, k, v), strict=True))
    _check(PACKED, operands, {**own, **lengths._asdict()}, batch)
    parts = [own[name] for name in ("seqused_q", "seqused_k", "leftpad_k")]
    pieces = None
    if any(part is not None for part in parts):
        if lengths.cu_seqlens_k.shape[0] != batch + 1:
            raise InvalidArgumentError(
                f"cu_seqlens_q and cu_seqlens_k have {batch + 1} and "
                f"{lengths.cu_seqlens_k.shape[0]} entries; expected batch + 1 in both"
            )
        readable = not q.is_cuda and operators.runs_eagerly(q, k, v)
        pieces = segments.cut(lengths, parts[0], parts[1], parts[2], readable)
        thresholds = own["thresholds"]
        own = {
            **own,
            "q_offsets": pieces.spread(own["q_offsets"]),
            "thresholds": pieces.spread(thresholds)
            if thresholds is not None and thresholds.dim() == 3
            else thresholds,
        }
        lengths = pieces.lengths
    call = {**lengths._asdict(), "q_offsets": own["q_offsets"]}
    extent = (lengths.max_seqlen_q, lengths.max_seqlen_k)
    results = _run(PACKED, (q, k, v), call, extent, scores, own, dry)
    if pieces is None:
        return results
    return results._replace(
        kept_blocks=pieces.gather(results.kept_blocks),
        visible_blocks=pieces.gather(results.visible_blocks),
    )


def padded_results(results: Results, batch: int, seqlen: int, own: dict[str, Any]) -> Results:
    """The results of a packed call whose queries were a padded batch, in its axes."""
    out, lse = results.out.unflatten(0, (batch, seqlen)), results.lse
    if own["return_lse"] and lse is not None:
        lse = lse.unflatten(1, (batch, seqlen)).transpose(0, 1).contiguous()
    return results._replace(out=out, lse=lse)


def even_lengths(batch: int, seqlen: int, device: torch.device) -> Tensor:
    """The cu_seqlens of a padded batch whose sequences lie one after the other."""
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen


def answer(results: Results, own: dict[str, Any], *flash: Any) -> Any:
    """out; or a tuple of out, of `flash`, which the package of that name returns, and of what is
    asked for by bsfa's own arguments.
    """
    asked: list[Any] = [results.out, *flash]
    if own["return_lse"] and not flash:
        asked.append(results.lse)
    if own["return_stats"]:
        assert results.kept_blocks is not None
        assert results.visible_blocks is not None
        asked.append(BlockStats(results.kept_blocks, results.visible_blocks))
    return tuple(asked) if len(asked) > 1 else results.out


def quick(
    q: Tensor, k: Tensor, v: Tensor, scores: Scores, own: dict[str, Any], dry: bool = False
) -> Results | None:
    """A padded call without operator, copies and checks, if it needs none; else None.

    What the library refuses (before anything is written) is for `padded`: it makes rows contiguous
    and says what is wrong in the caller's terms.
    """
    thresholds = own["thresholds"]
    if not (
        operators.runs_eagerly(q, k, v)
        and q.dim() == 4
        and v.dim() == 4
        and scores.window_size == (-1, -1)
        and own["seqused_q"] is None
        and (thresholds is None or type(thresholds) is Tensor)
        and not (
            torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        )
    ):
        return None
    plain = q.size(-1) == v.size(-1) and q.is_contiguous()
    out = torch.empty_like(q) if plain else q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = kept = visible = None
    asked: dict[str, Any] = {}
    batch, seqlen, heads, _ = q.shape
    if own["return_lse"]:
        asked["lse"] = lse = q.new_empty((batch, heads, seqlen), dtype=torch.float32)
    if own["return_stats"]:
        kept, visible = (q.new_empty((batch, heads), dtype=torch.int64) for _ in range(2))
        asked["kept_blocks"], asked["visible_blocks"] = kept, visible
    try:
        served = (is_served if dry else run_attention)(
            q,
            k,
            v,
            out,
            softmax_scale=scores.softmax_scale,
            causal=scores.causal,
            softcap=scores.softcap,
            q_offset=own["q_offset"],
            q_offsets=own["q_offsets"],
            seqused_k=own["seqused_k"],
            leftpad_k=own["leftpad_k"],
            block=own["block"],
            compute_type=own["compute_type"],
            backend=own["backend"],
            **arguments.policy_of(own),
            **asked,
        )
    except (InvalidArgumentError, UnsupportedError, TypeError):
        return None
    return None if served is False else Results(out, lse, kept, visible)


def _check(kind: Kind, operands: dict[str, Any], others: dict[str, Any], batch: int) -> None:
    for name, operand in operands.items():
        arguments.check_tensor(name, operand, kind.axes)
    arguments.check_thresholds(others["thresholds"])
    for name in arguments.PER_SEQUENCE:
        arguments.check_vector(name, others[name], "batch", batch)
    q, k, v = operands.values()
    _, k_name, v_name = operands
    arguments.check_devices(q, {k_name: k, v_name: v, **others})


_HEAD_DIM_UNIT = 8


def _run(
    kind: Kind,
    operands: tuple[Tensor, Tensor, Tensor],
    sequences: dict[str, Any],
    extent: tuple[Any, Any],
    scores: Scores,
    own: dict[str, Any],
    dry: bool,
) -> Results:
    """The checked call. sequences: the arguments of the operator that the other kind does not have;
    extent: the longest sequences in queries and keys.
    """
    arguments.check_number("softcap", scores.softcap)
    aligned = own["q_offset"] is None and own["q_offsets"] is None
    causal, window = arguments.mask_of(scores.causal, scores.window_size, *extent, aligned)
    q, k, v = operands
    softmax_scale, head_dim_v = scores.softmax_scale, v.shape[-1]
    odd = q.shape[-1] % _HEAD_DIM_UNIT != 0 or head_dim_v % _HEAD_DIM_UNIT != 0
    if odd and q.shape[-1] == k.shape[-1]:
        # As the flash-attention package does; zeros change no score, and the rest is cut off.
        softmax_scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        q, k, v = (
            torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % _HEAD_DIM_UNIT))
            for tensor in (q, k, v)
        )
    q, k, v = (_unit_stride(tensor) for tensor in (q, k, v))
    if own["thresholds"] is not None:
        own = {**own, "thresholds": _unit_stride(own["thresholds"])}
    values = {
        **sequences,
        **arguments.policy_of(own),
        "softmax_scale": softmax_scale,
        "causal": causal,
        "window": window,
        "softcap": scores.softcap,
        "block_q": own["block"][0],
        "block_kv": own["block"][1],
        "compute_type": own["compute_type"],
        "backend": own["backend"],
        "return_lse": own["return_lse"],
        "return_stats": own["return_stats"],
    }
    call = {
        name: values[name].contiguous()
        if name in sequences and isinstance(values[name], Tensor)
        else values[name]
        for name in kind.arguments
    }
    eager = operators.runs_eagerly(q, k, v)
    if dry and (not eager or operators.serves(kind, q, k, v, call)):
        return operators.room(kind, q, v, call)
    run = operators.forward if eager else operators.through_torch
    results = run(kind, q, k, v, call)
    if results.out.shape[-1] != head_dim_v:
        results = results._replace(out=results.out[..., :head_dim_v])
    return results


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
