"""Bootstrap intervals: exact where nothing varies, near the analytic ones where these are known."""

from __future__ import annotations

import numpy as np
import pytest

from diml.evaluation.intervals import bootstrap_means, interval


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, -0.7])
@pytest.mark.parametrize("queries", [1, 2, 151])
def test_the_interval_of_a_constant_is_the_constant(value, queries):
    low, high = interval(bootstrap_means(np.full((queries, 1), value), 50, seed=0)[:, 0])
    assert low == pytest.approx(value, abs=1e-12)
    assert high == pytest.approx(value, abs=1e-12)
    assert low <= high


def test_the_seed_decides():
    values = np.random.default_rng(0).random((40, 3))
    first, again, other = (bootstrap_means(values, 20, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=1).all()


def test_more_resamples_begin_with_the_fewer():
    values = np.random.default_rng(0).random((40, 3))
    np.testing.assert_array_equal(bootstrap_means(values, 30, 0)[:20], bootstrap_means(values, 20, 0))


def test_all_columns_share_each_resample():
    means = bootstrap_means(np.random.default_rng(0).random((40, 1)) * [1, -2, 10], 50, seed=0)
    np.testing.assert_allclose(means, means[:, :1] * [1, -2, 10], atol=1e-12)


def test_resamples_are_means_of_queries_drawn_with_replacement():
    means = bootstrap_means(column(0, 1, 10, 100), 4000, seed=0)[:, 0] * 4
    digits = np.stack([means // 100, means % 100 // 10, means % 10 // 1], axis=1).astype(int)
    drawn = np.column_stack([digits, 4 - digits.sum(axis=1)])  # how often 100, 10, 1 and 0 were drawn
    assert drawn.min() == 0
    assert drawn.max() == 4
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 3 / 4, atol=0.08)


def test_the_interval_cuts_a_fortieth_at_either_end():
    assert interval(np.random.default_rng(0).permutation(np.arange(1001.0))) == (25.0, 975.0)


@pytest.mark.parametrize("queries", [2, 30, 300])
def test_the_interval_contains_the_mean(queries):
    values = np.random.default_rng(queries).random((queries, 1))
    low, high = interval(bootstrap_means(values, 500, seed=0)[:, 0])
    assert low < values.mean() < high


@pytest.mark.parametrize(("queries", "share"), [(200, 0.5), (500, 0.2), (2000, 0.9)])
def test_for_hits_and_misses_the_interval_is_the_analytic_one(queries, share):
    values = (np.arange(queries) < share * queries)[:, None].astype(float)
    half = 1.96 * np.sqrt(share * (1 - share) / queries)
    low, high = interval(bootstrap_means(values, 3000, seed=0)[:, 0])
    assert (share - low, high - share) == pytest.approx((half, half), rel=0.12)


def test_about_95_of_100_intervals_contain_the_truth():
    generator = np.random.default_rng(0)
    values = (generator.random((200, 300)) < 0.3).astype(float)  # 300 data sets of 200 queries
    means = bootstrap_means(values, 300, seed=0)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    assert interval(means[:, 7]) == pytest.approx((low[7], high[7]))
    assert 0.91 < np.mean((low <= 0.3) & (high >= 0.3)) < 0.98
