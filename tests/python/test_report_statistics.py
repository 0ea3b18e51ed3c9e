"""The intervals of the report against closed forms, published values and exact coverage."""

from __future__ import annotations

import math
from itertools import product

import pytest

from bsfa.eval.statistics import (
    bracket,
    effective_size,
    mean_interval,
    paired_difference,
    ratio_of_medians,
    t_quantile,
    wilson,
)

Z = 1.959963984540054


def test_wilson_has_the_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson([1.0] * hits + [0.0] * (n - hits))
        assert found.value == pytest.approx(hits / n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.n == n


def test_wilson_at_the_end_has_its_closed_form() -> None:
    found = wilson([1.0] * 30)
    assert found.low == pytest.approx(30 / (30 + Z * Z))
    assert found.high == 1


def test_partial_scores_count_as_their_sum() -> None:
    assert wilson([0.5] * 20) == wilson([1.0] * 10 + [0.0] * 10)


def test_equal_weights_are_no_weights() -> None:
    scores = [1.0, 0.0, 1.0, 1.0, 0.25]
    plain, weighted = wilson(scores), wilson(scores, [0.2] * 5)
    assert (weighted.low, weighted.high) == pytest.approx((plain.low, plain.high))
    assert effective_size([3.0, 3.0]) == pytest.approx(2)
    assert effective_size([1.0, 0.0]) == pytest.approx(1)


def test_a_weighted_mean_is_worth_fewer_prompts() -> None:
    scores = [1.0] * 10 + [0.0] * 10
    even = wilson(scores)
    uneven = wilson(scores, [1.9] * 5 + [0.1] * 5 + [1.9] * 5 + [0.1] * 5)
    assert uneven.value == pytest.approx(0.5)
    assert uneven.high - uneven.low > even.high - even.low


@pytest.mark.parametrize("n", [5, 30, 100])
def test_no_changed_prompt_is_not_certainty(n: int) -> None:
    found = paired_difference([0.0] * n)
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-Z * Z / (n + Z * Z), Z * Z / (n + Z * Z)))


def test_all_prompts_lost_has_its_closed_form() -> None:
    found = paired_difference([-1.0] * 8)
    assert found.low == pytest.approx(-1)
    assert found.high == pytest.approx(-(8 - Z * Z) / (8 + Z * Z))


def _restricted_statistic(gains: int, losses: int, n: int, delta: float) -> float:
    """The score statistic with its nuisance found by search in place of a formula."""

    def likelihood(loss: float) -> float:
        gain, same = loss + delta, 1 - 2 * loss - delta
        total = 0.0
        for count, probability in ((gains, gain), (losses, loss), (n - gains - losses, same)):
            if count:
                total += count * math.log(probability) if probability > 0 else -math.inf
        return total

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if likelihood(a) < likelihood(b):
            low = a
        else:
            high = b
    loss = (low + high) / 2
    variance = n * (2 * loss + delta - delta * delta)
    return (gains - losses - n * delta) / math.sqrt(variance)


@pytest.mark.parametrize(("gains", "losses", "n"), [(2, 7, 30), (1, 4, 12), (20, 5, 100)])
def test_the_ends_are_where_the_score_test_rejects(gains: int, losses: int, n: int) -> None:
    found = paired_difference([1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses))
    assert _restricted_statistic(gains, losses, n, found.low) == pytest.approx(Z, abs=1e-4)
    assert _restricted_statistic(gains, losses, n, found.high) == pytest.approx(-Z, abs=1e-4)


def test_many_prompts_give_the_interval_of_wald() -> None:
    gains, losses, n = 860, 1500, 16000
    found = paired_difference([1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses))
    mean = (gains - losses) / n
    half = Z * math.sqrt(((gains + losses) / n - mean * mean) / n)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=2e-4)


@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.05), (0.1, 0.1), (0.0, 0.15), (0.3, 0.1)])
def test_paired_intervals_cover_the_truth(gain: float, loss: float) -> None:
    """Exactly, over all outcomes of 20 prompts."""
    n, covered = 20, 0.0
    for gains, losses in product(range(n + 1), repeat=2):
        same = n - gains - losses
        if same < 0 or (losses and not loss) or (gains and not gain):
            continue
        probability = (
            math.comb(n, gains)
            * math.comb(n - gains, losses)
            * gain**gains
            * loss**losses
            * (1 - gain - loss) ** same
        )
        if probability < 1e-9:
            continue
        found = paired_difference([1.0] * gains + [-1.0] * losses + [0.0] * same)
        covered += probability * (found.low <= gain - loss <= found.high)
    assert 0.93 < covered < 0.999


def test_partial_differences_are_not_narrower_than_their_t_interval() -> None:
    differences = [0.0, -0.25, 0.5, 0.0, -0.5, 0.25, 0.0, 0.0, -0.25, 0.0] * 4
    score, t = paired_difference(differences), mean_interval(differences)
    assert score.value == pytest.approx(t.value)
    assert score.low < t.low
    assert score.high > t.high


def test_t_quantiles_are_those_of_the_tables() -> None:
    for freedom, quantile in ((1, 12.7062), (4, 2.77645), (9, 2.26216), (29, 2.04523)):
        assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-5)
    assert t_quantile(0.975, 2) == pytest.approx(math.sqrt(2 * 0.95**2 / (1 - 0.95**2)))
    assert t_quantile(0.975, 100000) == pytest.approx(Z, abs=1e-4)


def test_a_mean_of_one_value_is_unknown() -> None:
    assert mean_interval([0.3]).high == math.inf
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.high - found.value == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)


def test_ratio_of_medians() -> None:
    dense, sparse = [[2.0, 2.1, 1.9, 2.0]], [[1.0, 1.1, 0.9, 1.0]]
    found = ratio_of_medians(dense, sparse)
    assert found.value == pytest.approx(2)
    assert 1.9 / 1.1 <= found.low < found.value < found.high <= 2.1 / 0.9
    assert ratio_of_medians(dense, sparse) == found
    assert ratio_of_medians([[3.0], [1.0]], [[1.0], [1.0]]).low == pytest.approx(2)


def test_nothing_is_extrapolated() -> None:
    xs = [0.1, 0.3, 0.3, 0.7]
    assert bracket(xs, 0.05) is None
    assert bracket(xs, 0.71) is None
    assert bracket([], 0.5) is None
    assert bracket(xs, 0.2) == (0, 1, pytest.approx(0.5))
    left, right, share = bracket(xs, 0.3) or (0, 0, 1.0)
    assert (xs[left], xs[right], share) == (0.3, 0.3, 0.0)
    assert bracket(xs, 0.7) == (3, 3, 0.0)
