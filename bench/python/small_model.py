"""A real model: agreement with Transformers' own attention, budgets, calibration.

    python3 bench/python/small_model.py --model SmolLM2-135M-Instruct.Q4_1.gguf \
        --calibrate-on texts/ --test-on tales.txt --out small_model.json

Thresholds come from one set of texts, everything else is measured on another. Each part is written
to the file when it is there.

- dense: the next token that bsfa's dense attention leads to, against Transformers' sdpa, at every
  position; where the two best logits are further apart than the two attentions differ anywhere in
  that row, the choice must be the same. How far each is from sdpa in fp32 says which errs more.
- budgets: density, perplexity of the text, agreement of the next token with dense.
- calibration: seconds over the same prefills, dense.
"""

import argparse
import copy
import json
import statistics
import time

import torch
import torch.nn.functional as F
from common import add_dirty, setting, source, synchronize

import bsfa
from bsfa.calibration import read_samples
from bsfa.loading import load_model


def clock(device, function):
    """Seconds of a call, to its end on the device."""
    synchronize(device)
    begin = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin


def windows(tokenizer, path, tokens, count):
    """Texts of so many tokens from a file: int64 [1, tokens] each."""
    with open(path, encoding="utf-8") as file:
        ids = tokenizer(file.read(), return_tensors="pt", verbose=False)["input_ids"][0]
    count = min(count, len(ids) // tokens)
    return [ids[None, i * tokens : (i + 1) * tokens] for i in range(count)]


def logits_of(model, ids):
    """float32 [tokens, vocabulary]."""
    return model(ids.to(model.device), use_cache=False).logits[0].float()


def perplexity(logits, ids):
    """Mean negative logarithm, not yet exponentiated."""
    return F.cross_entropy(logits[:-1], ids[0, 1:].to(logits.device)).item()


def dense(model, texts):
    """Dense here against sdpa, and both against sdpa in fp32."""
    exact_model = copy.deepcopy(model).float()
    rows = agree = clear = clear_agree = exact_ours = exact_theirs = 0
    ours_error, theirs_error = [], []
    for ids in texts:
        bsfa.enable(model, mode="dense")
        ours = logits_of(model, ids)
        stats = bsfa.stats(model)
        assert not stats.fallbacks, stats
        bsfa.disable(model)
        theirs = logits_of(model, ids)
        exact = logits_of(exact_model, ids)
        same = ours.argmax(1) == theirs.argmax(1)
        best = theirs.topk(2, dim=1).values
        sure = best[:, 0] - best[:, 1] > 2 * (ours - theirs).abs().amax(dim=1)
        rows += len(same)
        agree += int(same.sum())
        clear += int(sure.sum())
        clear_agree += int((same & sure).sum())
        exact_ours += int((ours.argmax(1) == exact.argmax(1)).sum())
        exact_theirs += int((theirs.argmax(1) == exact.argmax(1)).sum())
        ours_error.append((ours - exact).abs().mean().item())
        theirs_error.append((theirs - exact).abs().mean().item())
    assert clear_agree == clear, "a choice differs where the two best are far apart"
    return {
        "positions": rows,
        "same_choice_as_sdpa": agree / rows,
        "positions_where_the_best_are_apart": clear / rows,
        "same_choice_there": clear_agree / max(clear, 1),
        "same_choice_as_fp32": exact_ours / rows,
        "same_choice_as_fp32_of_sdpa": exact_theirs / rows,
        "mean_error_against_fp32": statistics.mean(ours_error),
        "mean_error_against_fp32_of_sdpa": statistics.mean(theirs_error),
    }


def budgets(model, table, texts):
    """Every budget of the table against dense."""
    bsfa.enable(model, mode="dense")
    reference = [logits_of(model, ids) for ids in texts]
    rows = [{"budget": None, "density": 1.0, "agreement": 1.0}]
    rows[0]["perplexity"] = perplexities(reference, texts)
    for budget in reversed(table.budgets):
        bsfa.enable(model, table, budget)
        ours, density, agreement = [], [], []
        for ids, expected in zip(texts, reference, strict=True):
            ours.append(logits_of(model, ids))
            density.append(bsfa.stats(model).density)
            agreement.append((ours[-1].argmax(1) == expected.argmax(1)).float().mean().item())
        rows.append(
            {
                "budget": budget,
                "density": statistics.mean(density),
                "predicted_density": bsfa.predicted_density(budget, texts[0].shape[1]),
                "agreement": statistics.mean(agreement),
                "perplexity": perplexities(ours, texts),
            }
        )
    bsfa.disable(model)
    return rows


def perplexities(logits, texts):
    """Of all texts together."""
    losses = [perplexity(one, ids) for one, ids in zip(logits, texts, strict=True)]
    return torch.tensor(losses).mean().exp().item()


def calibration(model, samples, wanted, rounds):
    """The table, and what a calibration costs over the same prefills."""
    decoder = model.get_decoder()

    def prefills():
        for ids in samples:
            decoder(input_ids=ids.to(model.device), use_cache=False)

    table = bsfa.calibrate(model, [s[0] for s in samples], budgets=wanted, model_name="measured")
    times = {"calibrate": [], "dense": [], "sdpa": []}
    for _ in range(rounds):
        times["calibrate"].append(
            clock(
                model.device,
                lambda: bsfa.calibrate(model, [s[0] for s in samples], budgets=wanted),
            )
        )
        bsfa.enable(model, mode="dense")
        times["dense"].append(clock(model.device, prefills))
        bsfa.disable(model)
        times["sdpa"].append(clock(model.device, prefills))
    median = {name: statistics.median(values) for name, values in times.items()}
    return table, {
        "samples": len(samples),
        "tokens": samples[0].shape[1],
        "budgets": wanted,
        "seconds": times,
        "over_dense": median["calibrate"] / median["dense"],
        "over_sdpa": median["calibrate"] / median["sdpa"],
    }


@torch.inference_mode()
def main():
    """Runs the parts in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder, name or .gguf file")
    parser.add_argument("--calibrate-on", nargs="+", help="texts")
    parser.add_argument("--test-on", help="a text")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text")
    parser.add_argument("--samples", type=int, default=15, help="to calibrate on, at most")
    parser.add_argument("--texts", type=int, default=4, help="to test on, at most")
    parser.add_argument("--budgets", default="2,4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=5, help="of what is timed")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="dense,calibration,budgets")
    add_dirty(parser)
    options = parser.parse_args()
    made_from = source(__file__, options.dirty)
    only = options.only.split(",")
    model, tokenizer = load_model(options.model, options.dtype, options.device, options.threads)
    texts = windows(tokenizer, options.test_on, options.tokens, options.texts)
    result = {
        "model": options.model.split("/")[-1],
        **setting(model.device, made_from),
        "dtype": options.dtype,
        "tokens": options.tokens,
        "texts": len(texts),
    }

    def keep(name, value):
        result[name] = value
        with open(options.out, "w") as file:
            json.dump(result, file, indent=1)
        print(json.dumps({name: value}), flush=True)

    if "dense" in only:
        keep("dense", dense(model, texts))
    if "calibration" in only:
        samples = []
        for sample in read_samples(options.calibrate_on)[: options.samples]:
            ids = tokenizer(sample.text, return_tensors="pt", verbose=False)["input_ids"]
            samples.append(ids[:, : options.tokens])
        wanted = [int(k) for k in options.budgets.split(",")]
        table, cost = calibration(model, samples, wanted, options.rounds)
        keep("calibration", cost)
        if "budgets" in only:
            keep("budgets", budgets(model, table, texts))


if __name__ == "__main__":
    main()
