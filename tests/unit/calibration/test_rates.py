"""False-accept rates: against the exact binomial bound, and under dependence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diml.calibration.rates import Dependence, RateTable
from unit.calibration.conftest import made_up_pairs


def naive_variance(accepted, class_a, class_b):
    """Jackknife: the rate is computed again without each class."""
    known = np.unique(np.r_[class_a, class_b])
    without = np.array([accepted[(class_a != one) & (class_b != one)].mean() for one in known])
    return (len(known) - 1) / len(known) * ((without - accepted.mean()) ** 2).sum()


@pytest.mark.parametrize("two", [True, False])
def test_the_design_effect_is_that_of_a_naive_jackknife(two):
    random = np.random.default_rng(1)
    class_a, class_b = random.integers(6, size=80), random.integers(6, size=80)
    if not two:
        class_b = class_a
    accepted = random.random(80) < np.where(class_a == 2, 0.8, 0.1)
    expected = naive_variance(accepted, class_a, class_b)
    rate = accepted.mean()
    found = Dependence.of(class_a, class_b if two else None).design_effect(accepted)
    assert found == pytest.approx(max(1.0, expected * 80 / (rate * (1 - rate))))
    assert found > 1


def test_without_dependence_the_bound_is_that_of_clopper_and_pearson():
    dependence = Dependence.of(np.arange(2000))
    accepted = np.arange(2000) < 12
    assert dependence.design_effect(accepted) == pytest.approx(1.0, abs=1e-3)
    assert dependence.upper_bound(accepted.mean(), 1.0) == pytest.approx(stats.beta.ppf(0.95, 13, 1988), rel=2e-3)
    exact = stats.binomtest(12, 2000).proportion_ci(method="exact")
    assert dependence.interval(accepted) == pytest.approx((exact.low, exact.high), rel=5e-3)


def test_a_table_is_monotone_and_its_thresholds_hold_on_its_own_pairs():
    pairs = made_up_pairs(5000, 0)
    others = pairs.subset(~pairs.same)
    table = RateTable.of(others.scores, others.class_q, others.class_g)
    assert (np.diff(table.scores) < 0).all()
    assert (np.diff(table.rates) >= 0).all()
    assert (np.diff(table.bounds) >= 0).all()
    assert (np.array(table.bounds) >= table.rates).all()
    assert table.rates[0] == 0
    for rate in (0.01, 0.05, 0.3):
        promised, observed = table.threshold(rate), table.threshold(rate, promised=False)
        assert promised >= observed
        assert (others.scores >= promised).mean() <= rate
        assert 0.8 * rate < (others.scores >= observed).mean() <= rate


def test_the_promise_holds_for_other_classes_in_95_of_100_samples():
    """Scores with a part that belongs to the two classes: pairs are far from independent."""

    def sample(random, classes=25):
        of_class = random.normal(0, 0.7, classes)
        a, b = np.triu_indices(classes, 1)
        a, b = np.repeat(a, 6), np.repeat(b, 6)
        return of_class[a] + of_class[b] + random.normal(size=len(a)), a, b

    random, broken, naive_broken = np.random.default_rng(0), 0, 0
    deviation = np.sqrt(1 + 2 * 0.7**2)
    for _ in range(40):
        scores, a, b = sample(random)
        threshold = RateTable.of(scores, a, b).threshold(0.05)
        broken += stats.norm.sf(threshold / deviation) > 0.05
        independent = RateTable.of(scores, np.arange(len(scores)))
        naive_broken += stats.norm.sf(independent.threshold(0.05) / deviation) > 0.05
    assert broken <= 4
    assert naive_broken > 12


def test_a_rate_that_cannot_be_promised_is_an_error_with_the_smallest_one():
    random = np.random.default_rng(0)
    table = RateTable.of(random.normal(size=100), np.arange(100))
    with pytest.raises(ValueError, match=f"at least {table.smallest_rate:.4g}.*100 comparisons"):
        table.threshold(0.001)
    assert table.threshold(0.001, promised=False) > max(table.scores[1:])
    assert table.threshold(table.smallest_rate) == table.scores[0] or table.bounds[1] <= table.smallest_rate
    for wrong in (0, 1, -0.1, 5):
        with pytest.raises(ValueError, match="fraction in"):
            table.threshold(wrong)


def test_one_class_promises_nothing():
    table = RateTable.of(np.arange(50.0), np.zeros(50, dtype=int))
    assert table.smallest_rate > 0.9
