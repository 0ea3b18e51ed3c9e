"""bsfa run: a model reads a long prompt and answers, with each way of attending in turn."""

from __future__ import annotations

import argparse
import hashlib
import math
import resource
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from bsfa._core import ThresholdTable, predicted_density
from bsfa.cli.common import add_json, add_model_options, load_model
from bsfa.cli.numbers import fraction, positive, positive_real
from bsfa.cli.output import print_json, say
from bsfa.errors import InvalidArgumentError
from bsfa.files import read_text
from bsfa.packages import need
from bsfa.policies import ATTENTIONS, COVERAGE, METHOD, OPTIONS, POLICIES, STOCK
from bsfa.provenance import built_from
from bsfa.text import path_text, printable, quote, quote_path, require_text

NEEDLE_QUESTION = "What is the pass key? The pass key is"
COMPARE = tuple(ATTENTIONS)
METHODS = (METHOD, *(policy.name for policy in POLICIES.values() if policy.has_parameter))
"""What the contestant bsfa can be."""


@dataclass(frozen=True)
class Choice:
    """What the contestants attend with."""

    mode: str
    """Of bsfa."""
    table: ThresholdTable | None = None
    budget: int | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    """By mode; others run at their default."""

    @property
    def setting(self) -> str:
        """What bsfa is set by, for people."""
        policy = POLICIES[self.mode]
        parameter = policy.parameter(self.parameters.get(self.mode))
        number = self.budget if parameter is None else f"{parameter:g}"
        return f"{self.mode}, {policy.setting} {number}"


def add(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "run",
        help="read a long prompt and answer, with and without the method, side by side",
        description="".join(f"{name}: {ATTENTIONS[name].summary}. " for name in COMPARE)
        + "bsfa: the method, with thresholds; or another --mode, without.",
    )
    add_model_options(parser)
    parser.add_argument("--prompt-file", required=True, metavar="FILE", help="the document")
    parser.add_argument("--question", default="", help="asked after the document")
    parser.add_argument("--thresholds", metavar="FILE", help="the model's threshold file")
    parser.add_argument(
        "--allow-other-model",
        action="store_true",
        help="no warning if the thresholds were made for other weights",
    )
    parser.add_argument(
        "--budget", type=positive, metavar="K", help="one of the file's; default: recommended"
    )
    parser.add_argument(
        "--mode",
        choices=METHODS,
        default=METHOD,
        help=f"what bsfa runs; all but {METHOD} need no thresholds, and all of these but coverage "
        f"run on the CPU; default: {METHOD}, or coverage if only that is given",
    )
    for option, takers in OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            type=positive_real,
            metavar=takers[0].setting[0].upper(),
            help=f"of {', '.join(p.name for p in takers)}; default: {takers[0].default:g}",
        )
    parser.add_argument(
        "--compare",
        default="stock,dense",
        metavar="NAME,...",
        help="what runs beside bsfa: " + ", ".join(COMPARE) + "; default: stock,dense",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=positive,
        metavar="N",
        help="cut the document so that the prompt has about so many tokens",
    )
    parser.add_argument(
        "--needle",
        type=fraction,
        metavar="DEPTH",
        help="plant a pass-key at this fraction (0 to 1) of the document and ask for it",
    )
    parser.add_argument(
        "--runs", type=positive, default=10, metavar="N", help="timed, after a warm-up; default: 10"
    )
    parser.add_argument(
        "--answer-tokens", type=positive, default=32, metavar="N", help="longest answer"
    )
    parser.add_argument("--by-layer", action="store_true", help="print the density of each layer")
    add_json(parser)
    parser.set_defaults(function=run)


def plant(text: str, depth: float) -> tuple[str, str]:
    """The text with a sentence about a pass-key after the sentence at `depth`, and the key."""
    key = str(
        10000 + int(hashlib.sha256(repr((depth, len(text))).encode()).hexdigest(), 16) % 90000
    )
    sentence = f" The pass key is {key}. Remember it. {key} is the pass key."
    end = text.find(". ", int(depth * len(text)))
    at = len(text) if end < 0 or depth >= 1 else end + 1
    return text[:at] + sentence + text[at:], key


def build_prompt(tokenizer: Any, text: str, options: argparse.Namespace) -> tuple[Any, str]:
    """Token ids [1, tokens] of document and question, and the planted key if there is one."""
    import torch

    question, key = options.question, ""
    if options.needle is not None:
        question = question or NEEDLE_QUESTION

    def assemble(document: str) -> list[int]:
        message = f"{document}\n\n{question}" if question else document
        if getattr(tokenizer, "chat_template", None):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": message}],
                add_generation_prompt=True,
                return_dict=False,
            )
        else:
            ids = tokenizer(message, verbose=False)["input_ids"]
        return list(ids)

    if options.prompt_tokens is not None:
        document = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        overhead = len(assemble(plant("", 1)[0] if options.needle is not None else ""))
        room = options.prompt_tokens - overhead
        if not 1 <= room <= len(document):
            raise InvalidArgumentError(
                f"--prompt-tokens is {options.prompt_tokens}; accepted for this text and "
                f"question: {overhead + 1} to {overhead + len(document)}"
            )
        text = tokenizer.decode(document[:room])
    if options.needle is not None:
        text, key = plant(text, options.needle)
    return torch.tensor([assemble(text)]), key


def _switch(model: Any, name: str, choice: Choice) -> None:
    """Makes the model attend as a contestant does."""
    import bsfa

    if name == STOCK.name:
        if model.config.get_text_config(decoder=True)._attn_implementation == "bsfa":
            bsfa.disable(model)
        return
    mode = {"bsfa": choice.mode}.get(name, name)
    if POLICIES[mode].has_parameter:
        bsfa.enable(model, mode=mode, parameter=choice.parameters.get(mode))
        return
    bsfa.enable(  # another model was said once, by `run`
        model, choice.table, choice.budget, mode=mode, allow_other_model=True
    )


def _peak_memory(device: Any) -> int:
    """Bytes: of the device since the last reset; on the CPU of the process so far."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _first_token(model: Any, ids: Any) -> float:
    """Seconds from the prompt to the choice of the next token."""
    import torch

    begin = time.perf_counter()
    logits = model(ids, use_cache=True, logits_to_keep=1).logits
    logits[0, -1].argmax().item()  # waits for the device
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
    return time.perf_counter() - begin


def contest(
    model: Any,
    tokenizer: Any,
    ids: Any,
    choice: Choice,
    names: list[str],
    runs: int,
    answer_tokens: int,
) -> list[dict[str, Any]]:
    """Time, memory, density and answer of each contestant; runs alternate between them."""
    import torch

    import bsfa

    ids = ids.to(model.device)
    results: dict[str, dict[str, Any]] = {name: {"name": name, "ttft": []} for name in names}
    with torch.inference_mode():
        for round_ in range(runs + 1):
            for name in names:
                _switch(model, name, choice)
                if ids.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(ids.device)
                seconds = _first_token(model, ids)
                if round_ > 0:
                    results[name]["ttft"].append(seconds)
        for name in names:
            _switch(model, name, choice)
            result = results[name]
            if ids.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(ids.device)
            answer = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=answer_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
            result["answer"] = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
            result["peak_memory_bytes"] = _peak_memory(ids.device)
            result["ttft_seconds"] = statistics.median(result["ttft"])
            result["ttft_spread"] = [min(result["ttft"]), max(result["ttft"])]
            if name != STOCK.name:
                stats = bsfa.stats(model)
                result["density"] = stats.density
                if not math.isnan(stats.left_out):
                    result["left_out"] = stats.left_out
                result["layers"] = [
                    {
                        "layer": layer.layer,
                        "attention": layer.attention,
                        "reason": layer.reason,
                        "density": layer.density,
                        "densities": layer.densities,
                    }
                    for layer in stats.layers
                ]
        _switch(model, STOCK.name, choice)
    return list(results.values())


def verdict(results: list[dict[str, Any]], key: str) -> str:
    """Whether the method changed the answer; with a needle, what counts is the key."""
    by_name = {result["name"]: result["answer"].strip() for result in results}
    dense = by_name.get("dense", by_name.get(STOCK.name))
    if dense is None:
        return "nothing to compare with"
    if key:
        if key not in dense:
            return "inconclusive: dense attention does not find the key either"
        found = key in by_name["bsfa"]
        return "same: both find the key" if found else "different: only dense finds the key"
    return "same answer" if dense == by_name["bsfa"] else "different answers"


def _parameters(options: argparse.Namespace, names: list[str]) -> dict[str, float]:
    found = {}
    for option, takers in OPTIONS.items():
        value = getattr(options, option.replace("-", "_"))
        if value is None:
            continue
        if not {options.mode, *names} & {policy.name for policy in takers}:
            raise InvalidArgumentError(
                f"--{option} is {value:g}, and nothing runs {takers[0].name}"
            )
        for policy in takers:
            try:
                policy.parameter(value)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"--{option}: {error}") from None
            found[policy.name] = value
    return found


def _choice(options: argparse.Namespace, names: list[str]) -> Choice:
    parameters = _parameters(options, names)
    if options.thresholds is None:
        return Choice(options.mode, None, options.budget, parameters)
    table = ThresholdTable.load(options.thresholds)
    budget = options.budget or table.recommended_budget
    if budget is None:
        raise InvalidArgumentError(
            f"--budget: {quote_path(options.thresholds)} recommends none; it has "
            + ", ".join(map(str, table.budgets))
        )
    table.thresholds(budget)  # refuses a budget that is not in the file
    return Choice(options.mode, table, budget, parameters)


def run(options: argparse.Namespace) -> None:
    """Runs the contest and prints it."""
    need("torch", "transformers")
    names = [name for name in options.compare.split(",") if name and name != "bsfa"]
    if options.coverage is not None and options.mode == METHOD:
        # It says by itself what is to run: in place of the method, or beside it.
        if options.thresholds is None:
            options.mode = COVERAGE
        elif COVERAGE not in names:
            names.append(COVERAGE)
    if options.thresholds is None and options.mode == METHOD:
        raise InvalidArgumentError(
            "--thresholds is missing: `calibrate` makes a threshold file (--coverage 0.95 needs "
            "none)"
        )
    unknown = [name for name in names if name not in COMPARE]
    if unknown:
        raise InvalidArgumentError(
            f"--compare names {quote(unknown[0])}; accepted: {', '.join(COMPARE)}"
        )
    choice = _choice(options, names)
    require_text("--question", options.question)
    text = read_text("--prompt-file", options.prompt_file)
    model, tokenizer = load_model(options)
    ids, key = build_prompt(tokenizer, text, options)
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and ids.shape[1] + options.answer_tokens > context:
        raise InvalidArgumentError(
            f"the prompt has {ids.shape[1]} tokens and the answer {options.answer_tokens}; the "
            f"model's context holds {context} (--prompt-tokens cuts the text)"
        )
    if choice.table is not None and not options.allow_other_model:
        from bsfa.identity import warn_of_other_model

        warn_of_other_model(choice.table, options.model, model)
    names.append("bsfa")
    for name in names:  # refused before any work
        _switch(model, name, choice)
    _switch(model, STOCK.name, choice)
    results = contest(model, tokenizer, ids, choice, names, options.runs, options.answer_tokens)
    predicted = None
    if choice.mode == METHOD and choice.table is not None and choice.budget is not None:
        predicted = predicted_density(choice.budget, ids.shape[1], choice.table.block)
    report = {
        "model": options.model,
        "commit": built_from(),
        "prompt_tokens": ids.shape[1],
        "mode": choice.mode,
        "parameter": POLICIES[choice.mode].parameter(choice.parameters.get(choice.mode)),
        "budget": choice.budget,
        "predicted_density": predicted,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "runs": options.runs,
        "contestants": results,
        "verdict": verdict(results, key),
    }
    if options.json:
        print_json(report)
    else:
        _print(report, choice.setting, options.by_layer)


def _print(report: dict[str, Any], setting: str, by_layer: bool) -> None:
    say(
        f"{path_text(report['model'])}: a prompt of {report['prompt_tokens']} tokens, {setting}, "
        f"{report['dtype']} on {report['device']}\n"
        f"  {'':21s} {'TTFT':>9s} {'spread':>17s} {'memory':>9s} {'density':>8s}  answer"
    )
    for result in report["contestants"]:
        low, high = result["ttft_spread"]
        density = result.get("density", math.nan)  # not known of sparge either
        kept = "" if math.isnan(density) else f"{density:.2f}"
        say(
            f"  {result['name']:21s} {result['ttft_seconds']:7.3f} s {low:7.3f}..{high:<6.3f} s "
            f"{result['peak_memory_bytes'] / 2**20:6.0f} MB {kept:>8s}  "
            + printable(" ".join(result["answer"].split()))
        )
    times = {result["name"]: result["ttft_seconds"] for result in report["contestants"]}
    if STOCK.name in times and "dense" in times:
        ratio = times[STOCK.name] / times["dense"]
        say(f"  the kernel:  dense here reads {ratio:.2f} times as fast as {STOCK.label}")
    if "dense" in times:
        predicted = report["predicted_density"]
        say(
            f"  the method:  bsfa reads {times['dense'] / times['bsfa']:.2f} times as fast as "
            "dense here" + ("" if predicted is None else f" (predicted density {predicted:.2f})")
        )
    for result in report["contestants"]:
        if "left_out" in result:
            say(f"  left out:    {result['name']}: {result['left_out']:.2%} of the attention")
    say(f"  verdict:     {report['verdict']}")
    if by_layer:
        for layer in report["contestants"][-1]["layers"]:
            reason = f"  ({printable(layer['reason'])})" if layer["reason"] else ""
            say(f"  layer {layer['layer']:3d}: {layer['attention']} {layer['density']:.2f}{reason}")
