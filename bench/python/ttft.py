"""Time to first token of a Llama-3.1-8B (random weights, bf16) with each way of attending.

    python3 bench/python/ttft.py --out ttft.jsonl [--seconds 240] [--stages 8192:10,32768:10,...]
    python3 bench/python/ttft.py --out ttft.jsonl --summary

Contestants take turns in one process, in rotating order; what differs between them is the attention
alone. Every sample is one line of the file, written when it is there: a run that is cut short, or
started again, goes on with what is missing. A sample is the time from the prompt on the device to
the choice of the next token (logits of the last token only, keys and values cached), and the part
of it between the events around the attention calls.

flash2 and cudnn are PyTorch's, each forced, with grouped queries native. gated D is the method at
thresholds calibrated on other random tokens for a density near D; what it kept is in the sample.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import transformers
from common import LLAMA_8B, add_dirty, setting, source, synchronize
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

import bsfa
from bsfa.hf.attention import attention_forward

DENSITIES = (0.5, 0.24, 0.1)
CONTESTANTS = ("flash2", "cudnn", "dense", *(f"gated {d}" for d in DENSITIES))
# Ordered so that whatever a time limit cuts off is missed least: at least so many samples each.
STAGES = "8192:10,32768:4,131072:1,16384:10,65536:1,131072:3,32768:10,65536:3"
SHAPE = {
    **LLAMA_8B,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}

# What PyTorch has, under names of which Transformers does not think that they are packages.
PEERS = {
    "flash2": ("bench_torch_2", SDPBackend.FLASH_ATTENTION),
    "cudnn": ("bench_torch_cudnn", SDPBackend.CUDNN_ATTENTION),
}

_events = []


def timed(function):
    """The attention function between two events of the current stream."""

    def run(module, query, *arguments, **kwargs):
        if query.device.type != "cuda":
            return function(module, query, *arguments, **kwargs)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = function(module, query, *arguments, **kwargs)
        end.record()
        _events.append((begin, end))
        return result

    return run


def pytorch(backend):
    """PyTorch's attention by this backend and no other."""

    def attend(module, query, key, value, mask, scaling=None, **kwargs):
        assert mask is None
        with sdpa_kernel([backend]):
            out = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        return out.transpose(1, 2).contiguous(), None

    return attend


def register(device):
    """Makes the contestants known to Transformers, each between events."""
    for name, backend in PEERS.values():
        backend = backend if device == "cuda" else SDPBackend.MATH  # only to rehearse
        AttentionInterface.register(name, timed(pytorch(backend)))
    AttentionInterface.register("bsfa", timed(attention_forward))


def make_model(device, layers):
    """Fresh weights on the device, as the configuration initialises them."""
    config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": layers})
    if device == "cpu":
        config.hidden_size, config.intermediate_size, config.vocab_size = 256, 512, 1024
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 64
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def prompt(model, length, seed):
    """Random tokens, int64 [1, length]."""
    generator = torch.Generator(model.device).manual_seed(seed)
    vocabulary = model.config.vocab_size
    return torch.randint(0, vocabulary, (1, length), generator=generator, device=model.device)


def budget_for(density, length):
    """The budget whose predicted density is nearest."""
    return min(
        range(1, length // 64), key=lambda k: abs(bsfa.predicted_density(k, length) - density)
    )


def attend_by(model, contestant, table, length):
    """Switches the model; not timed."""
    if contestant in PEERS:
        if model.config._attn_implementation == "bsfa":
            bsfa.disable(model)
        model.set_attn_implementation(PEERS[contestant][0])
    elif contestant == "dense":
        bsfa.enable(model, mode="dense")
    else:
        density = float(contestant.split()[1])
        bsfa.enable(model, table, budget_for(density, length), mode="threshold")


def sample(model, contestant, table, ids):
    """One prefill: seconds, seconds of attention, density, bytes."""
    attend_by(model, contestant, table, ids.shape[1])
    on_gpu = model.device.type == "cuda"
    _events.clear()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    synchronize(model.device)
    begin = time.perf_counter()
    result = model(ids, use_cache=True, logits_to_keep=1)
    token = int(result.logits[0, -1].argmax())  # waits for the device
    seconds = time.perf_counter() - begin
    del result
    line = {
        "length": ids.shape[1],
        "contestant": contestant,
        "seconds": seconds,
        "attention_seconds": sum(b.elapsed_time(e) for b, e in _events) / 1e3,
        "token": token,
    }
    if on_gpu:
        line["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    if contestant not in PEERS:
        stats = bsfa.stats(model)
        assert not stats.fallbacks, stats
        line["density"] = stats.density
        if contestant != "dense":
            line["budget"] = stats.budget
            line["predicted_density"] = bsfa.predicted_density(stats.budget, ids.shape[1])
    return line


def warm_up(model, contestant, table, ids):
    """Kernels, plans and the allocator at this length: all of a short prompt, else of one layer."""
    if ids.shape[1] <= 8192:
        sample(model, contestant, table, ids)
        return
    attend_by(model, contestant, table, ids.shape[1])
    layers = model.config.num_hidden_layers
    model.config.num_hidden_layers = 1
    model(ids, use_cache=True, logits_to_keep=1)
    model.config.num_hidden_layers = layers


def calibrated(model, lengths, report):
    """One dense pass over random tokens of the greatest length, for the budgets of all lengths."""
    budgets = sorted({budget_for(d, n) for n in lengths for d in DENSITIES})
    longest = max(lengths)
    synchronize(model.device)
    begin = time.perf_counter()
    table = bsfa.calibrate(model, [prompt(model, longest, seed=1)[0].cpu()], budgets=budgets)
    seconds = time.perf_counter() - begin
    report({"calibration": {"length": longest, "budgets": budgets, "seconds": seconds}})
    return table


def check(model, table, length, report):
    """Before anything is timed: the logits agree as far as bf16 does."""
    ids = prompt(model, length, seed=3)
    logits = {}
    for contestant in CONTESTANTS:
        attend_by(model, contestant, table, length)
        logits[contestant] = model(ids, logits_to_keep=1).logits[0, -1].float()
    spread = logits["flash2"].std()
    errors = {n: ((x - logits["flash2"]).abs().max() / spread).item() for n, x in logits.items()}
    report({"check": {"length": length, "largest_difference_over_spread": errors}})
    for name in ("cudnn", "dense"):
        assert errors[name] < 0.5, errors


def read(path):
    """The lines of the file that are whole: one that was cut while it was written is not."""
    lines = []
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
    return lines


def summarise(lines):
    """A table: medians in seconds, spread, and how many times as fast as the others."""
    samples = {}
    for line in lines:
        if "contestant" in line:
            samples.setdefault(line["length"], {}).setdefault(line["contestant"], []).append(line)
    print(
        "| tokens | attention by | samples | density | TTFT s (min..max) | attention s | share | "
        "over flash2 | over cudnn | over dense |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length, by_name in sorted(samples.items()):
        seconds = {
            name: statistics.median(s["seconds"] for s in group) for name, group in by_name.items()
        }
        for name in CONTESTANTS:
            if name not in by_name:
                continue
            group = by_name[name]
            attention = statistics.median(s["attention_seconds"] for s in group)
            all_seconds = [s["seconds"] for s in group]
            density = f"{group[0]['density']:.3f}" if "density" in group[0] else ""
            ratios = [
                f"{seconds[peer] / seconds[name]:.2f}" if peer in seconds else ""
                for peer in ("flash2", "cudnn", "dense")
            ]
            print(
                f"| {length} | {name} | {len(group)} | {density} | {seconds[name]:.3f} "
                f"({min(all_seconds):.3f}..{max(all_seconds):.3f}) | {attention:.3f} | "
                f"{attention / seconds[name]:.2f} | {' | '.join(ratios)} |"
            )


@torch.inference_mode()
def measure(options, made_from):
    """Stage by stage, until all is there or the time is over."""
    start = time.monotonic()
    stages = [tuple(map(int, stage.split(":"))) for stage in options.stages.split(",")]
    done = {}
    for line in read(options.out):
        if "contestant" in line:
            key = (line["length"], line["contestant"])
            done[key] = done.get(key, 0) + 1
    torch.backends.cuda.matmul.allow_tf32 = False
    with open(options.out, "a+") as file:
        file.seek(0)
        if not file.read().endswith("\n") and file.tell() > 0:
            file.write("\n")  # after a line that was cut

        def report(line):
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), file=sys.stderr, flush=True)

        register(options.device)
        model = make_model(options.device, options.layers)
        report(
            {
                **setting(model.device, made_from),
                "layers": options.layers,
                "made_model_seconds": time.monotonic() - start,
            }
        )
        table = calibrated(model, [length for length, _ in stages], report)
        check(model, table, min(length for length, _ in stages), report)
        warm = set()
        for length, wanted in stages:
            ids = prompt(model, length, seed=2)
            for round_ in range(wanted):
                shift = round_ % len(CONTESTANTS)
                for contestant in CONTESTANTS[shift:] + CONTESTANTS[:shift]:
                    if done.get((length, contestant), 0) > round_:
                        continue
                    if (length, contestant) not in warm:
                        warm.add((length, contestant))
                        warm_up(model, contestant, table, ids)
                    last = done.get(("seconds", length, contestant), 0)
                    if time.monotonic() - start + last > options.seconds:
                        report({"stopped_after_seconds": time.monotonic() - start})
                        return
                    line = sample(model, contestant, table, ids)
                    line["round"] = round_
                    report(line)
                    done[length, contestant] = done.get((length, contestant), 0) + 1
                    done["seconds", length, contestant] = line["seconds"]


def main():
    """Measures, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="file of JSON lines, added to")
    parser.add_argument("--stages", default=STAGES, help="LENGTH:SAMPLES,...")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cuda", help="cpu only rehearses, on a tiny model")
    parser.add_argument("--summary", action="store_true", help="only print the table of the file")
    add_dirty(parser)
    options = parser.parse_args()
    if not options.summary:
        measure(options, source(__file__, options.dirty))
    summarise(read(options.out))


if __name__ == "__main__":
    main()
