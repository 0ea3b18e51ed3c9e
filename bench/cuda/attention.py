"""Times the CUDA kernels against cuDNN (through PyTorch) and against their own dense form.

Causal prefill, batch 1, 32 query and 8 key/value heads. Contenders take turns in one process; a
sample is the larger of one call and 12 ms of calls; the figure is the median of the samples, with
the spread (max - min over median). Before it is timed, each form is compared with cuDNN or, where
it is gated, its count of kept blocks with the maxima that the calibrating form found, and with every
block kept its output with the dense form's.

  python3 bench/cuda/attention.py --out results.json    # the package installed with the CUDA kernels
"""

import argparse
import datetime
import json
import time

import torch
from bsfa_bench import (
    add_dirty,
    check_kept,
    cudnn,
    driver,
    interleaved,
    make_call,
    make_select,
    median,
    random_data,
    source,
    structured_data,
    tflops,
)

HEADS_Q, HEADS_KV = 32, 8
BUDGETS = [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


def thresholds_for(density, block_max):
    """Thresholds [heads, q blocks] that keep this share of the blocks that are gated at all."""
    heads, q_blocks, _ = block_max.shape
    table = torch.full((heads, q_blocks), float("inf"), device="cuda")
    if density == 1.0:
        return table.fill_(-1e30)  # finite, below every maximum
    if density > 0:
        for i in range(1, q_blocks):
            table[:, i] = torch.quantile(block_max[:, i, : 2 * i], 1 - density, dim=1)
    return table


def measure(n, dim, dtype, data, densities, samples):
    q, k, v = (structured_data if data == "structured" else random_data)(
        n, HEADS_Q, HEADS_KV, dim, dtype
    )
    out, gated_out, cal_out = (torch.full_like(q, float("nan")) for _ in range(3))
    q_blocks, kv_blocks = (n + 127) // 128, (n + 63) // 64
    block_max = torch.empty(HEADS_Q, q_blocks, kv_blocks, device="cuda")
    selected = torch.empty(len(BUDGETS), HEADS_Q, q_blocks, device="cuda")
    calibrate = make_call(q, k, v, cal_out, block_max=block_max)
    select = make_select(block_max, selected, BUDGETS)

    def calibrate_and_select():
        calibrate()
        select()

    contenders = {
        "cudnn": cudnn(q, k, v),
        "dense": make_call(q, k, v, out),
        "calibrating": calibrate_and_select,
    }
    reference = contenders["cudnn"]().transpose(1, 2)
    contenders["dense"]()
    calibrate_and_select()
    torch.cuda.synchronize()
    error = ((out.float() - reference.float()).norm() / reference.float().norm()).item()
    assert error < 6e-3, f"dense differs from cuDNN by {error}"
    assert torch.equal(out, cal_out), "the calibrating form differs from the dense one"
    del reference

    kept = torch.zeros(HEADS_Q, dtype=torch.int64, device="cuda")
    visible = torch.zeros_like(kept)
    measured = {}
    per_head = {}
    for density in densities:
        name = f"gated {density:g}"
        thresholds = thresholds_for(density, block_max)
        contenders[name] = make_call(
            q, k, v, gated_out, thresholds=thresholds, kept_blocks=kept, visible_blocks=visible
        )
        contenders[name]()
        torch.cuda.synchronize()
        assert torch.isfinite(gated_out).all()
        check_kept(kept, visible, block_max, thresholds)
        if density == 1.0:
            assert torch.equal(out, gated_out), "gated with every block kept differs from dense"
        measured[name] = (kept.sum() / visible.sum()).item()
        by_head = kept / visible
        per_head[name] = [by_head.min().item(), by_head.max().item()]

    times = interleaved(contenders, samples=samples)
    dense_ms = median(times["dense"])
    rows = {}
    for name, values in times.items():
        ms = median(values)
        row = {
            "ms": ms,
            "spread": (max(values) - min(values)) / ms,
            "tflops_dense_equivalent": tflops(n, HEADS_Q, dim, ms),
            "over_cudnn": median(times["cudnn"]) / ms,
            "over_dense": dense_ms / ms,
        }
        if name in measured:
            row["density"] = measured[name]
            row["density_of_heads"] = per_head[name]
            row["share_of_limit"] = dense_ms / ms / (2 / (1 + measured[name]))
        rows[name] = row
    return {
        "seqlen": n,
        "head_dim": dim,
        "dtype": str(dtype).split(".")[1],
        "data": data,
        "error_against_cudnn": error,
        "contenders": rows,
    }


def sustained(n, dim, dtype, seconds=3.0):
    """TFLOP/s of each in an uninterrupted loop."""
    q, k, v = random_data(n, HEADS_Q, HEADS_KV, dim, dtype)
    result = {}
    for name, run in {
        "cudnn": cudnn(q, k, v),
        "dense": make_call(q, k, v, torch.empty_like(q)),
    }.items():
        run()
        torch.cuda.synchronize()
        start = time.monotonic()
        calls = 0
        while time.monotonic() - start < seconds:
            for _ in range(4):
                run()
            calls += 4
            torch.cuda.synchronize()
        result[name] = tflops(n, HEADS_Q, dim, (time.monotonic() - start) * 1e3 / calls)
    return {
        "seqlen": n,
        "head_dim": dim,
        "dtype": str(dtype).split(".")[1],
        "tflops": result,
        "over_cudnn": result["dense"] / result["cudnn"],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument(
        "--cases",
        default="128:bfloat16:random:8192,16384,32768,65536,131072;"
        "128:float16:random:8192,32768;64:bfloat16:random:8192,16384,32768;"
        "128:bfloat16:structured:8192,32768",
    )
    add_dirty(parser)
    args = parser.parse_args()
    made_from = source(__file__, args.dirty)
    report = {
        **made_from,
        "card": torch.cuda.get_device_name(),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "date": datetime.date.today().isoformat(),
        "samples": args.samples,
        "protocol": "contenders in rotating order in one process; a sample is the larger of one "
        "call and 12 ms of calls; median and spread; causal, batch 1, 32 query and 8 "
        "key/value heads; the calibrating time includes the order statistics of ten "
        "budgets, the gated times the counts",
        "results": [],
        "sustained": [],
    }
    for case in args.cases.split(";"):
        dim, dtype, data, sizes = case.split(":")
        for n in map(int, sizes.split(",")):
            result = measure(
                n, int(dim), getattr(torch, dtype), data, (1.0, 0.5, 0.24, 0.1, 0.0), args.samples
            )
            report["results"].append(result)
            line = f"d{dim} {dtype[:4]} {data[:6]} {n:6d}"
            for name, row in result["contenders"].items():
                if name == "cudnn":
                    line += f" | cudnn {row['tflops_dense_equivalent']:.0f}"
                elif name == "dense":
                    line += f" | dense {row['tflops_dense_equivalent']:.0f} {row['over_cudnn']:.3f}"
                elif name == "calibrating":
                    line += f" | cal {1 / row['over_dense']:.3f}"
                else:
                    line += (
                        f" | {row['density']:.3f} {row['over_dense']:.3f} "
                        f"({row['share_of_limit']:.3f})"
                    )
            print(line, flush=True)
            with open(args.out, "w") as file:
                json.dump(report, file, indent=1)
    report["sustained"].append(sustained(32768, 128, torch.bfloat16))
    print("sustained", report["sustained"], flush=True)
    with open(args.out, "w") as file:
        json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
