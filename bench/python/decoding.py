"""What bsfa adds to decoding, measured so that one percent shows.

    python3 bench/python/decoding.py --out decoding.json [--shape smollm2-135m] [--seconds 60]

Three caches are filled alike and decoded in step: with the attention that the model had before
("before"), with bsfa enabled ("enabled") and as before once more ("again"), two tokens each in a
shuffled order, then the next round. Each step is waited for, as generating waits for a token to
know whether it is the last; the second counts, since the first pays for the switch. Compared are
the steps of one round, which share what the machine was like: "enabled" with the mean of the other
two. The median of the rounds' ratios is given with a 95 % interval from their ranks, which assumes
no distribution. "again" over "before" tells what the measurement resolves: its interval should
hold 1. All three read the tokens that "before" chose. In each round the logits of "enabled" must be
those of "before": bit by bit on the CPU, to 5 % of their norm on a GPU, where "again" does not
repeat them bit by bit either; the largest difference is in the file, of "enabled" and of "again".

Random weights: what a step costs does not hang on them.
"""

import argparse
import gc
import json
import math
import os
import random
import time

import torch
import transformers
from common import LLAMA_8B, add_dirty, setting, source, synchronize

import bsfa

KINDS = ("before", "enabled", "again")
WARM_UP = 2  # rounds of a sequence that are not counted
SHAPES = {
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": LLAMA_8B,
    "tiny": {  # only to rehearse
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}


def make_model(shape, device, dtype):
    """Fresh weights on the device."""
    config = transformers.LlamaConfig(**SHAPES[shape], max_position_embeddings=8192)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def make_cache(model, kind, room):
    """An empty cache for so many tokens."""
    if kind == "static":
        return transformers.StaticCache(config=model.config, max_cache_len=room)
    return transformers.DynamicCache(config=model.config)


def attend_by(model, kind):
    """Switches the model, not timed: by the same calls whatever it is to be, but for the last."""
    bsfa.enable(model, mode="dense")
    if kind != "enabled":
        bsfa.disable(model)


def step(model, token, cache):
    """Seconds to the next token, the token, int64 [1, 1], and the logits, [1, 1, vocabulary]."""
    synchronize(model.device)
    gc.disable()
    begin = time.perf_counter()
    logits = model(token, past_key_values=cache).logits[:, -1:]
    token = logits.argmax(-1)
    int(token)  # waits
    seconds = time.perf_counter() - begin
    gc.enable()
    return seconds, token, logits


def difference(logits, reference):
    """||logits - reference|| / ||reference||."""
    return ((logits.float() - reference.float()).norm() / reference.float().norm()).item()


def rounds(model, cache_kind, ids, steps, order):
    """Seconds of each kind and differences from "before", round by round, of one sequence."""
    caches = {}
    for kind in KINDS:
        attend_by(model, "enabled")  # the prefill is the same for all
        caches[kind] = make_cache(model, cache_kind, ids.shape[1] + 2 * (steps + WARM_UP))
        logits = model(ids, past_key_values=caches[kind], logits_to_keep=1).logits
        tokens = [logits[:, -1:].argmax(-1)] * 2
    gc.collect()
    for index in range(steps + WARM_UP):
        times, logits, chosen = {}, {}, {}
        for kind in order.sample(KINDS, len(KINDS)):
            attend_by(model, kind)
            for token in tokens:  # the first pays for the switch
                times[kind], chosen[kind], logits[kind] = step(model, token, caches[kind])
            if kind == "enabled":
                assert bsfa.stats(model).decode_calls == 2 * model.config.num_hidden_layers
        tokens = [chosen["before"]] * 2
        differences = {kind: difference(logits[kind], logits["before"]) for kind in KINDS[1:]}
        allowed = 5e-2 if model.device.type == "cuda" else 0.0
        assert differences["enabled"] <= allowed, f"enabled gives other logits: {differences}"
        if index >= WARM_UP:
            yield times, differences


def median_with_interval(values):
    """The median, and the two ranks between which the true one lies in at least 95 of 100 cases."""
    values = sorted(values)
    n = len(values)
    below, rank = 0.0, 0
    while rank < n // 2:  # how often `rank` or fewer of n fall below the median
        below += math.comb(n, rank) / 2**n
        if below > 0.025:
            break
        rank += 1
    median = (values[(n - 1) // 2] + values[n // 2]) / 2
    if rank == 0:  # too few: no interval of that confidence
        return median, None
    return median, [values[rank - 1], values[n - rank]]


def summary(found):
    """Milliseconds a token, and the ratios of the rounds."""
    ratios = {
        "enabled_over_without": [
            e / math.sqrt(b * a)
            for b, e, a in zip(found["before"], found["enabled"], found["again"], strict=True)
        ],
        "again_over_before": [a / b for b, a in zip(found["before"], found["again"], strict=True)],
    }
    result = {"rounds": len(found["before"])}
    for name, values in ratios.items():
        median, interval = median_with_interval(values)
        result[name] = {"median": median, "interval_95": interval, "quartiles": quartiles(values)}
    for kind in KINDS:
        milliseconds = [1e3 * x for x in found[kind]]
        median, _ = median_with_interval(milliseconds)
        result[kind] = {"median_ms": median, "quartiles_ms": quartiles(milliseconds)}
    return result


def quartiles(values):
    """The first and the third."""
    values = sorted(values)
    return [values[len(values) // 4], values[3 * len(values) // 4]]


def measure(model, cache_kind, options, report):
    """Sequence after sequence until the time is over."""
    generator = torch.Generator(model.device).manual_seed(2)
    shape = (1, options.prompt)
    order = random.Random(3)
    start = time.monotonic()
    found = {kind: [] for kind in KINDS}
    largest = dict.fromkeys(KINDS[1:], 0.0)
    while time.monotonic() - start < options.seconds:
        vocabulary = model.config.vocab_size
        ids = torch.randint(0, vocabulary, shape, generator=generator, device=model.device)
        for times, differences in rounds(model, cache_kind, ids, options.steps, order):
            for kind, seconds in times.items():
                found[kind].append(round(seconds, 7))
            largest = {kind: max(largest[kind], differences[kind]) for kind in largest}
            if time.monotonic() - start > options.seconds:
                break
        report(cache_kind, found, largest)


@torch.inference_mode()
def main():
    """Measures, writes the file after every sequence, prints what it means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--caches", default="dynamic,static")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--steps", type=int, default=60, help="rounds of a sequence")
    parser.add_argument("--seconds", type=float, default=60, help="of each kind of cache")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    add_dirty(parser)
    options = parser.parse_args()
    made_from = source(__file__, options.dirty)
    model = make_model(options.shape, options.device, getattr(torch, options.dtype))
    result = {
        "shape": options.shape,
        **setting(model.device, made_from),
        "dtype": options.dtype,
        "prompt_tokens": options.prompt,
        "steps": options.steps,
        "caches": {},
    }

    def report(cache_kind, found, largest):
        differences = {"largest_logit_difference": largest}
        result["caches"][cache_kind] = {**summary(found), **differences, "seconds": found}
        with open(options.out + ".part", "w") as file:
            json.dump(result, file, indent=1)
        os.replace(options.out + ".part", options.out)

    for cache_kind in options.caches.split(","):
        measure(model, cache_kind, options, report)
        line = {k: v for k, v in result["caches"][cache_kind].items() if k != "seconds"}
        print(json.dumps({"shape": options.shape, "cache": cache_kind, **line}), flush=True)


if __name__ == "__main__":
    main()
