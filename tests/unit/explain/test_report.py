"""The page of an evaluation: which queries it displays, and that its ranks and marks are those of the evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated import made_up_calibrator
from diml.data import ImageSet
from diml.evaluation import DatasetEvaluation, evaluate_regions
from diml.explain import evaluation_page
from diml.explain.report import choose_queries
from diml.matching import Matcher
from drawn_pair import drawn_pair


@pytest.fixture
def found(tmp_path: Path, embedder: Any) -> DatasetEvaluation:
    """Twelve images of three classes, some of them in the wrong one."""
    a, b = drawn_pair(96)
    made = [a.rotate(angle) for angle in (0, 5, 90, 95)] + [b.rotate(angle) for angle in (0, 5, 90, 95)]
    made += [a.rotate(180), a.rotate(185), b.rotate(180), b.rotate(185)]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    paths = []
    for number, image in enumerate(made):
        paths.append(tmp_path / f"class{labels[number]}" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        image.save(paths[-1])
    regions = embedder.embed(made)
    report = evaluate_regions(regions, labels, rerank_at=(0, 5), matcher=embedder.matcher, resamples=50)
    images = ImageSet(name="drawn", images=tuple(paths), labels=labels, class_names=("one", "two", "three"))
    return DatasetEvaluation(report, images, regions, (), embedder.matcher)


def data_of(page: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    return told


def test_worst_come_first_and_wrong_before_right(found: DatasetEvaluation) -> None:
    report = found.report
    order = choose_queries(report, 5, 12)
    numbers = [(report.per_query[5]["recall@1"][row], report.per_query[5]["map@r"][row]) for row in order]
    assert sorted(order) == list(range(12))
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert choose_queries(report, 5, 3) == order[:3]
    assert choose_queries(report, 5, 99) == order


def test_changed_are_those_with_the_largest_change_and_random_depends_on_the_seed(found: DatasetEvaluation) -> None:
    report = found.report
    change = np.abs(report.per_query[5]["map@r"] - report.per_query[0]["map@r"])
    chosen = choose_queries(report, 5, 4, "changed")
    assert min(change[chosen]) >= max(np.delete(change, chosen))
    samples = {tuple(sorted(choose_queries(report, 5, 4, "random", seed))) for seed in range(8)}
    assert len(samples) > 3
    assert choose_queries(report, 5, 4, "random", 1) == choose_queries(report, 5, 4, "random", 1)


def test_places_marks_and_scores_are_the_evaluations(found: DatasetEvaluation, embedder: Any) -> None:
    data = data_of(evaluation_page(found, embedder, method="colours", rerank_at=5, queries=12, hits=3))
    report, images = found.report, found.images
    file_of = {path.name: row for row, path in enumerate(images.paths)}
    for shown, row in zip(data["queries"], choose_queries(report, 5, 12), strict=True):
        query = int(report.queries[row])
        assert shown["name"] == "/".join(images.paths[query].parts[-2:])
        assert data["images"][shown["image"]]["name"] == shown["name"]
        rows = [file_of[pair["names"]["gallery"].split("/")[-1]] for pair in shown["pairs"]]
        assert [rows[at] for at in shown["before"]] == report.hits[0][row, :3].tolist()
        assert [rows[at] for at in shown["after"]] == report.hits[5][row, :3].tolist()
        for pair, image in zip(shown["pairs"], rows, strict=True):
            assert pair["hit"]["correct"] == bool(images.labels[image] == images.labels[query])
            assert pair["hit"]["note"] == images.class_names[images.labels[image]]
            for k, name in ((0, "pooled_rank"), (5, "rank")):
                assert report.hits[k][row, pair["hit"][name] - 1] == image
            assert data["images"][pair["images"]["gallery"]]["name"] == pair["names"]["gallery"]
            cosine = float(found.regions.pooled[query] @ found.regions.pooled[image])
            assert pair["pooled"] == pytest.approx(cosine, abs=1e-6)
        assert shown["map_after"] == report.per_query[5]["map@r"][row]


def test_the_metrics_are_those_of_the_report(found: DatasetEvaluation, embedder: Any) -> None:
    data = data_of(
        evaluation_page(found, embedder, method="colours", rerank_at=5, queries=2, settings={"model": "mine"})
    )
    assert [row["name"] for row in data["table"]] == ["colours", "colours + DIML (5)"]
    for told, k in zip(data["table"], (0, 5), strict=True):
        for title, metric in (("R@1", "recall@1"), ("RP", "r_precision"), ("MAP@R", "map@r")):
            row = [int(row["rerank_at"]) for row in found.report.rows].index(k)
            low, high = found.report.intervals[row][metric]
            assert told["values"][title] == [found.report.row(k)[metric], low, high]
    difference = found.report.row(5)["map@r"] - found.report.row(0)["map@r"]
    assert data["differences"]["MAP@R"][0] == pytest.approx(difference)
    assert data["counts"] == {"queries": 12, "gallery": 12, "shown": 2}


def test_pairs_are_explained_with_the_matcher_of_the_evaluation(found: DatasetEvaluation, embedder: Any) -> None:
    matchers = (Matcher(epsilon=0.02, structural_weight=4), Matcher(epsilon=0.5))
    pages = [
        data_of(evaluation_page(replace(found, matcher=matcher), embedder, method="m", rerank_at=5, queries=1))
        for matcher in matchers
    ]
    pairs = [page["queries"][0]["pairs"][0] for page in pages]
    peaks = [np.asarray(pair["plan"]).max() for pair in pairs]
    assert peaks[0] > 1.2 * peaks[1]
    assert pairs[0]["score"] == pytest.approx(pairs[0]["pooled"] + 4 * pairs[0]["structural"])
    for page, matcher in zip(pages, matchers, strict=True):
        assert page["settings"] == matcher.to_dict()


def test_parts_divide_the_whole_score_of_each_pair(found: DatasetEvaluation, embedder: Any) -> None:
    data = data_of(evaluation_page(found, embedder, method="m", rerank_at=5, queries=2))
    assert data["calibration"] is None
    for query in data["queries"]:
        assert (query["in_gallery"], query["notices"]) == (None, [])
        for pair in query["pairs"]:
            summary = pair["summary"]
            assert summary["whole"]
            total = sum(part["value"] for part in summary["parts"]) + summary["between"]["value"]
            assert total == pytest.approx(summary["score"], abs=2e-5)
            assert summary["probability"] is None


def test_hits_have_the_probability_among_all_candidates_of_their_query(
    found: DatasetEvaluation, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(embedder), "fingerprint", lambda _: "c" * 64, raising=False)
    calibrator = made_up_calibrator(embedder, depth=5, kind="colour")
    data = data_of(evaluation_page(found, embedder, method="m", rerank_at=5, queries=12, hits=3, calibrator=calibrator))
    assert data["calibration"] == data["settings"]["calibration"] == str(calibrator)
    file_of = {path.name: row for row, path in enumerate(found.images.paths)}
    for shown, row in zip(data["queries"], choose_queries(found.report, 5, 12), strict=True):
        query = int(found.report.queries[row])
        pooled = (found.regions.pooled @ found.regions.pooled[query]).numpy()
        near = [image for image in np.argsort(-pooled, kind="stable") if image != query][:5]
        # near-duplicates score almost the same, and ranks among ties depend on the last digit: that of the ranking
        scores = found.matcher.score(found.regions[query], found.regions, np.array([near]))[0].numpy()
        expected = dict(zip(near, calibrator.hit_probability(scores), strict=True))
        for pair in shown["pairs"]:
            chance = expected[file_of[pair["names"]["gallery"].split("/")[-1]]]
            assert pair["hit"]["probability"] == pair["summary"]["probability"] == pytest.approx(chance, abs=1e-6)
            assert "the same colour" in pair["summary"]["headline"]
        assert shown["in_gallery"]["gallery_images"] == 11
        assert shown["in_gallery"]["likely"] == (scores.max() >= shown["in_gallery"]["threshold"])
    with pytest.raises(ValueError, match="another matcher"):
        evaluation_page(
            replace(found, matcher=Matcher(epsilon=0.3)), embedder, method="m", rerank_at=5, calibrator=calibrator
        )


def test_wrong_arguments_are_refused(found: DatasetEvaluation, embedder: Any, monkeypatch: Any) -> None:
    for wrong, told in (
        ({"rerank_at": 0}, "rerank_at, hits: need K >= 1"),
        ({"hits": 11}, "1 to 10 hits, got 5 and 11"),
        ({"queries": 0}, "queries: need at least 1, got 0"),
        ({"choose": "best"}, "choose: need one of .* got 'best'"),
    ):
        with pytest.raises(ValueError, match=told):
            evaluation_page(found, embedder, **({"method": "m", "rerank_at": 5} | wrong))
    with pytest.raises(KeyError, match="7 was not evaluated"):
        evaluation_page(found, embedder, method="m", rerank_at=7)
    monkeypatch.setattr("diml.explain.report._MOST_ENTRIES", 8 * 256 * 3)
    with pytest.raises(ValueError, match=r"queries: 12 with up to 8 hits of 16 regions .* show at most 3, fewer hits"):
        evaluation_page(found, embedder, method="m", rerank_at=5)
    evaluation_page(found, embedder, method="m", rerank_at=5, queries=3)
