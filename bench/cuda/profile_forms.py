"""One call of each form of the kernel, for a profiler: dense, gated with every block kept, gated with
thresholds of +inf, calibrating, gated at densities of about 0.5 and 0.24. Causal, batch 1, 32 query
and 8 key/value heads, bf16, random data.

  ncu --clock-control none \
      -k regex:attention_kernel --section SpeedOfLight --section WarpStateStats \
      --section SourceCounters python3 bench/cuda/profile_forms.py 16384 128
"""

import sys

import torch
from attention import thresholds_for
from bsfa_bench import make_call, random_data


def main():
    tokens, head_dim = int(sys.argv[1]), int(sys.argv[2])
    q, k, v = random_data(tokens, 32, 8, head_dim, torch.bfloat16)
    out = torch.empty_like(q)
    q_blocks = (tokens + 127) // 128
    make_call(q, k, v, out)()
    torch.cuda.synchronize()
    for threshold in (-1e30, float("inf")):
        table = torch.full((32, q_blocks), threshold, device="cuda")
        make_call(q, k, v, out, thresholds=table)()
        torch.cuda.synchronize()
    block_max = torch.empty(32, q_blocks, (tokens + 63) // 64, device="cuda")
    make_call(q, k, v, out, block_max=block_max)()
    torch.cuda.synchronize()
    for density in (0.5, 0.24):
        make_call(q, k, v, out, thresholds=thresholds_for(density, block_max))()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
