"""`Report`: rows, intervals, paired comparisons; as JSON and as lines of CSV."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from diml.evaluation import Report
from diml.evaluation.metrics import METRICS
from diml.evaluation.tables import csv_lines, reports_frame


def numbers(*ks: int, queries: int = 30, seed: int = 0) -> dict[int, dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return {k: {metric: generator.random(queries) for metric in METRICS} for k in ks}


def report(per_query: dict[int, dict[str, np.ndarray]], resamples: int = 100, seed: int = 0) -> Report:
    queries = len(next(iter(per_query.values()))["map@r"])
    return Report(
        per_query=per_query,
        queries=np.arange(queries),
        without_relevant=np.array([40, 41]),
        hits={k: np.zeros((queries, 1), np.int64) for k in per_query},
        gallery_size=50,
        unconverged_pairs=3,
        settings={"resamples": resamples, "seed": seed},
    )


def test_rows_are_means_over_queries_in_the_order_asked():
    per_query = numbers(100, 0, 5)
    made = report(per_query)
    assert [tuple(row) for row in made.rows] == [("rerank_at", *METRICS)] * 3
    assert [row["rerank_at"] for row in made.rows] == [100, 0, 5]
    for k in per_query:
        for metric in METRICS:
            assert made.row(k)[metric] == pytest.approx(sum(per_query[k][metric]) / 30, abs=1e-14)


def test_a_k_that_was_not_evaluated_is_named_with_those_that_were():
    with pytest.raises(KeyError, match=r"rerank_at: 7 was not evaluated; there are \[0, 100\]"):
        report(numbers(0, 100)).row(7)


def test_intervals_contain_the_means():
    made = report(numbers(0, 5))
    for row, bounds in zip(made.rows, made.intervals, strict=True):
        assert tuple(bounds) == METRICS
        assert all(low < row[metric] < high for metric, (low, high) in bounds.items())


def test_the_seed_decides_the_intervals_and_not_the_means():
    first, again, other = (report(numbers(0, 5), seed=seed) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert first.rows == other.rows
    assert first.intervals != other.intervals


@pytest.mark.parametrize(("ks", "base"), [((0, 5, 100), 0), ((100, 0), 0), ((50, 10), 10), ((7,), 7)])
def test_every_other_k_is_compared_with_the_smallest(ks, base):
    per_query = numbers(*ks)
    made = report(per_query)
    compared = [(c.rerank_at, c.against, c.metric) for c in made.comparisons]
    assert compared == [(k, base, metric) for k in ks if k != base for metric in METRICS]
    for c in made.comparisons:
        assert c.difference == pytest.approx(made.row(c.rerank_at)[c.metric] - made.row(base)[c.metric])
        assert c.low < c.difference < c.high


@pytest.mark.parametrize("ks", [(0, 100), (0, 5, 100), (0, 1, 2, 5, 100)])
@pytest.mark.parametrize("queries", [1, 7, 151, 3000])
def test_identical_rankings_differ_by_exactly_0(ks, queries):
    made = report(dict.fromkeys(ks, numbers(0, queries=queries)[0]))
    assert {(c.difference, c.low, c.high) for c in made.comparisons} == {(0.0, 0.0, 0.0)}


def test_a_constant_gain_is_known_exactly_as_the_queries_are_paired():
    per_query = numbers(0)
    per_query[100] = {metric: values + 0.25 for metric, values in per_query[0].items()}
    for c in report(per_query).comparisons:
        assert (c.low, c.difference, c.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_it_becomes_json_and_comes_back_with_the_same_numbers():
    made = report(numbers(0, 100))
    back = json.loads(json.dumps(made.to_dict()))
    assert back["rows"] == made.rows
    assert back["intervals_95"] == [{m: list(bounds) for m, bounds in row.items()} for row in made.intervals]
    assert [c["low"] for c in back["comparisons"]] == [c.low for c in made.comparisons]
    counts = ("queries", "gallery", "without_relevant", "unconverged_pairs")
    assert [back[name] for name in counts] == [30, 50, 2, 3]
    assert back["settings"] == {"resamples": 100, "seed": 0}


def test_reports_of_different_queries_are_joined():
    whole = report(numbers(0, 100))
    parts = [
        Report(
            per_query={
                k: {name: values[rows] for name, values in found.items()} for k, found in whole.per_query.items()
            },
            queries=whole.queries[rows],
            without_relevant=whole.without_relevant[:1] if rows.start == 0 else whole.without_relevant[1:],
            hits={k: hits[rows] for k, hits in whole.hits.items()},
            gallery_size=50,
            unconverged_pairs=1 if rows.start == 0 else 2,
            settings=whole.settings,
        )
        for rows in (slice(0, 7), slice(7, 30))
    ]
    assert Report.concat(parts).to_dict() == whole.to_dict()


def test_its_representations_are_short():
    made = report(numbers(0, 100))
    assert len(repr(made)) < 200
    assert "30 queries, 50 gallery images" in repr(made)
    assert made._repr_html_().count("<tr>") == 3


def test_csv_has_a_line_for_each_method_and_k():
    made = report(numbers(0, 100))
    small = report(numbers(3, queries=4, seed=1))
    header, *lines = csv_lines({"plain, small": small, "large": made})
    assert header[:4] == ["method", "rerank_at", "queries", "input"]
    assert header[4:] == [name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")]
    assert [line[:3] for line in lines] == [["plain, small", "3", "4"], ["large", "0", "30"], ["large", "100", "30"]]
    for line, row, bounds in zip(lines[1:], made.rows, made.intervals, strict=True):
        expected = [value for metric in METRICS for value in (row[metric], *bounds[metric])]
        assert [float(cell) for cell in line[4:]] == pytest.approx(expected, abs=5.1e-7)


def test_csv_of_nothing_is_the_header():
    assert len(csv_lines({})) == 1


def test_one_report_minus_another_is_paired_by_query():
    frozen = numbers(0, 100)
    trained = {k: {metric: values + 0.125 for metric, values in found.items()} for k, found in frozen.items()}
    for k in (None, 0, 100):
        found = report(trained).minus(report(frozen), k)
        assert list(found) == list(METRICS)
        for difference in found.values():
            assert difference == pytest.approx((0.125, 0.125, 0.125), abs=1e-12)
            assert difference.excludes_zero
    assert all(not value.excludes_zero for value in report(frozen).minus(report(frozen)).values())


def test_minus_at_two_k_is_the_comparison_of_a_report_with_itself():
    made = report(numbers(0, 100))
    found = made.minus(made, 100, 0)
    for c in made.comparisons:
        assert found[c.metric] == pytest.approx((c.difference, c.low, c.high), abs=1e-12)
    back = made.minus(made, 0, 100)
    for metric, (value, low, high) in found.items():
        assert back[metric] == pytest.approx((-value, -high, -low), abs=1e-12)


def test_queries_of_several_draws_are_resampled_by_image():
    once = report(numbers(0, 5, queries=12))
    twice = replace(Report.concat([once, once]), settings=once.settings)
    other = report(numbers(0, 5, queries=12, seed=1))
    expected = once.minus(other)
    found = twice.minus(Report.concat([other, other]))
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], abs=1e-12)


def test_reports_that_cannot_be_paired_are_refused():
    made = report(numbers(0, 100))
    with pytest.raises(ValueError, match="need the same queries and gallery, got 30 queries and 50 gallery images"):
        made.minus(report(numbers(0, 100, queries=29)))
    with pytest.raises(KeyError, match="rerank_at: 100 was not evaluated"):
        made.minus(report(numbers(0)))
    with pytest.raises(KeyError, match="rerank_at: 3 was not evaluated"):
        made.minus(made, 3)
    only = {0: {"minp": np.zeros(30)}}
    with pytest.raises(ValueError, match="other: need a report with a metric that this one has"):
        made.minus(replace(made, per_query=only), 0)


def test_a_data_frame_has_a_row_for_each_k_and_method():
    pytest.importorskip("pandas")
    made = report(numbers(0, 100))
    frame = made.to_frame()
    assert list(frame.index) == [0, 100]
    assert list(frame.columns[:3]) == ["recall@1", "recall@1_low", "recall@1_high"]
    for row, bounds in zip(made.rows, made.intervals, strict=True):
        for metric in METRICS:
            found = frame.loc[row["rerank_at"], [metric, f"{metric}_low", f"{metric}_high"]]
            assert tuple(found) == (row[metric], *bounds[metric])
    both = reports_frame({"a": made, "b": report(numbers(7))})
    assert list(both.index) == [("a", 0), ("a", 100), ("b", 7)]
    assert both.loc[("a", 100), "map@r"] == made.row(100)["map@r"]
