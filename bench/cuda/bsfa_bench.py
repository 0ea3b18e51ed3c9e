"""The library through its Python package on torch tensors, the data, and the way to time."""

import math
import pathlib
import statistics
import subprocess
import sys

import torch

import bsfa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from source_tree import add_dirty, record  # noqa: E402

__all__ = [
    "add_dirty",
    "check_kept",
    "cudnn",
    "driver",
    "flash2",
    "interleaved",
    "make_call",
    "make_select",
    "median",
    "random_data",
    "source",
    "structured_data",
    "tflops",
    "use_backend",
]

_workspace = None
_backend = ""


def source(script, dirty):
    """What a results file says of its source; ends the program if it may not be written."""
    return record(script, dirty, package=bsfa._core.source_tree())


def driver():
    """The version of the card's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def use_backend(name):
    """For all later calls; empty: the library chooses."""
    global _backend
    _backend = name


def make_call(q, k, v, out, causal=True, **optional):
    """A call that can be repeated: [1, seqlen, heads, head_dim] tensors; results without batch axis."""
    global _workspace
    if _workspace is None:
        _workspace = torch.empty(16 << 20, dtype=torch.uint8, device="cuda")
    for name in ("lse", "kept_blocks", "visible_blocks", "block_max"):
        if name in optional:
            optional[name] = optional[name].unsqueeze(0)
    arguments = {
        "causal": causal,
        "backend": _backend,
        "workspace": _workspace,
        **optional,
        "stream": torch.cuda.current_stream().cuda_stream,
    }

    def run():
        bsfa.attention_forward(q, k, v, out, **arguments)

    return run


def make_select(block_max, thresholds, budgets):
    arguments = {"budgets": budgets, "stream": torch.cuda.current_stream().cuda_stream}

    def run():
        bsfa.select_thresholds(block_max, thresholds, **arguments)

    return run


def random_data(n, heads_q, heads_kv, dim, dtype, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = lambda heads: torch.randn(  # noqa: E731
        1, n, heads, dim, device="cuda", generator=generator
    ).to(dtype)
    return shape(heads_q), shape(heads_kv), shape(heads_kv)


def structured_data(n, heads_q, heads_kv, dim, dtype, seed=0):
    """Sinks at the start, locality, and a few heavy stretches, of strengths that differ by head."""
    generator = torch.Generator("cuda").manual_seed(seed)
    randn = lambda *s: torch.randn(*s, device="cuda", generator=generator)  # noqa: E731
    q, k, v = randn(1, n, heads_q, dim), randn(1, n, heads_kv, dim), randn(1, n, heads_kv, dim)
    sink = randn(heads_kv, dim)
    sink = sink / sink.norm(dim=-1, keepdim=True)
    # Keys of one stretch of 128 tokens share a direction, and later queries take one up at times.
    topics = randn(n // 128, heads_kv, dim)
    topics = topics / topics.norm(dim=-1, keepdim=True)
    k += 3 * topics.repeat_interleave(128, 0)[None, :n]
    k[:, :64] += 6 * sink
    group = heads_q // heads_kv
    strength = torch.linspace(1, 6, heads_q, device="cuda")[None, None, :, None]
    stretch = torch.arange(n // 128, device="cuda")
    back = (torch.rand(n // 128, device="cuda", generator=generator) ** 4 * stretch).long()
    taken = topics[stretch - back].repeat_interleave(128, 0).repeat_interleave(group, 1)
    q += strength * taken[None] + 2 * sink.repeat_interleave(group, 0)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def check_kept(kept, visible, block_max, thresholds):
    """Counts by head [heads] against what the maxima [heads, q blocks, kv blocks] leave no choice of.

    Causal, from position 0, gate 128x64. A block whose maximum is within a rounding band of its
    threshold may go either way.
    """
    _, q_blocks, _ = block_max.shape
    least, most = torch.zeros_like(kept), torch.zeros_like(kept)
    for i in range(q_blocks):
        gated, threshold = block_max[:, i, : 2 * i], thresholds[:, i : i + 1]
        band = torch.where(threshold.isfinite(), 1e-5 * threshold.abs(), 0)
        least += 2 + (gated > threshold + band).sum(1)  # the two of the diagonal are always kept
        most += 2 + (gated >= threshold - band).sum(1)
    assert (visible == q_blocks * (q_blocks + 1)).all(), f"visible blocks by head: {visible}"
    assert ((least <= kept) & (kept <= most)).all(), f"kept by head {kept}, not {least} to {most}"


def interleaved(contenders, samples=7, burst_ms=12.0, warm=2):
    """{name: milliseconds a call, one for each sample}, contenders in rotating order."""
    names = list(contenders)
    calls = {}
    for name in names:  # how many calls fill a burst
        for _ in range(warm):
            contenders[name]()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        contenders[name]()
        stop.record()
        stop.synchronize()
        calls[name] = max(1, math.ceil(burst_ms / start.elapsed_time(stop)))
    times = {name: [] for name in names}
    for sample in range(samples):
        shift = sample % len(names)
        for name in names[shift:] + names[:shift]:
            start = torch.cuda.Event(enable_timing=True)
            stop = torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(calls[name]):
                contenders[name]()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop) / calls[name])
    return times


def median(values):
    return statistics.median(values)


def tflops(n, heads, dim, ms, causal=True):
    return 4 * n * n * dim * heads / (2 if causal else 1) / ms / 1e9


def cudnn(q, k, v, causal=True):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    a, b, c = (t.transpose(1, 2) for t in (q, k, v))

    def run():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                a, b, c, is_causal=causal, enable_gqa=a.shape[1] != b.shape[1]
            )

    return run


def flash2(q, k, v, causal=True):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    a, b, c = (t.transpose(1, 2) for t in (q, k, v))

    def run():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                a, b, c, is_causal=causal, enable_gqa=a.shape[1] != b.shape[1]
            )

    return run
