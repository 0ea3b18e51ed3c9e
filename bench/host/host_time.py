"""How long a call keeps the host: C++, C, Python and one Transformers layer, beside PyTorch's own.

    python3 bench/host/host_time.py --device cuda --program build/cuda/bench/host/host_time \
        --out bench/results/host_time_h200.json

The package and the program have to be of the tree's commit. A sample is 50 calls without
waiting for the device, after it has become idle; 200 samples, contenders in rotating order; the
figure is the median, with the least beside it. 8 query and 2 key/value heads of 128, bf16, causal,
dense unless named otherwise. On a GPU 1 and 64 sequences of 128 tokens: what grows with the batch
shows. On the CPU, where a call also computes, one sequence of one query and one key. host_time.cc
measures the C++ API and the C ABI, and says what "moved" is.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import bsfa

CALLS, SAMPLES = 50, 200
HEADS, HEADS_KV, DIM = 8, 2, 128

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from source_tree import add_dirty, record  # noqa: E402


def built_from(program):
    """(commit, whether its files had changed) of host_time."""
    output = subprocess.run(
        [program, "source"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    state = json.loads(output)
    return state["commit"], state["changed"]


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(contenders, device):
    """{name: (median, least)} in microseconds a call."""
    samples = {name: [] for name in contenders}
    names = list(contenders)
    for sample in range(-3, SAMPLES):
        shift = sample % len(names)
        for name in names[shift:] + names[:shift]:
            call = contenders[name]
            wait(device)
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                call()
            elapsed = time.perf_counter_ns() - start
            if sample >= 0:
                samples[name].append(elapsed / CALLS / 1e3)
    wait(device)
    return {name: (statistics.median(found), min(found)) for name, found in samples.items()}


def functions(batch, seqlen, device):
    def tensor(heads):
        return torch.randn(batch, seqlen, heads, DIM, device=device, dtype=torch.bfloat16)

    q, k, v = tensor(HEADS), tensor(HEADS_KV), tensor(HEADS_KV)
    thresholds = torch.zeros(HEADS, 1, device=device)
    a, b, c = (t.transpose(1, 2) for t in (q, k, v))
    found = {
        "bsfa.flash_attn_func": lambda: bsfa.flash_attn_func(q, k, v, causal=True),
        "bsfa.flash_attn_func, gated": lambda: bsfa.flash_attn_func(
            q, k, v, causal=True, thresholds=thresholds
        ),
        "bsfa.flash_attn_func, gated, stats": lambda: bsfa.flash_attn_func(
            q, k, v, causal=True, thresholds=thresholds, return_stats=True
        ),
        "bsfa::attention, the operator": lambda: torch.ops.bsfa.attention(
            q,
            k,
            v,
            seqused_k=None,
            leftpad_k=None,
            thresholds=None,
            softmax_scale=None,
            causal=True,
            q_offset=None,
            q_offsets=None,
            window=None,
            window_blocks=None,
            mass_c=None,
            skip_lambda=None,
            skip_order="ascending",
            coverage=None,
            sampled_rows=32,
            mass_floor=0.003,
            softcap=0.0,
            block_q=128,
            block_kv=64,
            compute_type="native",
            backend="",
            return_lse=False,
            return_stats=False,
        ),
        "torch scaled_dot_product_attention": lambda: functional.scaled_dot_product_attention(
            a, b, c, is_causal=True, enable_gqa=True
        ),
    }
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        flash_attn_func = None
    if flash_attn_func is not None and device.type == "cuda":
        found["flash_attn_func"] = lambda: flash_attn_func(q, k, v, causal=True)
    return found


def layers(batch, seqlen, device):
    """One attention layer of Llama, its projections included."""
    config = LlamaConfig(
        hidden_size=HEADS * DIM,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS_KV,
        vocab_size=64,
    )
    found = {}
    for name in ("sdpa", "bsfa"):
        config._attn_implementation = "sdpa"
        model = LlamaForCausalLM(config).to(device=device, dtype=torch.bfloat16).eval()
        if name == "bsfa":
            bsfa.enable(model)
        hidden = torch.randn(batch, seqlen, HEADS * DIM, device=device, dtype=torch.bfloat16)
        positions = torch.arange(seqlen, device=device)[None]
        embeddings = model.model.rotary_emb(hidden, positions)
        layer = model.model.layers[0].self_attn

        def call(layer=layer, hidden=hidden, embeddings=embeddings, keep=model):
            return layer(hidden_states=hidden, position_embeddings=embeddings, attention_mask=None)

        found[f"a layer of Llama, {name}"] = call
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--program", required=True, help="host_time, built from host_time.cc")
    parser.add_argument("--out", required=True)
    add_dirty(parser)
    options = parser.parse_args()
    source = record(
        __file__,
        options.dirty,
        package=bsfa._core.source_tree(),
        program=built_from(options.program),
    )
    device = torch.device(options.device)
    torch.set_num_threads(1)
    result = {
        **source,
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "bsfa": bsfa.__version__,
        "python": sys.version.split()[0],
        "protocol": " ".join(__doc__.split("\n\n")[2].split()),
        "calls": [],
    }
    with torch.inference_mode():
        for batch in (1, 64) if device.type == "cuda" else (1,):
            lengths = (128, 128) if device.type == "cuda" else (1, 1)
            command = [options.program, device.type, str(batch), *map(str, lengths)]
            program = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result["calls"] += [json.loads(line) for line in program.stdout.splitlines()]
            contenders = functions(batch, lengths[0], device)
            groups = [(contenders, lengths), (layers(batch, 128, device), (128, 128))]
            for group, (seqlen_q, seqlen_k) in groups:
                for name, (median, least) in measure(group, device).items():
                    result["calls"].append(
                        {
                            "call": name,
                            "batch": batch,
                            "seqlen_q": seqlen_q,
                            "seqlen_k": seqlen_k,
                            "median_us": round(median, 3),
                            "least_us": round(least, 3),
                        }
                    )
    pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    for call in result["calls"]:
        print(f"{call['batch']:4d}  {call['median_us']:9.2f} us  {call['call']}")


if __name__ == "__main__":
    main()
