#!/usr/bin/env python3
"""PyTorch's CPU scaled_dot_product_attention beside bsfa (and ggml, if the build has it).

All contestants run in this process, in turn, with the same number of threads, on the same numbers
[tokens, heads, dim]; each result is checked against fp64 rows before anything is timed. PyTorch gets
its own layout [1, heads, tokens, dim] and keys and values already repeated for the query heads,
outside the timing.

    python bench/cpu_vs_torch.py --library build/cpu/bench/libbsfa_bench_entry.so \\
        --shape 9/3x64 --tokens 4096 --threads 1 --json result.json
"""

import argparse
import ctypes
import datetime
import json
import pathlib
import platform
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from source_tree import add_dirty, record

DTYPES = {"f32": (torch.float32, 0), "f16": (torch.float16, 1), "bf16": (torch.bfloat16, 2)}


def load(path):
    lib = ctypes.CDLL(str(path))
    p, i, l, d = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    for name, result, arguments in [
        ("create", p, [l, l, l, l, i]),
        ("error", ctypes.c_char_p, []),
        ("destroy", None, [p]),
        ("count", i, [p]),
        ("name", ctypes.c_char_p, [p, i]),
        ("run", i, [p, i]),
        ("relative_error", d, [p, i]),
        ("density", d, [p, i]),
        ("workspace", ctypes.c_size_t, [p, l]),
        ("data", ctypes.POINTER(ctypes.c_float), [p, i]),
        ("check", d, [p, ctypes.POINTER(ctypes.c_float), i]),
        ("peak", d, [i]),
        ("kernel", ctypes.c_char_p, [p]),
        ("commit", ctypes.c_char_p, []),
        ("changed", i, []),
    ]:
        function = getattr(lib, "bsfa_bench_" + name)
        function.restype, function.argtypes = result, arguments
    return lib


def torch_contestant(name, lib, handle, heads, kv_heads, dim, tokens):
    dtype, code = DTYPES[name]

    def tensor(which, h):
        array = np.ctypeslib.as_array(lib.bsfa_bench_data(handle, which), (tokens, h, dim))
        x = torch.from_numpy(array.copy()).to(dtype).permute(1, 0, 2)
        return x.repeat_interleave(heads // h, 0)[None].contiguous()

    q, k, v = tensor(0, heads), tensor(1, kv_heads), tensor(2, kv_heads)

    def run():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    out = run()[0].permute(1, 0, 2).float().contiguous().numpy()
    error = lib.bsfa_bench_check(handle, out.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), code)
    return {"name": "torch " + name, "run": run, "error": error, "density": 1.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--shape", default="9/3x64", help="query heads / KV heads x head_dim")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: time this process was running, for one thread on a machine that others use, too",
    )
    parser.add_argument("--only", help="comma-separated names; default all contestants")
    parser.add_argument("--json", type=pathlib.Path, help="appends one line")
    add_dirty(parser)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu measures one thread; --threads is " + str(args.threads))
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    heads, rest = args.shape.split("/")
    kv_heads, dim = rest.split("x")
    heads, kv_heads, dim = int(heads), int(kv_heads), int(dim)

    only = args.only.split(",") if args.only else None

    def wanted(name):
        return only is None or name in only

    torch.set_num_threads(args.threads)
    lib = load(args.library.resolve())
    built = (lib.bsfa_bench_commit().decode(), bool(lib.bsfa_bench_changed()))
    source = record(__file__, args.dirty, library=built) if args.json else {}
    handle = lib.bsfa_bench_create(heads, kv_heads, dim, args.tokens, args.threads)
    if not handle:
        sys.exit("bsfa: " + lib.bsfa_bench_error().decode())
    contestants = []
    for i in range(lib.bsfa_bench_count(handle)):
        if not wanted(lib.bsfa_bench_name(handle, i).decode()):
            continue

        def run(i=i):
            if lib.bsfa_bench_run(handle, i):
                sys.exit("bsfa: " + lib.bsfa_bench_error().decode())

        run()
        contestants.append(
            {
                "name": lib.bsfa_bench_name(handle, i).decode(),
                "run": run,
                "error": lib.bsfa_bench_relative_error(handle, i),
                "density": lib.bsfa_bench_density(handle, i),
            }
        )
    for name in filter(lambda n: wanted("torch " + n), ("bf16", "f32")):
        contestants.append(torch_contestant(name, lib, handle, heads, kv_heads, dim, args.tokens))
    for c in contestants:
        if not c["error"] < 0.03:
            sys.exit(
                f"{c['name']}: relative error {c['error']} on the sampled rows; nothing is timed"
            )
        c["seconds"] = []
    for _ in range(args.rounds):
        for c in contestants:
            start = clock()
            c["run"]()
            c["seconds"].append(clock() - start)

    flops = 2 * args.tokens**2 * dim * heads
    peak = lib.bsfa_bench_peak(0)
    times = {c["name"]: statistics.median(c["seconds"]) for c in contestants}
    result = {
        "benchmark": "cpu_vs_torch",
        **source,
        "date": datetime.date.today().isoformat(),
        "shape": args.shape,
        "tokens": args.tokens,
        "threads": args.threads,
        "rounds": args.rounds,
        "clock": args.clock,
        "kernel": lib.bsfa_bench_kernel(handle).decode(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peak_fp32_gflops_core": round(peak, 1),
        "peak_bf16_dot_gflops_core": round(lib.bsfa_bench_peak(1), 1),
        "workspace_bytes": {
            str(n): lib.bsfa_bench_workspace(handle, n) for n in (4096, 16384, 65536)
        },
        "contestants": {},
        "ratios": {},
    }
    print(
        f"causal {args.shape}, {args.tokens} tokens, {args.threads} thread(s), "
        f"peak of one core {peak:.0f} GFLOP/s"
    )
    for c in contestants:
        s = c["seconds"]
        rate = flops / times[c["name"]] * 1e-9
        result["contestants"][c["name"]] = {
            "median_ms": round(times[c["name"]] * 1e3, 3),
            "min_ms": round(min(s) * 1e3, 3),
            "max_ms": round(max(s) * 1e3, 3),
            "gflops": round(rate, 1),
            "share_of_fp32_peak": round(rate / peak / args.threads, 3),
            "relative_error": float(f"{c['error']:.2e}"),
            "density": round(c["density"], 4),
        }
        print(
            f"  {c['name']:22s} {times[c['name']] * 1e3:9.2f} ms [{min(s) * 1e3:.2f}, "
            f"{max(s) * 1e3:.2f}] {rate:7.1f} GFLOP/s  error {c['error']:.1e}"
        )
    pairs = [
        ("bsfa bf16", "torch bf16"),
        ("bsfa f32", "torch f32"),
        ("bsfa f16", "torch f32"),
        ("bsfa f16 as bf16", "ggml f16"),
        ("bsfa f16", "ggml f16"),
    ]
    for ours, theirs in pairs:
        if ours in times and theirs in times:
            result["ratios"][f"{ours} / {theirs}"] = round(times[theirs] / times[ours], 3)
    for c in contestants:
        if "gated" in c["name"] and "bsfa bf16" in times:
            gain = times["bsfa bf16"] / times[c["name"]]
            limit = 2 / (1 + c["density"])
            result["ratios"][f"{c['name']} / dense"] = round(gain, 3)
            result["ratios"][f"{c['name']} of 2/(1+density)"] = round(gain / limit, 3)
    for name, ratio in result["ratios"].items():
        print(f"  {name:45s} {ratio:.2f}")
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(result) + "\n")
    lib.bsfa_bench_destroy(handle)


if __name__ == "__main__":
    main()
