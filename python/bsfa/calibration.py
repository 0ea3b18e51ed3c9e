"""Thresholds for a Transformers model: one pass over some texts for any number of budgets."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsfa import _core
from bsfa._core import Calibration, ThresholdTable, same_file, select_thresholds, version
from bsfa.errors import InvalidArgumentError, OtherModelWarning
from bsfa.files import beside, check_writable
from bsfa.hf.masks import MaskPlan
from bsfa.hf.models import (
    MIN_QUERIES,
    decoder_of,
    installed,
    model_shape,
    previous_of,
    text_config,
)
from bsfa.hf.state import Settings, State
from bsfa.identity import fingerprint
from bsfa.text import path_text, printable, quote_path, shown

__all__ = ["Sample", "calibrate", "read_samples"]

DEFAULT_BUDGETS = (32, 64, 96, 128)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sample:
    """A text, and what messages call it."""

    name: str
    text: str


def read_samples(paths: Sequence[str | os.PathLike[str]]) -> list[Sample]:
    """Texts from files, and from the files of folders (not those whose names begin with a dot).

    By suffix, in upper or lower case: plain text (.txt, .text, .md, .rst or none), one sample a
    file; .json, a list of samples; .jsonl or .ndjson, a sample a line. A sample in JSON is a
    string, or an object with the string "input_text" (the published format). Everything else is
    refused, naming the file and the place in it.
    """
    return [Sample(name, text) for name, text in _core.read_samples([os.fspath(p) for p in paths])]


def _one_sequence(name: str, item: Any) -> Tensor:
    """int64 [tokens] of token ids [tokens] or [1, tokens]."""
    name = printable(name, 200)
    try:
        ids = torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{name} is of type {type(item).__name__}; accepted: a text, or token ids"
        ) from error
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise InvalidArgumentError(
            f"{name} has token ids of shape {list(ids.shape)}; accepted: [tokens] or [1, tokens], "
            "one sequence a sample"
        )
    if len(ids) > 0 and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise InvalidArgumentError(f"{name} has token ids of {ids.dtype}; accepted: whole numbers")
    return ids.to(torch.int64)


def _token_ids(
    data: Sequence[Sample | str | Tensor | Sequence[int]], tokenizer: Any, max_seqlen: int | None
) -> list[tuple[str, Tensor]]:
    """(name, int64 [tokens]) of every sample, cut to max_seqlen."""
    if isinstance(data, (str, bytes, os.PathLike)):
        raise InvalidArgumentError(
            f"data is of type {type(data).__name__}; expected a list of samples (read_samples "
            "reads files)"
        )
    tokens = []
    for index, item in enumerate(data):
        name = f"sample {index}"
        if isinstance(item, Sample):
            name, item = printable(item.name, 200), item.text
        if isinstance(item, str):
            if tokenizer is None:
                raise InvalidArgumentError(
                    f"{name} is text and tokenizer is missing; give the model's, or token ids"
                )
            item = tokenizer(item, return_tensors="pt", verbose=False)["input_ids"]
        ids = _one_sequence(name, item)[:max_seqlen]
        if len(ids) < MIN_QUERIES:
            raise InvalidArgumentError(
                f"{name} has {len(ids)} tokens; accepted: {MIN_QUERIES} or more"
            )
        tokens.append((name, ids))
    if not tokens:
        raise InvalidArgumentError("data has no samples; accepted: one or more")
    return tokens


def _digest(tokens: list[tuple[str, Tensor]], *settings: Any) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for _, ids in tokens:
        digest.update(ids.numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:12]


class _Collector:
    """Takes the block maxima of each layer out of the forward pass of a sample."""

    def __init__(self, calibration: Calibration, budgets: list[int], heads: int) -> None:
        self.calibration = calibration
        self.budgets = budgets
        self.heads = heads
        self.ungated: set[int] = set()
        self._selected: list[tuple[int, int, Tensor]] = []

    def __call__(
        self, layer: int | None, plan: MaskPlan | None, block_max: Tensor | None, rows: int
    ) -> None:
        """block_max: float32 [1, heads, q blocks, kv blocks]; None where the gate cannot be."""
        if layer is None:
            raise InvalidArgumentError(
                "the model makes attention calls in this pass that it did not make in a short one; "
                "thresholds cannot be indexed by them"
            )
        if block_max is None:
            # A windowed layer, or one that fell back: it stays as it is.
            self.ungated.add(layer)
            thresholds = torch.full((len(self.budgets), self.heads, -(-rows // 128)), -torch.inf)
        else:
            thresholds = block_max.new_empty((len(self.budgets), *block_max.shape[1:3]))
            stream = 0
            if block_max.is_cuda:
                stream = torch.cuda.current_stream(block_max.device).cuda_stream
            select_thresholds(
                torch.utils.dlpack.to_dlpack(block_max[0]),
                torch.utils.dlpack.to_dlpack(thresholds),
                budgets=self.budgets,
                stream=stream,
            )
        self._selected.append((layer, rows, thresholds))

    def end_sample(self) -> None:
        """Gives the sample to the calibration: the one place that waits for the device."""
        for layer, rows, thresholds in self._selected:
            self.calibration.add(layer, 0, rows, thresholds.cpu())
        self.calibration.end_sample()
        self._selected.clear()

    def drop_sample(self) -> None:
        """Forgets the sample under way."""
        self.calibration.drop_sample()
        self._selected.clear()


def _resume(calibration: Calibration, path: str, allow_other_model: bool) -> None:
    """Takes the sums of an interrupted calibration, if they are of these weights."""
    interrupted = Calibration.load(path)
    if calibration.fingerprint and not interrupted.fingerprint and not allow_other_model:
        warnings.warn(
            f"{path_text(path)}, the sums of an interrupted calibration, does not say of which "
            "weights they are; they are taken for this model's, and the thresholds will not say it "
            "either (remove the file to begin anew)",
            OtherModelWarning,
            stacklevel=3,
        )
    try:
        calibration.merge(interrupted, allow_other_model=allow_other_model)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{path_text(path)}, the sums of an interrupted calibration: {error}; remove the file "
            "to begin anew"
        ) from error


def calibrate(
    model: Any,
    data: Sequence[Sample | str | Tensor | Sequence[int]],
    *,
    tokenizer: Any = None,
    budgets: Sequence[int] = DEFAULT_BUDGETS,
    max_seqlen: int | None = None,
    recommend: int | None = None,
    model_name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    partial: str | os.PathLike[str] | None = None,
    compute_type: str = "native",
    backend: str = "",
    allow_other_model: bool = False,
    progress: Progress | None = None,
) -> ThresholdTable:
    """Calibrates thresholds in one dense pass over the samples.

    Args:
        model: a causal language model of Transformers 5; its attention is as before afterwards.
        data: texts (`read_samples` reads them from files), or token ids.
        tokenizer: the model's; needed for texts.
        budgets: key/value blocks kept beside the diagonal, any number of them.
        max_seqlen: cut samples to so many tokens.
        recommend: the budget that is used where none is named; one of budgets.
        model_name: in the file; default the name or path that the model was loaded from.
        out: threshold file to write. While the calibration runs, its sums are kept beside it, and
            an interrupted calibration that is started again with the same arguments goes on there.
        partial: also write the sums, for `thresholds merge`.
        compute_type: native, float32 or bfloat16.
        backend: a name from `bsfa.backends()`; empty: the best.
        allow_other_model: go on with the sums of an interrupted calibration although the weights
            are others now; the thresholds then name no weights.
        progress: called with (samples done, samples, name of the next).

    Layers that the gate does not serve (the model's own window) get -inf: dense.
    """
    budgets = sorted(set(budgets))
    if recommend is not None and recommend not in budgets:
        raise InvalidArgumentError(
            f"recommend is {shown(recommend)}; accepted: one of budgets {budgets}"
        )
    if max_seqlen is not None and max_seqlen < MIN_QUERIES:
        raise InvalidArgumentError(
            f"max_seqlen is {shown(max_seqlen)}; accepted: {MIN_QUERIES} or more"
        )
    for name, target in (("out", out), ("partial", partial)):
        if target is not None:
            check_writable(name, target)
    if out is not None and partial is not None and same_file(out, partial):
        raise InvalidArgumentError(
            f"out and partial are one file, {quote_path(os.fspath(partial))}; its sums would be "
            "lost"
        )
    tokens = _token_ids(data, tokenizer, max_seqlen)
    shape = model_shape(model, counted=True)
    calibration = Calibration(
        budgets=budgets,
        softmax_scale=shape.softmax_scale,
        model=model_name or shape.name,
        num_layers=shape.num_layers,
        num_heads_q=shape.num_heads_q,
        producer=f"bsfa {version()} with transformers",
        recommended_budget=recommend,
        fingerprint=fingerprint(model),
    )
    resume = None
    if out is not None:
        key = _digest(tokens, calibration.model, budgets, str(model.dtype), compute_type)
        resume = beside(os.fspath(out), f".{key}.partial")
        if os.path.exists(resume):
            _resume(calibration, resume, allow_other_model)

    collector = _Collector(calibration, budgets, shape.num_heads_q)
    weights = model.get_input_embeddings().weight
    # Weights that are elsewhere until they are needed bring what they are given to their device.
    device = torch.device("cpu") if weights.is_meta else weights.device
    # Not `enable`: the environment and an earlier table have no say here.
    state = State(
        Settings(shape, "dense", None, None),
        previous_of(model),
        shape,
        text_config(model),
        compute_type,
        backend,
    )
    state.observer = collector
    with installed(model, state), torch.inference_mode():
        for index in range(calibration.num_samples, len(tokens)):
            name, ids = tokens[index]
            if progress is not None:
                progress(index, len(tokens), name)
            calibration.begin_sample(name, len(ids))
            try:
                decoder_of(model)(input_ids=ids[None].to(device), use_cache=False)
                collector.end_sample()
                if len(collector.ungated) == shape.num_layers:  # the next samples are no better
                    raise InvalidArgumentError(
                        f"{shape.name} has no layer that the gate serves; nothing was calibrated"
                    )
            except BaseException:
                collector.drop_sample()
                raise
            if resume is not None:
                calibration.save(resume)
    if progress is not None:
        progress(len(tokens), len(tokens), "")
    table = calibration.finish()
    if partial is not None:
        calibration.save(os.fspath(partial))
    if out is not None:
        table.save(os.fspath(out))
        if resume is not None and os.path.exists(resume):
            os.unlink(resume)
    return table
