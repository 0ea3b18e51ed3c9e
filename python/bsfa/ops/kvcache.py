"""Attention through a key/value cache: new tokens are written into it, then all of it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bsfa.errors import InvalidArgumentError
from bsfa.ops import arguments, attend, operators
from bsfa.ops.attend import Scores
from bsfa.ops.operators import PADDED, Results
from bsfa.ops.segments import Lengths

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bsfa.ops.arguments import CallArguments

# What says where keys begin and end is the cache's own.
WITHOUT = ("seqused_q", "seqused_k", "leftpad_k")


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    **own: Unpack[CallArguments],
) -> Any:
    """Attention through a contiguous cache: `flash_attn.flash_attn_with_kvcache`, called alike.

    k and v are written into the cache first, in place, from row cache_seqlens of each sequence on.
    Nothing is written if the call is refused (under torch.compile: if it is refused before the
    library sees it). On a GPU nothing waits for the device.

    Args:
        q: [batch, seqlen_q, num_heads_q, head_dim].
        k_cache: [batch_cache, seqlen_cache, num_heads_kv, head_dim], batch_cache at least batch.
        v_cache: [batch_cache, seqlen_cache, num_heads_kv, head_dim_v].
        k: [batch, seqlen_new, num_heads_kv, head_dim], dtype of the cache; needs cache_seqlens.
        v: [batch, seqlen_new, num_heads_kv, head_dim_v].
        rotary_cos: refused unless None, as rotary_sin; rotary_interleaved then says nothing.
        cache_seqlens: rows of the cache in use before k is written, an int or int32 [batch]; k
            needs room after them. Default all.
        cache_batch_idx: int32 [batch]: the sequence of the cache that each q belongs to, instead of
            0 to batch - 1. The selected sequences are copied to be read.
        cache_leftpad: int32 [batch]: rows of the cache before the first that counts.
        block_table: refused unless None.
        softmax_scale: as in `flash_attn_func`, like causal (the last query stands beside the last
            key), window_size and softcap.
        alibi_slopes: refused unless None.
        num_splits: accepted; how the keys are split is bsfa's affair.
        return_softmax_lse: also return the LSE.
        **own: as in `flash_attn_func`, without seqused_q, seqused_k and leftpad_k.

    Returns:
        out [batch, seqlen_q, num_heads_q, head_dim_v]; or a tuple: out, LSE float32 [batch,
        num_heads_q, seqlen_q] with return_softmax_lse or return_lse, stats with return_stats.
    """
    given = arguments.own_arguments("flash_attn_with_kvcache", own, WITHOUT)
    arguments.refuse_unserved(
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        block_table=block_table,
        alibi_slopes=alibi_slopes,
    )
    call = CacheCall(q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad)
    scores = Scores(softmax_scale, causal, window_size, softcap)
    return cache_answer(call, scores, given, return_softmax_lse)


class CacheCall(NamedTuple):
    """The tensors of a call; with cu_seqlens_q and cu_seqlens_k_new q and k, v are packed."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    k: Tensor | None = None
    v: Tensor | None = None
    cache_seqlens: int | Tensor | None = None
    cache_batch_idx: Tensor | None = None
    cache_leftpad: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    max_seqlen_q: int | None = None
    cu_seqlens_k_new: Tensor | None = None


def cache_answer(call: CacheCall, scores: Scores, own: dict[str, Any], return_lse: bool) -> Any:
    """A call through a cache and what is returned for it."""
    if return_lse:
        own = {**own, "return_lse": True}
    batch = _check(call)
    if call.k is not None:
        assert call.v is not None
        _attend(call, batch, scores, own, dry=True)
        _append(call, batch)
    return attend.answer(_attend(call, batch, scores, own, dry=False), own)


def _check(call: CacheCall) -> int:
    """All that does not depend on what is computed; how many sequences there are."""
    arguments.check_tensor("k_cache", call.k_cache, PADDED.axes)
    arguments.check_tensor("v_cache", call.v_cache, PADDED.axes)
    if call.v_cache.shape[:3] != call.k_cache.shape[:3]:
        raise InvalidArgumentError(
            f"v_cache has shape {list(call.v_cache.shape)}; k_cache has "
            f"{list(call.k_cache.shape)}, and only head_dim may differ"
        )
    batch = _sequences("q", call.q, "cu_seqlens_q", call.cu_seqlens_q)
    if call.cu_seqlens_q is not None and call.max_seqlen_q is None:
        raise InvalidArgumentError("max_seqlen_q is missing; cu_seqlens_q needs it")
    _check_lengths(call, batch)
    held = call.k_cache.shape[0]
    if call.cache_batch_idx is None and held < batch:
        raise InvalidArgumentError(f"k_cache has {held} sequences; the call has {batch}")
    if (call.k is None) != (call.v is None):
        missing, other = ("k", "v") if call.k is None else ("v", "k")
        raise InvalidArgumentError(f"{missing} is missing; {other} was given")
    if call.k is None or call.v is None:
        if call.cu_seqlens_k_new is not None:
            raise InvalidArgumentError("cu_seqlens_k_new was given without k")
        return batch
    if call.cache_seqlens is None:
        raise InvalidArgumentError("cache_seqlens is missing; k is written from there on")
    for name, new, cache in (("k", call.k, call.k_cache), ("v", call.v, call.v_cache)):
        count = _sequences(name, new, "cu_seqlens_k_new", call.cu_seqlens_k_new)
        if count != batch:
            raise InvalidArgumentError(f"{name} has {count} sequences; the call has {batch}")
        if new.shape[-2:] != cache.shape[-2:] or new.dtype != cache.dtype:
            raise InvalidArgumentError(
                f"{name} is {new.dtype} [..., {new.shape[-2]}, {new.shape[-1]}]; {name}_cache is "
                f"{cache.dtype} [..., {cache.shape[-2]}, {cache.shape[-1]}]"
            )
    if call.k.shape[:-2] != call.v.shape[:-2]:
        raise InvalidArgumentError(
            f"v has shape {list(call.v.shape)}; k has {list(call.k.shape)}, and only head_dim may "
            "differ"
        )
    arguments.check_devices(call.q, {"k": call.k, "v": call.v})
    _check_room(call, batch)
    return batch


def _sequences(name: str, tensor: Tensor, lengths_name: str, cu_seqlens: Tensor | None) -> int:
    """Checks a padded or packed operand and counts its sequences."""
    if cu_seqlens is None:
        arguments.check_tensor(name, tensor, PADDED.axes)
        return tensor.shape[0]
    arguments.check_tensor(name, tensor, operators.PACKED.axes)
    arguments.check_vector(lengths_name, cu_seqlens, "batch + 1")
    return cu_seqlens.shape[0] - 1


def _check_lengths(call: CacheCall, batch: int) -> None:
    """cache_seqlens, cache_batch_idx and cache_leftpad: their types, and where they can be read."""
    if isinstance(call.cache_seqlens, Tensor):
        arguments.check_vector("cache_seqlens", call.cache_seqlens, "batch", batch)
    elif call.cache_seqlens is not None:
        arguments.as_length("cache_seqlens", call.cache_seqlens)
    vectors = {"cache_batch_idx": call.cache_batch_idx, "cache_leftpad": call.cache_leftpad}
    for name, vector in vectors.items():
        arguments.check_vector(name, vector, "batch", batch)
    arguments.check_devices(
        call.q,
        {
            "k_cache": call.k_cache,
            "v_cache": call.v_cache,
            "cache_seqlens": call.cache_seqlens,
            **vectors,
        },
    )
    held, rows = call.k_cache.shape[:2]
    readable = _readable(call)
    if readable and call.cache_batch_idx is not None:
        for index in call.cache_batch_idx.tolist():
            if not 0 <= index < held:
                raise InvalidArgumentError(
                    f"cache_batch_idx has {index}; k_cache has {held} sequences"
                )
    for b, (start, used) in enumerate(_used_rows(call, batch, readable)):
        if not 0 <= start <= used <= rows:
            padding = f" with cache_leftpad {start}" if call.cache_leftpad is not None else ""
            raise InvalidArgumentError(
                f"cache_seqlens is {used}{padding} for sequence {b}; k_cache has {rows} rows"
            )


def _readable(call: CacheCall) -> bool:
    """Whether the vectors may be looked at: not on a GPU, which would be waited for, nor traced."""
    return not call.q.is_cuda and operators.runs_eagerly(call.q, call.k_cache, call.v_cache)


def _used_rows(call: CacheCall, batch: int, readable: bool) -> list[tuple[int, int]]:
    """First and last row in use of each sequence, as far as they can be known here."""
    lengths = call.cache_seqlens
    if not readable:
        return [(0, lengths)] if isinstance(lengths, int) else []
    starts = [0] * batch if call.cache_leftpad is None else call.cache_leftpad.tolist()
    if lengths is None:
        lengths = call.k_cache.shape[1]
    used = lengths.tolist() if isinstance(lengths, Tensor) else [lengths] * batch
    return list(zip(starts, used, strict=True))


def _check_room(call: CacheCall, batch: int) -> None:
    """That the new tokens fit, where it can be known; else torch's indexing says so."""
    assert call.k is not None
    rows, readable = call.k_cache.shape[1], _readable(call)
    if call.cu_seqlens_k_new is None:
        new = [call.k.shape[1]] * batch
    elif readable:
        cu_seqlens = call.cu_seqlens_k_new.tolist()
        if cu_seqlens[0] != 0 or sorted(cu_seqlens) != cu_seqlens:
            raise InvalidArgumentError(
                f"cu_seqlens_k_new is {cu_seqlens}; expected ascending offsets from 0"
            )
        if cu_seqlens[-1] != call.k.shape[0]:
            raise InvalidArgumentError(
                f"cu_seqlens_k_new ends at {cu_seqlens[-1]}; k has {call.k.shape[0]} tokens"
            )
        new = arguments.packed_lengths(call.cu_seqlens_k_new).tolist()
    else:
        new = []
    for b, ((_, used), more) in enumerate(
        zip(_used_rows(call, batch, readable), new, strict=False)
    ):
        if used + more > rows:
            raise InvalidArgumentError(
                f"k has {more} tokens for sequence {b}, whose cache_seqlens is {used}; k_cache has "
                f"{rows} rows"
            )


def _append(call: CacheCall, batch: int) -> None:
    """Writes k and v into the cache."""
    assert call.k is not None
    assert call.v is not None
    device = call.k_cache.device
    if call.cu_seqlens_k_new is None:
        new = call.k.shape[1]
        if isinstance(call.cache_seqlens, int) and call.cache_batch_idx is None:
            rows = slice(call.cache_seqlens, call.cache_seqlens + new)
            call.k_cache[:batch, rows] = call.k
            call.v_cache[:batch, rows] = call.v
            return
        sequence = torch.arange(batch, device=device)[:, None]
        row = torch.arange(new, device=device)[None]
    else:
        token = torch.arange(call.k.shape[0], device=device)
        # The sequence of a token is how many others have ended up to it.
        sequence = torch.bucketize(token, call.cu_seqlens_k_new[1:], right=True)
        row = token - call.cu_seqlens_k_new[sequence]
    start = call.cache_seqlens
    assert start is not None
    row = row + (start[sequence] if isinstance(start, Tensor) else start)
    if call.cache_batch_idx is not None:
        sequence = call.cache_batch_idx[sequence]
    call.k_cache[sequence.long(), row.long()] = call.k
    call.v_cache[sequence.long(), row.long()] = call.v


def _attend(call: CacheCall, batch: int, scores: Scores, own: dict[str, Any], dry: bool) -> Results:
    """The attention over the rows in use, those of k and v included."""
    k, v = call.k_cache, call.v_cache
    if call.cache_batch_idx is None:
        k, v = k[:batch], v[:batch]
    elif dry:  # of the copies that will be made, only shapes and strides are looked at
        k, v = (cache.new_empty((batch, *cache.shape[1:])) for cache in (k, v))
    else:
        k, v = (cache.index_select(0, call.cache_batch_idx) for cache in (k, v))
    used: Any = call.cache_seqlens
    if call.k is not None:
        more: Any = call.k.shape[1]
        if call.cu_seqlens_k_new is not None:
            more = arguments.packed_lengths(call.cu_seqlens_k_new)
        used = used + more
    if used is not None and not isinstance(used, Tensor):  # known here: a view says it
        k, v, used = k[:, :used], v[:, :used], None
    if isinstance(used, Tensor) and call.cache_leftpad is not None:
        used = used - call.cache_leftpad
    own = {**own, "seqused_k": used, "leftpad_k": call.cache_leftpad}
    names = ("q", "k_cache", "v_cache")
    if call.cu_seqlens_q is None:
        results = attend.quick(call.q, k, v, scores, own, dry)
        if results is not None:
            return results
        return attend.padded(call.q, k, v, scores, own, names, dry)
    lengths = Lengths(
        call.cu_seqlens_q,
        attend.even_lengths(batch, k.shape[1], k.device),
        call.max_seqlen_q,
        k.shape[1],
    )
    k, v = k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])
    return attend.packed(call.q, k, v, lengths, scores, own, names, dry)
