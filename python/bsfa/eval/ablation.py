"""`bsfa eval ablate`: what the thresholds depend on, on one's own model and texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bsfa._core import ThresholdTable, predicted_density
from bsfa.errors import FileError, InvalidArgumentError, UnsupportedError
from bsfa.eval import results as results_file
from bsfa.eval.report_ablations import ARROW
from bsfa.eval.results import Ablation, AblationPrompt, Results
from bsfa.text import quote, quote_path, said, shown

if TYPE_CHECKING:
    from bsfa.eval.ablation_data import Domain
    from bsfa.eval.ablation_measure import Block, Measurer

__all__ = ["NAMES", "Done", "Plan", "paths_of", "run"]

Progress = Callable[[int, int, str], None]

NAMES = ("samples", "domain", "position", "gate_block")
GATES: tuple[Block, ...] = ((64, 64), (128, 64), (128, 128))
STANDARD: Block = (128, 64)


@dataclass(frozen=True)
class Plan:
    """What the ablations are asked for. Refuses by the names of the command line's options."""

    domains: Sequence[str]
    """NAME=PATH[,PATH...]: the first for everything but the ablation "domain", which takes all."""
    ablations: Sequence[str] = NAMES
    length: int = 4096
    """Of the prompts, tokens."""
    prompts: int = 8
    """Evaluated."""
    samples: Sequence[int] = (4, 8, 16, 32)
    """Numbers of calibration samples to compare."""
    calibrate_on: int = 16
    """Samples in the other ablations."""
    budgets: Sequence[int] = (8, 16, 32)
    """In blocks of 64 keys."""

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        for name in self.ablations:
            if name not in NAMES:
                raise InvalidArgumentError(
                    f"--ablations names {quote(name)}; accepted: {', '.join(NAMES)}"
                )
        if "domain" in self.ablations and len(self.domains) < 2:
            raise InvalidArgumentError(
                "--domain is given once; the ablation 'domain' compares two or more "
                "(--ablations leaves it out)"
            )
        for domain in self.domains:
            paths_of(domain)
        odd = [budget for budget in self.budgets if budget % 2]
        if "gate_block" in self.ablations and odd:
            raise InvalidArgumentError(
                f"--budgets has {odd[0]}; with the ablation 'gate_block' accepted: even numbers, "
                "since a block of 128 keys is two of 64"
            )


@dataclass(frozen=True)
class Done:
    """What a run did."""

    measured: int
    """Points: settings at budgets."""
    there: int
    """Points that the file had already."""
    settings: int


def paths_of(domain: str) -> list[str]:
    """The files and folders of NAME=PATH[,PATH...]."""
    name, _, paths = domain.partition("=")
    if not name or not paths:
        raise InvalidArgumentError(f"--domain is {quote(domain)}; accepted: NAME=PATH[,PATH...]")
    return [path for path in paths.split(",") if path]


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


def _open(writer: results_file.Writer, model: Any, plan: Plan) -> Results:
    """The results file; a new one gets its header."""
    from bsfa.eval.environment import make_header

    header = make_header(
        model,
        seed=0,
        tasks=[],
        prompts_per_point=plan.prompts,
        thresholds=None,
        settings={
            "domains": [text.partition("=")[0] for text in plan.domains],
            "calibration_samples": plan.calibrate_on,
        },
    )
    if not os.path.exists(writer.path):
        writer.create(header)
        return results_file.read(writer.path)
    results = results_file.read(writer.path)
    for what, there, here in (
        ("layers of the model", results.header.model.layers, header.model.layers),
        ("query heads of the model", results.header.model.heads_q, header.model.heads_q),
        ("dtype", results.header.dtype, header.dtype),
        ("commit", results.header.versions.get("commit", ""), header.versions["commit"]),
    ):
        if there != here:
            raise InvalidArgumentError(
                f"--out: {quote_path(writer.path)} has {shown(there)} for {what}, this run "
                f"{shown(here)}; accepted: a file of the same model, dtype and commit, or a new one"
            )
    return results


def _same(found: Ablation, plan: Plan) -> bool:
    """Whether what is in the file was measured on as many prompts, as long."""
    return len(found.prompts) == plan.prompts and found.length == plan.length


def _gates(names: Sequence[str], domain: Domain, first: Domain) -> list[Block]:
    return list(GATES) if "gate_block" in names and domain is first else [STANDARD]


def run(
    model: Any,
    tokenizer: Any,
    plan: Plan,
    writer: results_file.Writer,
    work: str,
    calibrating: Progress | None = None,
    measuring: Progress | None = None,
) -> Done:
    """Calibrates, measures, and appends a record for each setting and budget.

    What the file has of the same settings is not measured again.

    Args:
        model: a causal language model of Transformers.
        tokenizer: the model's.
        plan: what to measure.
        writer: of the results file.
        work: folder for calibrated samples, so that an interruption loses one at most; made if it
            is not there.
        calibrating: called with (samples done, samples, "").
        measuring: called with (points done, points, point).
    """
    from bsfa.eval.ablation_data import load_domain
    from bsfa.eval.ablation_measure import Measurer

    names = plan.ablations
    if "gate_block" in names and model.device.type != "cpu":
        raise UnsupportedError(
            "the ablation 'gate_block' needs gates that only the CPU backend has; add --device "
            "cpu, or leave it out with --ablations"
        )
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and plan.length > context:
        raise InvalidArgumentError(
            f"--length is {plan.length}; the model's context holds {context}"
        )
    try:
        os.makedirs(work, exist_ok=True)
    except OSError as error:
        raise FileError(f"--work: {quote_path(work)} cannot be made: {said(error)}") from error
    standard = plan.calibrate_on
    most = max([standard, *(plan.samples if "samples" in names else [])])
    domains = [
        load_domain(text, tokenizer, plan.length, plan.prompts, most if index == 0 else standard)
        for index, text in enumerate(plan.domains if "domain" in names else plan.domains[:1])
    ]
    results = _open(writer, model, plan)
    settings = _settings(names, domains, plan.samples, standard)
    todo = []
    known: dict[tuple[Any, ...], list[AblationPrompt]] = {}
    for setting in settings:
        for budget in plan.budgets:
            there = results.ablations.get((setting.name, setting.text, budget))
            if there is not None and _same(there, plan):
                known[setting.what(budget)] = there.prompts
            else:
                todo.append((setting, budget))
    measurer = Measurer(model, sorted(set(plan.budgets)), work)
    _calibrate(measurer, domains, names, standard, most, bool(todo), calibrating)
    for done, (setting, budget) in enumerate(todo):
        if measuring is not None:
            measuring(done, len(todo), f"{setting.name} {setting.text} {budget}")
        key = setting.what(budget)
        if key not in known:
            known[key] = measure(measurer, setting, budget)
        writer.append(_record(setting, budget, plan.length, known[key]))
    if measuring is not None:
        measuring(len(todo), len(todo), "")
    return Done(len(todo), len(settings) * len(plan.budgets) - len(todo), len(settings))


def _calibrate(
    measurer: Measurer,
    domains: Sequence[Domain],
    names: Sequence[str],
    standard: int,
    most: int,
    needed: bool,
    progress: Progress | None,
) -> None:
    if not needed:
        return
    passes = [
        (sample, _gates(names, domain, domains[0]) if index < standard else [STANDARD])
        for domain in domains
        for index, sample in enumerate(domain.calibration[: most if domain is domains[0] else None])
    ]
    for done, (sample, gates) in enumerate(passes):
        if progress is not None:
            progress(done, len(passes), "")
        measurer.calibrate(sample, gates)
    if progress is not None:
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
