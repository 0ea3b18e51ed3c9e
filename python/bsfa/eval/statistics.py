"""Intervals of the report. Plain arithmetic: every one has a closed form or a short equation.

Scores lie between 0 and 1. Of all distributions on [0, 1] with a mean p the one on {0, 1} has the
largest variance, p(1 - p), so the intervals for proportions serve partial scores too, with sums of
scores in place of counts: they then are too wide rather than too narrow.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

__all__ = [
    "Interval",
    "bracket",
    "effective_size",
    "mean_interval",
    "paired_difference",
    "ratio_of_medians",
    "t_quantile",
    "wilson",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Independent observations that it rests on."""


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def effective_size(weights: Sequence[float]) -> float:
    """Observations that a weighted mean is worth; their number if the weights are equal."""
    total = sum(weights)
    return total * total / sum(weight * weight for weight in weights)


def _weighted(values: Sequence[float], weights: Sequence[float] | None) -> tuple[float, float]:
    """Mean and effective size; `Sequence` must not be empty."""
    if weights is None:
        return fmean(values), float(len(values))
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / sum(weights), effective_size(weights)


def wilson(
    scores: Sequence[float],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Wilson's score interval of a mean score. Never leaves [0, 1], never has no width."""
    mean, size = _weighted(scores, weights)
    z = _z(confidence)
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(mean, min(low, mean), max(high, mean), len(scores))


def _tango_statistic(delta: float, gain: float, loss: float, size: float) -> float:
    """The score statistic of "the true difference is delta" (Tango 1998), standard normal.

    gain and loss are the sums of what got better and worse. The nuisance, the probability of a
    loss, is at its restricted maximum of the likelihood.
    """
    a = 2 * size
    b = (2 * size - gain + loss) * delta - gain - loss
    c = -loss * delta * (1 - delta)
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = size * (2 * nuisance + delta * (1 - delta))
    excess = gain - loss - size * delta
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def _crossing(statistic: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        if statistic(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def paired_difference(
    differences: Sequence[float],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Tango's score interval of the mean of paired differences of scores, each in [-1, 1].

    Not a t or a bootstrap interval: where no prompt changed, as is common here, these have no width
    at all, though 30 prompts say little about a loss of a few per cent.
    """
    mean, size = _weighted(differences, weights)
    gains, _ = _weighted([max(0.0, d) for d in differences], weights)
    gain, loss = gains * size, (gains - mean) * size
    z = _z(confidence)

    def statistic(delta: float) -> float:
        return _tango_statistic(delta, gain, loss, size)

    low = _crossing(lambda delta: statistic(delta) - z, -1.0, mean)
    high = _crossing(lambda delta: statistic(delta) + z, mean, 1.0)
    return Interval(mean, low, high, len(differences))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / max(tiny, 1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 400):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + factor * d) or tiny)
            c = (1 + factor / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for a probability above one half."""

    def excess(t: float) -> float:
        tail = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
        return tail - (1 - probability)

    high = 2.0
    while excess(high) > 0:
        high *= 2
    return _crossing(excess, 0.0, high)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's t interval of a mean: for errors, densities and the like, and their differences.

    Of a single value nothing is known: the interval is then infinite.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf, len(values))
    half = t_quantile(0.5 + confidence / 2, len(values) - 1)
    half *= stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def ratio_of_medians(
    above: Sequence[Sequence[float]],
    below: Sequence[Sequence[float]],
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
) -> Interval:
    """Sum of the medians of some groups over that of others, with a percentile bootstrap interval.

    A group is the times of one task. The resampling is seeded: the same times, the same interval.
    """
    generator = random.Random(0)

    def total(groups: Sequence[Sequence[float]]) -> float:
        return sum(median(group) for group in groups)

    def resample(groups: Sequence[Sequence[float]]) -> list[list[float]]:
        return [generator.choices(group, k=len(group)) for group in groups]

    drawn = sorted(total(resample(above)) / total(resample(below)) for _ in range(resamples))
    cut = round((1 - confidence) / 2 * resamples)
    n = sum(map(len, above)) + sum(map(len, below))
    return Interval(total(above) / total(below), drawn[cut], drawn[-1 - cut], n)


def bracket(xs: Sequence[float], x: float) -> tuple[int, int, float] | None:
    """Neighbours of x in ascending xs: (left, right, share of the right one); None outside.

    Nothing is ever extrapolated.
    """
    if not xs or not xs[0] <= x <= xs[-1]:
        return None
    right = bisect_left(xs, x)
    if xs[right] == x:
        return right, right, 0.0
    left = right - 1
    return left, right, (x - xs[left]) / (xs[right] - xs[left])
