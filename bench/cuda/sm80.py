"""cuda-sm80 against FlashAttention-2 (PyTorch), dense, gated and calibrating, in one process.

    python3 bench/cuda/sm80.py --out results.json 8,128,bf16 32,128,bf16 16,64,fp16

Each case is K tokens, head_dim, dtype; batch 1, 32 query and 8 key/value heads, causal, random data.
A sample is the larger of one call and 12 ms of calls, in 7 rounds of rotating order. Before they are
timed, results are compared with FlashAttention-2's, and counts of kept blocks with the block maxima.
"""

import argparse
import datetime
import json
import math
import statistics

import bsfa_bench as bench
import torch

HEADS_Q, HEADS_KV = 32, 8
DENSITIES = [0.5, 0.24, 0.1]


def thresholds_for(block_max, densities):
    """Tables that keep a share of the visible blocks, those on the diagonal included."""
    heads, q_blocks, kv_blocks = block_max.shape
    i = torch.arange(q_blocks, device="cuda")
    before = torch.arange(kv_blocks, device="cuda")[None] < 2 * i[:, None]
    tables = [torch.empty(heads, q_blocks, device="cuda") for _ in densities]
    for head in range(heads):
        ordered = block_max[head].masked_fill(~before, -math.inf).sort(1, descending=True).values
        for table, density in zip(tables, densities):
            keep = (density * (2 * i + 2) - 2).round().clamp(min=0).long()
            above = ordered.gather(1, (keep - 1).clamp(min=0)[:, None])[:, 0]
            below = ordered.gather(1, keep.clamp(max=kv_blocks - 1)[:, None])[:, 0]
            between = torch.where(below.isinf(), above - 1, (above + below) / 2)
            table[head] = torch.where(keep == 0, math.inf, between)
    return tables


def run_case(n, dim, dtype):
    q, k, v = bench.random_data(n, HEADS_Q, HEADS_KV, dim, dtype)
    out = torch.empty_like(q)
    kept = torch.zeros(HEADS_Q, dtype=torch.int64, device="cuda")
    visible = torch.zeros_like(kept)
    block_max = torch.empty(HEADS_Q, n // 128, n // 64, device="cuda")
    flash2 = bench.flash2(q, k, v)
    dense = bench.make_call(q, k, v, out)
    calibrating = bench.make_call(q, k, v, out, block_max=block_max)
    calibrating()
    tables = thresholds_for(block_max, DENSITIES)
    tables.insert(0, torch.full_like(tables[0], -1e30))
    tables.append(torch.full_like(tables[0], math.inf))
    names = ["gated, all kept"] + [f"gated, {x}" for x in DENSITIES] + ["gated, diagonal"]
    gated = {
        name: bench.make_call(
            q, k, v, out, thresholds=table, kept_blocks=kept, visible_blocks=visible
        )
        for name, table in zip(names, tables)
    }
    reference = flash2().transpose(1, 2).float()
    for name, run in {
        "dense": dense,
        "calibrating": calibrating,
        names[0]: gated[names[0]],
    }.items():
        out.fill_(math.nan)
        run()
        error = ((out.float() - reference).norm() / reference.norm()).item()
        if not error < (4e-3 if dtype == torch.bfloat16 else 5e-4):
            raise SystemExit(f"{name} differs from FlashAttention-2 by {error}")
    density = {}
    for (name, run), table in zip(gated.items(), tables):
        run()
        bench.check_kept(kept, visible, block_max, table)
        density[name] = (kept.sum() / visible.sum()).item()

    times = bench.interleaved(
        {"FlashAttention-2": flash2, "dense": dense, "calibrating": calibrating, **gated}
    )
    median = {name: statistics.median(samples) for name, samples in times.items()}
    flops = 2 * n * n * dim * HEADS_Q
    kind = str(dtype).removeprefix("torch.")
    print(f"{n} tokens, head_dim {dim}, {kind}", flush=True)
    for name, ms in median.items():
        spread = (max(times[name]) - min(times[name])) / ms
        line = (
            f"  {name:17} {ms:9.3f} ms  +-{100 * spread:2.0f} %  {flops / ms / 1e9:4.0f} TFLOP/s"
            f"  x FlashAttention-2 {median['FlashAttention-2'] / ms:.3f}"
        )
        if name in density:
            share = median["dense"] / ms * (1 + density[name]) / 2
            line += f"  density {density[name]:.3f}, of the limit over dense {share:.3f}"
        print(line, flush=True)
    return {
        "tokens": n,
        "head_dim": dim,
        "dtype": kind,
        "ms": times,
        "median_ms": median,
        "density": density,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="+", help="K tokens,head_dim,bf16|fp16")
    parser.add_argument("--out", help="results as JSON")
    bench.add_dirty(parser)
    arguments = parser.parse_args()
    made_from = bench.source(__file__, arguments.dirty) if arguments.out else None
    bench.use_backend("cuda-sm80")
    results = []
    for case in arguments.case:
        tokens, dim, dtype = case.split(",")
        results.append(
            run_case(
                1024 * int(tokens), int(dim), {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
            )
        )
        torch.cuda.empty_cache()
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(
                {
                    **made_from,
                    "date": datetime.date.today().isoformat(),
                    "device": torch.cuda.get_device_name(),
                    "driver": bench.driver(),
                    "torch": torch.__version__,
                    "cuda": torch.version.cuda,
                    "protocol": "samples of the larger of one call and 12 ms, 7 rounds in rotating order",
                    "results": results,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
