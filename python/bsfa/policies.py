"""The ways of attending that a model can be given: one table, which everything else is made from.

`bsfa.hf` takes its modes from it, `run` and `eval` their choices, the harness what it accepts, and
the report names and colours. Needs no torch. docs/extending.md says how a row is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bsfa.errors import InvalidArgumentError, UnsupportedError
from bsfa.text import quote, shown

__all__ = [
    "ATTENTIONS",
    "COVERAGE",
    "EXACT",
    "METHOD",
    "MODES",
    "OPTIONS",
    "POLICIES",
    "STOCK",
    "SWEPT",
    "SWEPT_BY_DEFAULT",
    "Look",
    "Policy",
    "find_policy",
]

Call = Callable[[int | None, float | None], dict[str, Any]]


@dataclass(frozen=True)
class Look:
    """How figures draw it."""

    light: str
    """Colour on a light ground, #rrggbb."""
    dark: str
    """Colour on a dark ground."""
    marker: str
    """As matplotlib names markers."""
    line: str
    """As matplotlib names lines; empty: none."""


def _no_arguments(budget: int | None, parameter: float | None) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Policy:
    """One way of attending."""

    name: str
    label: str
    """In figures."""
    summary: str
    """What it is, for the help of commands."""
    look: Look
    setting: str = ""
    """What it is set by: "budget" (blocks), the name of its parameter, or nothing."""
    default: float | None = None
    """Of the parameter."""
    most: float = math.inf
    """The largest parameter."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    option: str = ""
    """Of commands, for the parameter; policies may share one."""
    call: Call = _no_arguments
    """(budget, parameter) -> arguments of `bsfa.attention_forward`."""
    needs_thresholds: bool = False
    """Whether the call also takes the layer's thresholds, from a table that has the budget."""
    module: str = ""
    """A module whose `run` is called instead of `bsfa.attention_forward`, after its `check`."""
    exact: bool = False
    """Whether nothing is left out."""
    swept: bool = False
    """Whether `eval sweep` runs it if it is not told which."""

    @property
    def has_budget(self) -> bool:
        """Whether it is set by a number of blocks."""
        return self.setting == "budget"

    @property
    def has_parameter(self) -> bool:
        """Whether it is set by a number that is no budget."""
        return self.default is not None

    def parameter(self, given: float | None) -> float | None:
        """The parameter to use, checked."""
        if self.default is None:
            if given is not None:
                takers = ", ".join(p.name for p in POLICIES.values() if p.has_parameter)
                raise InvalidArgumentError(
                    f"parameter is {shown(given)} with mode {self.name!r}; it belongs to {takers}"
                )
            return None
        value = self.default if given is None else given
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 < value <= self.most:
            limit = "" if math.isinf(self.most) else f", at most {self.most:g}"
            raise InvalidArgumentError(
                f"parameter is {shown(value)}; mode {self.name!r} takes a finite {self.setting} "
                f"above 0{limit}"
            )
        return float(value)

    def check_budget(self, budget: int | None) -> None:
        """Refuses a budget that the policy cannot be set by (a table checks its own)."""
        if self.has_budget and not self.needs_thresholds and (budget is None or budget < 0):
            raise InvalidArgumentError(
                f"budget is {budget}; mode {self.name!r} needs the number of blocks to keep "
                "before the diagonal, 0 or more"
            )

    def check_device(self, device_type: str) -> None:
        """Refuses a device that no backend runs it on."""
        if device_type not in self.devices:
            raise UnsupportedError(
                f"mode {self.name!r} runs on {', '.join(self.devices)}; the model is on "
                f"{device_type}"
            )

    def arguments(self, budget: int | None, parameter: float | None) -> dict[str, Any]:
        """Of `bsfa.attention_forward`, but for thresholds, which differ by layer."""
        return self.call(budget, parameter)


STOCK = Policy(
    "stock",
    "the model's own attention",
    "the attention that Transformers gives the model",
    Look("#7a5195", "#cc9ee6", "*", ""),
    exact=True,
)
"""What a model does without bsfa: no mode of `bsfa.enable`, but something to compare with."""

COVERAGE = "coverage"
"""The mode that its parameter alone asks for, as an argument or an option of its own name."""

_TABLE = (
    Policy(
        "dense",
        "dense",
        "nothing left out",
        Look("#1a1a1a", "#e8e8e8", "D", ":"),
        exact=True,
        swept=True,
    ),
    Policy(
        "threshold",
        "threshold (BSFA)",
        "the method, by calibrated thresholds",
        Look("#0072b2", "#56b4e9", "o", "-"),
        "budget",
        needs_thresholds=True,
        swept=True,
    ),
    Policy(
        COVERAGE,
        "sampled selection",
        "blocks that hold this share of the attention of sampled rows, without calibration",
        Look("#b3261e", "#ff8a80", "X", "-"),
        "coverage",
        0.95,
        1,
        option="coverage",
        call=lambda budget, parameter: {"coverage": parameter},
    ),
    Policy(
        "sliding_window",
        "sliding window",
        "the paper's baseline at the same budget",
        Look("#d55e00", "#e69f00", "s", "--"),
        "budget",
        call=lambda budget, parameter: {"window_blocks": budget},
        swept=True,
    ),
    Policy(
        "sparge",
        "SpargeAttention",
        "the paper's other baseline, by the package spas_sage_attn if that is there",
        Look("#007a5a", "#3ccf9f", "^", "-."),
        module="bsfa.hf.sparge",
    ),
    Policy(
        "mass",
        "mass",
        "blocks that may hold enough attention, without calibration (CPU)",
        Look("#a6336b", "#f08cba", "P", "-"),
        "c",
        0.1,
        devices=("cpu",),
        option="mass-c",
        call=lambda budget, parameter: {"mass_c": parameter},
    ),
    Policy(
        "skip_softmax",
        "skip-softmax",
        "a baseline that compares blocks with the running maximum (CPU)",
        Look("#6b6b00", "#c9c93c", "v", "--"),
        "lambda",
        0.03,
        1,
        ("cpu",),
        "skip-lambda",
        call=lambda budget, parameter: {"skip_lambda": parameter},
    ),
    Policy(
        "skip_softmax_outwards",
        "skip-softmax, outwards",
        "the same from the diagonal outwards (CPU)",
        Look("#8a6d3b", "#d1b27a", "<", "-."),
        "lambda",
        0.03,
        1,
        ("cpu",),
        "skip-lambda",
        call=lambda budget, parameter: {"skip_lambda": parameter, "skip_order": "outwards"},
    ),
)

POLICIES = {policy.name: policy for policy in _TABLE}
MODES = tuple(POLICIES)
"""Of `bsfa.enable`."""
METHOD = "threshold"
"""The mode that is compared with all others."""
ATTENTIONS = {STOCK.name: STOCK, **POLICIES}
"""All that a model can attend by."""
EXACT = tuple(p.name for p in ATTENTIONS.values() if p.exact)
"""Those that leave nothing out."""
SWEPT = tuple(p.name for p in ATTENTIONS.values() if not p.module)
"""What `eval sweep` runs: the library, which counts the blocks that it keeps, and the model."""
SWEPT_BY_DEFAULT = tuple(p.name for p in ATTENTIONS.values() if p.swept)


OPTIONS = {
    option: tuple(p for p in _TABLE if p.option == option)
    for option in dict.fromkeys(p.option for p in _TABLE if p.option)
}
"""By the name of a command's option, the policies whose parameter it is."""


def find_policy(mode: str) -> Policy:
    """The policy of this name."""
    if mode not in POLICIES:
        raise InvalidArgumentError(f"mode is {quote(mode)}; accepted: {', '.join(MODES)}")
    return POLICIES[mode]
