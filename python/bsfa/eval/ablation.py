"""`bsfa eval ablate`: what the thresholds depend on, on one's own model and texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bsfa._core import ThresholdTable, predicted_density
from bsfa.cli.common import (
    Progress,
    add_json,
    add_model_options,
    load_model,
    need,
    numbers,
    positive,
    print_json,
)
from bsfa.errors import FileError, InvalidArgumentError, UnsupportedError
from bsfa.eval import results as results_file
from bsfa.eval.report_ablations import ARROW
from bsfa.eval.results import Ablation, AblationPrompt, Results
from bsfa.provenance import add_dirty, refuse_changes

if TYPE_CHECKING:
    from bsfa.eval.ablation_data import Domain
    from bsfa.eval.ablation_measure import Block, Measurer

__all__ = ["add_arguments", "run"]

NAMES = ("samples", "domain", "position", "gate_block")
GATES: tuple[Block, ...] = ((64, 64), (128, 64), (128, 128))
STANDARD: Block = (128, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    add_model_options(parser)
    parser.add_argument(
        "--domain",
        required=True,
        action="append",
        metavar="NAME=PATH[,PATH...]",
        help="texts of one kind: files, folders of them, or .json lists of {'input_text'}; the "
        "first is the one for everything but the ablation 'domain', which takes all",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.jsonl",
        help="a results file; what is there of the same settings is not measured again",
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        help="folder for calibrated samples, so that an interruption loses one at most; "
        "default: FILE.jsonl with .work",
    )
    parser.add_argument(
        "--ablations",
        default=",".join(NAMES),
        metavar="NAME,...",
        help="default: " + ",".join(NAMES),
    )
    parser.add_argument(
        "--length", type=positive, default=4096, metavar="N", help="tokens; default: 4096"
    )
    parser.add_argument(
        "--prompts", type=positive, default=8, metavar="N", help="evaluated; default: 8"
    )
    parser.add_argument(
        "--samples",
        type=numbers,
        default=[4, 8, 16, 32],
        metavar="N,...",
        help="calibration samples to compare; default: 4,8,16,32",
    )
    parser.add_argument(
        "--calibrate-on",
        type=positive,
        default=16,
        metavar="N",
        help="samples in the other ablations; default: 16",
    )
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=[8, 16, 32],
        metavar="K,...",
        help="in blocks of 64 keys; default: 8,16,32",
    )
    add_dirty(parser)
    add_json(parser)


@dataclass(frozen=True)
class Setting:
    """One line of an ablation, at every budget."""

    name: str
    text: str
    calibrated: Domain
    evaluated: Domain
    samples: int
    block: Block = STANDARD
    per_head: bool = False

    def what(self, budget: int) -> tuple[Any, ...]:
        """What is run: several ablations have the standard setting among theirs."""
        return (
            budget,
            self.calibrated.name,
            self.evaluated.name,
            self.samples,
            self.block,
            self.per_head,
        )


def _settings(
    names: Sequence[str], domains: Sequence[Domain], counts: Sequence[int], standard: int
) -> list[Setting]:
    first = domains[0]
    found = []
    if "samples" in names:
        found += [Setting("samples", str(n), first, first, n) for n in sorted(counts)]
    if "domain" in names:
        found += [
            Setting("domain", source.name + ARROW + target.name, source, target, standard)
            for target in domains
            for source in domains
        ]
    if "position" in names:
        found += [
            Setting("position", text, first, first, standard, per_head=per_head)
            for text, per_head in (("per query block", False), ("per head", True))
        ]
    if "gate_block" in names:
        found += [
            Setting("gate_block", f"{block[0]}x{block[1]}", first, first, standard, block)
            for block in GATES
        ]
    return found


def _check(options: argparse.Namespace) -> list[str]:
    names = [name for name in options.ablations.split(",") if name]
    for name in names:
        if name not in NAMES:
            raise InvalidArgumentError(f"--ablations names '{name}'; accepted: {', '.join(NAMES)}")
    if "domain" in names and len(options.domain) < 2:
        raise InvalidArgumentError(
            "--domain is given once; the ablation 'domain' compares two or more "
            "(--ablations leaves it out)"
        )
    odd = [budget for budget in options.budgets if budget % 2]
    if "gate_block" in names and odd:
        raise InvalidArgumentError(
            f"--budgets has {odd[0]}; with the ablation 'gate_block' accepted: even numbers, since "
            "a block of 128 keys is two of 64"
        )
    return names


def _open(path: str, model: Any, options: argparse.Namespace) -> Results:
    """The results file; a new one gets its header."""
    from bsfa.eval.environment import make_header

    header = make_header(
        model,
        seed=0,
        tasks=[],
        prompts_per_point=options.prompts,
        thresholds=None,
        settings={
            "domains": [text.partition("=")[0] for text in options.domain],
            "calibration_samples": options.calibrate_on,
        },
    )
    if os.path.exists(path):
        results = results_file.read(path)
        for what, there, here in (
            ("layers of the model", results.header.model.layers, header.model.layers),
            ("query heads of the model", results.header.model.heads_q, header.model.heads_q),
            ("dtype", results.header.dtype, header.dtype),
            ("commit", results.header.versions.get("commit", ""), header.versions["commit"]),
        ):
            if there != here:
                raise InvalidArgumentError(
                    f"--out: '{path}' has {there!r} for {what}, this run {here!r}; accepted: a "
                    "file of the same model, dtype and commit, or a new one"
                )
        return results
    results_file.create(path, header)
    return results_file.read(path)


def _same(found: Ablation, options: argparse.Namespace) -> bool:
    """Whether what is in the file was measured on as many prompts, as long."""
    return len(found.prompts) == options.prompts and found.length == options.length


def _gates(names: Sequence[str], domain: Domain, first: Domain) -> list[Block]:
    return list(GATES) if "gate_block" in names and domain is first else [STANDARD]


def run(options: argparse.Namespace) -> None:
    """Calibrates, measures, and appends a record for each setting and budget."""
    refuse_changes(options.dirty)
    need("torch", "transformers")
    names = _check(options)
    work = options.work or options.out + ".work"
    try:
        os.makedirs(work, exist_ok=True)
    except OSError as error:
        raise FileError(f"--work: {work}: cannot be made: {error.strerror}") from error
    model, tokenizer = load_model(options)

    from bsfa.eval.ablation_data import load_domain
    from bsfa.eval.ablation_measure import Measurer

    if "gate_block" in names and model.device.type != "cpu":
        raise UnsupportedError(
            "the ablation 'gate_block' needs gates that only the CPU backend has; add --device "
            "cpu, or leave it out with --ablations"
        )
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and options.length > context:
        raise InvalidArgumentError(
            f"--length is {options.length}; the model's context holds {context}"
        )
    standard = options.calibrate_on
    most = max([standard, *(options.samples if "samples" in names else [])])
    domains = [
        load_domain(
            text, tokenizer, options.length, options.prompts, most if index == 0 else standard
        )
        for index, text in enumerate(options.domain if "domain" in names else options.domain[:1])
    ]
    results = _open(options.out, model, options)
    settings = _settings(names, domains, options.samples, standard)
    todo = []
    known: dict[tuple[Any, ...], list[AblationPrompt]] = {}
    for setting in settings:
        for budget in options.budgets:
            there = results.ablations.get((setting.name, setting.text, budget))
            if there is not None and _same(there, options):
                known[setting.what(budget)] = there.prompts
            else:
                todo.append((setting, budget))
    measurer = Measurer(model, sorted(set(options.budgets)), work)
    _calibrate(measurer, domains, names, standard, most, bool(todo))
    progress = Progress("measuring")
    for done, (setting, budget) in enumerate(todo):
        progress(done, len(todo), f"{setting.name} {setting.text} {budget}")
        key = setting.what(budget)
        if key not in known:
            known[key] = measure(measurer, setting, budget)
        results_file.append(options.out, _record(setting, budget, options.length, known[key]))
    progress(len(todo), len(todo), "")
    report = {"file": options.out, "measured": len(todo), "settings": len(settings)}
    if options.json:
        print_json(report)
    else:
        print(
            f"{options.out}: {len(todo)} points measured, "
            f"{len(settings) * len(options.budgets) - len(todo)} were there"
        )


def _calibrate(
    measurer: Measurer,
    domains: Sequence[Domain],
    names: Sequence[str],
    standard: int,
    most: int,
    needed: bool,
) -> None:
    if not needed:
        return
    passes = [
        (sample, _gates(names, domain, domains[0]) if index < standard else [STANDARD])
        for domain in domains
        for index, sample in enumerate(domain.calibration[: most if domain is domains[0] else None])
    ]
    progress = Progress("calibrating")
    for done, (sample, gates) in enumerate(passes):
        progress(done, len(passes), "")
        measurer.calibrate(sample, gates)
    progress(len(passes), len(passes), "")


def measure(measurer: Measurer, setting: Setting, budget: int) -> list[AblationPrompt]:
    """One setting at one budget over the prompts of its domain."""
    from bsfa.eval.ablation_measure import one_per_head

    table: ThresholdTable = measurer.table(
        setting.calibrated.calibration[: setting.samples], setting.block
    )
    if setting.per_head:
        table = one_per_head(table)
    return [
        AblationPrompt(index, **vars(measurer.measure(ids, table, budget)))
        for index, ids in enumerate(setting.evaluated.evaluation)
    ]


def _record(
    setting: Setting, budget: int, length: int, prompts: Sequence[AblationPrompt]
) -> Ablation:
    from bsfa.eval.ablation_measure import blocks_of

    def mean(quantity: str) -> float:
        return fmean(getattr(prompt, quantity) for prompt in prompts)

    return Ablation(
        name=setting.name,
        setting=setting.text,
        budget=budget,
        density=mean("density"),
        density_predicted=predicted_density(
            blocks_of(budget, setting.block), length, setting.block
        ),
        error=mean("error"),
        agreement=mean("agreement"),
        perplexity_change=mean("perplexity_change"),
        n=len(prompts),
        length=length,
        prompts=list(prompts),
    )
