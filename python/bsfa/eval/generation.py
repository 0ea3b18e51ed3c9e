"""Prompts of one length through the model, many at once: answers, density, time, memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsfa.errors import DeviceError, UnsupportedError
from bsfa.hf.models import state_of, text_config

__all__ = [
    "Answers",
    "PrefillTime",
    "answer",
    "attention_wrapped",
    "peak_memory",
    "reset_peak_memory",
    "timed_prefills",
]


@dataclass(frozen=True)
class Answers:
    """What a batch of prompts gave."""

    tokens: list[list[int]]
    """Generated, by prompt, up to the end-of-text token."""
    kept: Tensor | None
    """int64 [prompts, layers, query heads]: blocks kept in the prefill. None: bsfa did not run."""
    visible: Tensor | None
    """As kept; 0 where a layer fell back."""


def _counts(model: Any) -> tuple[Tensor | None, Tensor | None]:
    state = state_of(model)
    if state is None:
        return None, None
    return state.block_counts()


def _stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    stops = {tokenizer.eos_token_id}
    configured = getattr(model.generation_config, "eos_token_id", None)
    stops.update(configured if isinstance(configured, list) else [configured])
    return {stop for stop in stops if stop is not None}


@torch.inference_mode()
def _answer_batch(model: Any, ids: Tensor, stops: set[int], answer_tokens: int) -> Answers:
    """Answers to int64 [prompts, tokens]: the most likely token each time."""
    output = model(ids, use_cache=True, logits_to_keep=1)
    kept, visible = _counts(model)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    stop_ids = torch.tensor(sorted(stops), device=ids.device)
    chosen = []
    for step in range(answer_tokens):
        token = output.logits[:, -1].argmax(dim=-1)
        chosen.append(token)
        done |= torch.isin(token, stop_ids)
        # Asking whether all are done waits for the device: not at each step.
        if step + 1 == answer_tokens or (step % 4 == 3 and bool(done.all())):
            break
        output = model(token[:, None], past_key_values=output.past_key_values, use_cache=True)
    tokens = []
    for row in torch.stack(chosen, dim=1).tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        tokens.append(row[:end])
    return Answers(tokens, kept, visible)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answer_tokens: int,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """The model's answers to prompts of one length.

    batch: prompts at once; None: all of them on a GPU, halved while they do not fit in its memory,
    one on the CPU. progress: called with the prompts that are done.
    """
    stops = _stop_tokens(model, tokenizer)
    on_gpu = model.device.type == "cuda"
    size = batch if batch is not None else (len(prompts) if on_gpu else 1)
    parts: list[Answers] = []
    first = 0
    while first < len(prompts):
        ids = torch.tensor(prompts[first : first + size], device=model.device)
        try:
            parts.append(_answer_batch(model, ids, stops, answer_tokens))
        except torch.cuda.OutOfMemoryError as error:
            if size == 1:
                raise DeviceError(f"one prompt of {ids.shape[1]} tokens: {error}") from error
            size = (min(size, len(ids)) + 1) // 2
        else:
            first += len(ids)
            if progress is not None:
                progress(first)
            continue
        torch.cuda.empty_cache()  # outside of the handler, which keeps tensors alive
    counts = [
        None
        if any(part is None for part in found)
        else torch.cat([p for p in found if p is not None])
        for found in ([part.kept for part in parts], [part.visible for part in parts])
    ]
    return Answers([row for part in parts for row in part.tokens], *counts)


@dataclass(frozen=True)
class PrefillTime:
    """One prompt, read."""

    ttft_s: float
    """From the prompt to the choice of the first token."""
    attention_s: float
    """Of that, attention, summed over the layers; on a GPU by events on its stream, so that where
    the device waits for the host, waiting counts."""


class _AttentionTimer:
    """Stands in for the attention function of a model and adds up its time."""

    def __init__(self, function: Callable[..., Any], on_gpu: bool) -> None:
        self._function = function
        self._on_gpu = on_gpu
        self._spans: list[tuple[Any, Any]] = []

    def __call__(self, module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        begin, end = self._mark(), None
        try:
            return self._function(module, query, *args, **kwargs)
        finally:
            end = self._mark()
            self._spans.append((begin, end))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Seconds since the last take; the device must be idle."""
        spans, self._spans = self._spans, []
        if self._on_gpu:
            return sum(begin.elapsed_time(end) for begin, end in spans) / 1e3
        return sum(end - begin for begin, end in spans)


def _eager(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The function that each model defines beside its layers, and that is registered nowhere."""
    for base in type(module).__mro__:
        function = getattr(sys.modules.get(base.__module__), "eager_attention_forward", None)
        if function is not None:
            return function(module, *args, **kwargs)
    raise UnsupportedError(f"{type(module).__name__} has no eager attention to time")


@contextlib.contextmanager
def attention_wrapped(
    model: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[Any]:
    """While it lasts, the model's layers call wrap(their attention function)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = text_config(model)._attn_implementation
    registered = name in ALL_ATTENTION_FUNCTIONS
    wrapped = wrap(ALL_ATTENTION_FUNCTIONS[name] if registered else _eager)
    ALL_ATTENTION_FUNCTIONS[name] = wrapped  # over what is registered for all
    try:
        yield wrapped
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]


@torch.inference_mode()
def timed_prefills(
    model: Any, prompts: Sequence[Sequence[int]], warm_up: int
) -> tuple[list[PrefillTime], int]:
    """Reads prompts one by one; the first `warm_up` of them are not counted.

    Returns the times and the peak memory in bytes.
    """
    on_gpu = model.device.type == "cuda"
    times = []
    reset_peak_memory(model.device)
    with attention_wrapped(model, lambda function: _AttentionTimer(function, on_gpu)) as timer:
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([list(prompt)], device=model.device)
            if on_gpu:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            logits = model(ids, use_cache=True, logits_to_keep=1).logits
            logits[0, -1].argmax().item()  # waits for the device
            seconds = time.perf_counter() - begin
            if on_gpu:
                torch.cuda.synchronize()
            attention = timer.take()
            if index >= warm_up:
                times.append(PrefillTime(seconds, attention))
    return times, peak_memory(model.device)


def reset_peak_memory(device: torch.device) -> None:
    """Starts to watch for the peak anew, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device: torch.device) -> int:
    """Bytes since the reset: of the device's allocations; on the CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
