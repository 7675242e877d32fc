"""Comparisons of matchers: against single evaluations, and their laws."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch

from diml.evaluation import evaluate_regions
from diml.evaluation.compare import PLAIN, compare_matchers
from diml.evaluation.neighbours import NAMES
from diml.matching import Matcher, Regions

MATCHERS = {"paper": Matcher(), "exact": Matcher(epsilon=0), "weight 4": Matcher(structural_weight=4)}


@pytest.fixture(scope="module")
def regions() -> Regions:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 9, 16, generator=generator)
    dense = centres[torch.arange(48) % 8] + 1.6 * torch.randn(48, 9, 16, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), (3, 3))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.arange(48) % 8


@pytest.fixture(scope="module")
def found(regions, labels):
    return compare_matchers(
        regions, labels, MATCHERS, neighbours=("alpha_qe", "k_reciprocal"), baseline="paper", rerank_at=12, seed=3
    )


def test_every_matcher_has_the_metrics_of_its_own_evaluation(regions, labels, found) -> None:
    for name, matcher in MATCHERS.items():
        alone = evaluate_regions(regions, labels, rerank_at=(0, 12), matcher=matcher, seed=3)
        for metric, values in alone.per_query[12].items():
            np.testing.assert_array_equal(found.per_query[name][metric], values)
            assert found.mean(name, metric)[1:] == pytest.approx(alone.intervals[1][metric])
        np.testing.assert_array_equal(found.per_query[PLAIN]["map@r"], alone.per_query[0]["map@r"])


def test_differences_are_paired_and_antisymmetric(found) -> None:
    for name in found.per_query:
        forth, back = found.difference(name, "map@r"), found.difference("paper", "map@r", against=name)
        assert forth.value == pytest.approx(-back.value)
        assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
        assert forth.low <= forth.value <= forth.high
    assert found.difference("paper", "recall@1") == (0, 0, 0)


def test_a_copy_of_the_baseline_shows_no_difference(regions, labels) -> None:
    found = compare_matchers(regions, labels, {"a": Matcher(), "b": Matcher()}, baseline="a", rerank_at=12)
    assert found.difference("b", "map@r") == (0, 0, 0)


def test_plans_have_iterations_and_methods_by_neighbours_name_them(found) -> None:
    assert found.iterations[PLAIN] is None
    assert found.iterations["paper"] > 0
    assert set(found.moved_by) == {NAMES["alpha_qe"], NAMES["k_reciprocal"]}
    assert found.moved_by[NAMES["alpha_qe"]].shape == found.hits[NAMES["alpha_qe"]].shape


def test_csv_and_json_hold_the_rows(found) -> None:
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["name"] for line in lines] == [row["name"] for row in document["rows"]] == list(found.per_query)
    assert float(lines[1]["map@r"]) == pytest.approx(document["rows"][1]["map@r"], abs=1e-6)
    assert document["matchers"]["exact"]["epsilon"] == 0
    assert "paper: MAP@R" in repr(found)
    assert "MAP@R minus paper" in found._repr_html_()


def test_quantized_regions_are_compared_too(regions, labels) -> None:
    found = compare_matchers(regions.quantized(), labels, {"paper": Matcher()}, rerank_at=12)
    assert found.mean("paper", "map@r").value == pytest.approx(
        evaluate_regions(regions.quantized(), labels, rerank_at=(12,)).row(12)["map@r"]
    )


def test_queries_may_be_the_images_before_they_were_coded(regions, labels) -> None:
    coarse = regions.quantized()
    vars(coarse)["codes"] = coarse.codes // 16 * 16
    found = compare_matchers(coarse, labels, {"paper": Matcher()}, rerank_at=12, originals=regions)
    alone = evaluate_regions(coarse, labels, rerank_at=(12,), originals=regions)
    np.testing.assert_array_equal(found.hits["paper"], alone.hits[12])
    swapped = compare_matchers(coarse, labels, {"paper": Matcher()}, rerank_at=12)
    assert (found.hits["paper"] != swapped.hits["paper"]).any()


def test_the_figure_has_a_row_for_each_matcher(found) -> None:
    axes = found.draw().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [n for n in found.per_query if n != "paper"]
    with pytest.raises(ValueError, match="metric: need one of"):
        found.draw("map")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "other"}, "baseline: need one of"),
        ({"rerank_at": 0}, "rerank_at: need at least 1"),
        ({"matchers": {PLAIN: Matcher()}}, "matchers: need every name once"),
        ({"matchers": {NAMES["alpha_qe"]: Matcher()}, "neighbours": ("alpha_qe",)}, "matchers: need every name once"),
    ],
)
def test_errors(regions, labels, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        compare_matchers(regions, labels, **({"matchers": MATCHERS} | arguments))


def test_other_metrics_are_measured_on_request(regions, labels) -> None:
    metrics = ("recall@3", "recall@40", "map", "minp")
    found = compare_matchers(regions, labels, {"paper": Matcher()}, rerank_at=12, metrics=metrics)
    alone = evaluate_regions(regions, labels, rerank_at=(12,), metrics=metrics)
    assert found.metrics == metrics
    for metric in metrics:
        assert found.mean("paper", metric).value == pytest.approx(alone.row(12)[metric], abs=1e-12)
    assert {"recall@40", "recall@40_difference_low", "minp"} <= set(found.rows()[0])
    with pytest.raises(ValueError, match="no metric 'recall@0'"):
        compare_matchers(regions, labels, {"paper": Matcher()}, metrics=("recall@0",))


def test_a_comparison_becomes_a_data_frame(found) -> None:
    pytest.importorskip("pandas")
    frame = found.to_frame()
    assert list(frame.index) == list(found.per_query)
    assert frame.loc["exact", "map@r_difference"] == found.difference("exact", "map@r").value
