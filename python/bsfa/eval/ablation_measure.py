"""Calibration and measurement under any gate, by an attention function of their own.

Block maxima of 64x64 combine exactly into those of every coarser gate, so that one dense pass
calibrates them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from bsfa._core import Calibration, ThresholdTable, select_thresholds, version
from bsfa.errors import UnsupportedError
from bsfa.hf import models
from bsfa.identity import fingerprint
from bsfa.ops import run_attention

__all__ = ["Block", "Dense", "Measured", "Measurer", "one_per_head"]

NAME = "bsfa-ablation"
FINEST = (64, 64)
ROWS = 512
"""Rows of logits that are looked at together: they are wide."""

Block = tuple[int, int]
"""A gate block: query rows, keys."""
Layer = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, q, k, v [1, tokens, heads, head_dim], scale) -> out as q."""


@dataclass(frozen=True)
class Dense:
    """What dense attention says about a prompt."""

    best: Tensor
    """int64 [tokens]: the likeliest successor of each."""
    loss: float
    """Mean negative log-likelihood of the successors, nats."""


@dataclass(frozen=True)
class Measured:
    """What a table does to a prompt."""

    density: float
    """Kept over visible blocks of all layers and heads."""
    error: float
    """||out - dense|| / ||dense|| of one head's output for the same inputs; mean over layers and
    heads."""
    agreement: float
    """Share of tokens whose likeliest successor is that of dense attention."""
    perplexity_change: float
    """Perplexity over that of dense attention, less 1."""


@dataclass
class _Probe:
    """Runs instead of the model's attention."""

    layer: Layer
    calls: int = 0


# The attention function is registered once, and serves whichever probe is active.
_ACTIVE: list[_Probe] = []


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    probe = _ACTIVE[-1]
    index = probe.calls  # each probe sees one forward pass
    window = kwargs.get("sliding_window")
    for what, found in (
        ("a window", window is not None and window < key.shape[2]),
        ("a softcap", bool(kwargs.get("softcap"))),
        ("attention sinks", kwargs.get("s_aux") is not None),
        ("a mask", attention_mask is not None or query.shape[0] != 1),
    ):
        if found:
            raise UnsupportedError(
                f"layer {index} has {what}; ablations are for plain causal attention in all layers"
            )
    scale = kwargs.get("scaling")
    q, k, v = (t.transpose(1, 2).contiguous() for t in (query, key, value))
    probe.calls += 1
    return probe.layer(index, q, k, v, q.shape[-1] ** -0.5 if scale is None else scale), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda **_: None)


def coarser(block_max: Tensor, block: Block) -> Tensor:
    """Block maxima of 64x64, [..., q blocks, kv blocks], as those of a coarser gate."""
    rows, columns = block[0] // FINEST[0], block[1] // FINEST[1]
    pad = (0, -block_max.shape[-1] % columns, 0, -block_max.shape[-2] % rows)
    padded = F.pad(block_max, pad, value=-math.inf)
    return padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows)).amax(dim=(-3, -1))


def blocks_of(budget: int, block: Block) -> int:
    """Blocks of a gate that hold as many keys as budget blocks of 64."""
    return budget * 64 // block[1]


def one_per_head(table: ThresholdTable) -> ThresholdTable:
    """The table with one threshold for each head: the mean over its query blocks.

    Over the finite ones, so that blocks in which everything fits the budget are gated too.
    """
    values = torch.from_dlpack(table.values())
    finite = values.isfinite()
    count = finite.sum(dim=-1, keepdim=True)
    mean = torch.where(finite, values, 0).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, -math.inf).expand_as(values).contiguous()
    return ThresholdTable(
        mean,
        budgets=table.budgets,
        softmax_scale=table.softmax_scale,
        max_seqlen=table.max_seqlen,
        model=table.model,
        block=table.block,
        num_samples=table.num_samples,
        producer=table.producer,
    )


@dataclass
class Measurer:
    """One model under the ablations."""

    model: Any
    budgets: Sequence[int]
    """In blocks of 64 keys."""
    work: str
    """A folder: calibrated samples are kept there, so that an interruption loses one at most."""
    dense: dict[str, Dense] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = models.model_shape(self.model, counted=True)
        self.weights = fingerprint(self.model)
        self.device = self.model.get_input_embeddings().weight.device

    @contextlib.contextmanager
    def _probing(self, layer: Layer) -> Iterator[_Probe]:
        config = models.text_config(self.model)
        before = config._attn_implementation
        probe = _Probe(layer)
        _ACTIVE.append(probe)
        try:
            models.switch(self.model, config, NAME)
            with torch.inference_mode():
                yield probe
            if probe.calls == 0:
                raise UnsupportedError(
                    f"{type(self.model).__name__} does not take its attention from Transformers' "
                    "AttentionInterface, so its blocks cannot be seen"
                )
        finally:
            models.switch(self.model, config, before)
            _ACTIVE.pop()

    def _path(self, ids: Tensor, block: Block) -> str:
        digest = hashlib.sha256(ids.numpy().tobytes())
        known = (self.shape.name, self.weights, str(self.model.dtype), list(self.budgets))
        digest.update(repr(known).encode())
        name = f"{digest.hexdigest()[:16]}-{block[0]}x{block[1]}.partial"
        return os.path.join(self.work, name)

    def calibrate(self, ids: Tensor, blocks: Sequence[Block]) -> None:
        """One dense pass over a sample; its thresholds at each gate are kept in the folder."""
        missing = [block for block in blocks if not os.path.exists(self._path(ids, block))]
        if not missing:
            return
        parts = {block: self._part(block) for block in missing}
        for part in parts.values():
            part.begin_sample("sample", len(ids))
        # The finest gate only where it is needed: not every backend has it.
        gate = missing[0] if len(missing) == 1 else FINEST

        def layer(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            out = torch.empty_like(q)
            shape = [-(-len(ids) // size) for size in gate]
            maxima = q.new_empty((1, q.shape[2], *shape), dtype=torch.float32)
            run_attention(
                q, k, v, out, softmax_scale=scale, causal=True, block=gate, block_max=maxima
            )
            for block, part in parts.items():
                own = maxima if block == gate else coarser(maxima, block)
                own = own[0].contiguous()
                found = own.new_empty((len(self.budgets), *own.shape[:2]))
                stream = 0
                if own.is_cuda:
                    stream = torch.cuda.current_stream(own.device).cuda_stream
                select_thresholds(
                    torch.utils.dlpack.to_dlpack(own),
                    torch.utils.dlpack.to_dlpack(found),
                    budgets=[blocks_of(budget, block) for budget in self.budgets],
                    block=block,
                    stream=stream,
                )
                part.add(index, 0, len(ids), found.cpu())
            return out

        with self._probing(layer):
            self.model.get_decoder()(input_ids=ids[None].to(self.device), use_cache=False)
        for block, part in parts.items():
            part.end_sample()
            part.save(self._path(ids, block))

    def _part(self, block: Block) -> Calibration:
        return Calibration(
            budgets=[blocks_of(budget, block) for budget in self.budgets],
            softmax_scale=self.shape.softmax_scale,
            model=self.shape.name,
            num_layers=self.shape.num_layers,
            num_heads_q=self.shape.num_heads_q,
            block=block,
            producer=f"bsfa {version()} eval ablate",
            fingerprint=self.weights,
        )

    def table(self, samples: Sequence[Tensor], block: Block = (128, 64)) -> ThresholdTable:
        """The thresholds of some samples, all of them calibrated before."""
        total = self._part(block)
        # Of a prompt that comes twice there is one file, and it counts once.
        for path in dict.fromkeys(self._path(ids, block) for ids in samples):
            total.merge(Calibration.load(path))
        return total.finish()

    def look(self, ids: Tensor) -> tuple[Tensor, float]:
        """The likeliest successors, int64 [tokens], and the mean loss, of the model as it is."""
        logits = self.model(ids[None].to(self.device), use_cache=False).logits[0]
        best, loss = [], 0.0
        for start in range(0, len(ids), ROWS):
            rows = logits[start : start + ROWS].float()
            best.append(rows.argmax(dim=-1).cpu())
            targets = ids[start + 1 : start + ROWS + 1].to(rows.device)
            loss += F.cross_entropy(rows[: len(targets)], targets, reduction="sum").item()
        return torch.cat(best), loss / (len(ids) - 1)

    def reference(self, ids: Tensor) -> Dense:
        """Dense attention, by the same backend; computed once for each prompt."""
        key = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        if key not in self.dense:

            def layer(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
                out = torch.empty_like(q)
                run_attention(q, k, v, out, softmax_scale=scale, causal=True)
                return out

            with self._probing(layer):
                self.dense[key] = Dense(*self.look(ids))
        return self.dense[key]

    def measure(self, ids: Tensor, table: ThresholdTable, budget: int) -> Measured:
        """One prompt under a table; budget in blocks of 64 keys."""
        values = torch.from_dlpack(table.thresholds(blocks_of(budget, table.block)))
        counts = torch.zeros(2, dtype=torch.int64)
        errors: list[float] = []

        def layer(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            out, exact = torch.empty_like(q), torch.empty_like(q)
            kept = torch.empty((2, 1, q.shape[2]), dtype=torch.int64, device=q.device)
            run_attention(
                q,
                k,
                v,
                out,
                softmax_scale=scale,
                causal=True,
                block=table.block,
                thresholds=values[index].to(q.device),
                kept_blocks=kept[0],
                visible_blocks=kept[1],
            )
            run_attention(q, k, v, exact, softmax_scale=scale, causal=True)
            counts.add_(kept.sum(dim=(1, 2)).cpu())
            away = (out.float() - exact.float()).square().sum(dim=(0, 1, 3)).sqrt()
            size = exact.float().square().sum(dim=(0, 1, 3)).sqrt()
            errors.append((away / size.clamp(min=1e-30)).mean().item())
            return out

        reference = self.reference(ids)
        with self._probing(layer):
            best, loss = self.look(ids)
        return Measured(
            density=(counts[0] / counts[1]).item(),
            error=sum(errors) / len(errors),
            agreement=(best == reference.best).float().mean().item(),
            perplexity_change=math.expm1(loss - reference.loss),
        )
