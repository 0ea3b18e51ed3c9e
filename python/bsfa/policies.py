"""The ways of attending that a model can be given, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bsfa.errors import InvalidArgumentError, UnsupportedError

__all__ = ["MODES", "POLICIES", "Policy", "find_policy"]


@dataclass(frozen=True)
class Policy:
    """One mode of `bsfa.enable`."""

    name: str
    label: str
    """In figures."""
    setting: str = ""
    """What it is set by: "budget" (blocks), the name of its parameter, or nothing."""
    default: float | None = None
    """Of the parameter."""
    most: float = math.inf
    """The largest parameter."""
    devices: tuple[str, ...] = ("cpu", "cuda")

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
                    f"parameter is {given!r} with mode {self.name!r}; it belongs to {takers}"
                )
            return None
        value = self.default if given is None else given
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 < value <= self.most:
            limit = "" if math.isinf(self.most) else f", at most {self.most:g}"
            raise InvalidArgumentError(
                f"parameter is {value!r}; mode {self.name!r} takes a finite {self.setting} above 0"
                + limit
            )
        return float(value)

    def check_device(self, device_type: str) -> None:
        """Refuses a device that no backend runs it on."""
        if device_type not in self.devices:
            raise UnsupportedError(
                f"mode {self.name!r} runs on {', '.join(self.devices)}; the model is on "
                f"{device_type}"
            )

    def arguments(self, budget: int | None, parameter: float | None) -> dict[str, Any]:
        """Of `bsfa.attention_forward`, but for thresholds, which differ by layer."""
        if self.name == "sliding_window":
            return {"window_blocks": budget}
        if self.name == "mass":
            return {"mass_c": parameter}
        if self.name == "skip_softmax":
            return {"skip_lambda": parameter}
        if self.name == "skip_softmax_outwards":
            return {"skip_lambda": parameter, "skip_order": "outwards"}
        return {}


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("dense", "dense"),
        Policy("threshold", "threshold (BSFA)", "budget"),
        Policy("sliding_window", "sliding window", "budget"),
        Policy("sparge", "SpargeAttention"),
        Policy("mass", "mass", "c", 0.1, devices=("cpu",)),
        Policy("skip_softmax", "skip-softmax", "lambda", 0.03, 1, ("cpu",)),
        Policy("skip_softmax_outwards", "skip-softmax, outwards", "lambda", 0.03, 1, ("cpu",)),
    )
}
MODES = tuple(POLICIES)


def find_policy(mode: str) -> Policy:
    """The policy of this name."""
    if mode not in POLICIES:
        raise InvalidArgumentError(f"mode is {mode!r}; accepted: {', '.join(MODES)}")
    return POLICIES[mode]
