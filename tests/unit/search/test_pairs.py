"""All pairs that reach a threshold: those of comparing everything with everything, each once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diml.matching import Matcher, Regions
from diml.search import alike_pairs
from diml.search.index import create_store
from diml.search.store import Rows, encode_regions
from unit.search.contract import CONFIG, make_regions


@pytest.fixture
def regions():
    """Seventy images, so that they come in two parts: some noisy copies of others."""
    base = make_regions(70, seed=3)
    noise = make_regions(70, seed=4)
    copies = torch.arange(70) // 2  # pairs of neighbours are alike, and more so the lower their number
    far = (torch.arange(70) / 50).reshape(-1, 1)
    return Regions.normalized(
        base.dense[copies] + far.unsqueeze(-1) * noise.dense, base.pooled[copies] + far * noise.pooled, (2, 2)
    )


@pytest.fixture
def store(tmp_path, regions):
    made = create_store(tmp_path / "index", CONFIG)
    ids = tuple(f"{row:02}" for row in range(70))
    metadata = tuple({"label": f"l{row % 2}" if row % 5 else None, "shelf": row // 4} for row in range(70))
    made.add(Rows(ids, regions.pooled.numpy(), encode_regions(regions, CONFIG), metadata))
    return made


MATCHER = Matcher(epsilon=0.2)


def brute(regions, threshold, matcher=MATCHER):
    found = {}
    for a in range(69):
        pairs = matcher.match(regions[a], regions[a + 1 :])
        for b, score in enumerate(pairs.score.tolist(), start=a + 1):
            if score >= threshold:
                found[f"{a:02}", f"{b:02}"] = score
    return found


@pytest.mark.parametrize(("threshold", "weight"), [(1.2, 1), (0.8, 0), (0.5, torch.inf), (2.8, 3)])
def test_pairs_are_those_of_comparing_all(store, regions, threshold, weight):
    matcher = Matcher(epsilon=0.2, structural_weight=weight)
    expected = brute(regions, threshold, matcher)
    assert len(expected) > 5
    found = list(alike_pairs(store, threshold, matcher=matcher, neighbours=69))
    assert len(found) == len(expected)  # each once
    assert {(pair.a, pair.b) for pair in found} == expected.keys()
    for pair in found:
        assert pair.score == pytest.approx(expected[pair.a, pair.b], abs=4e-3)
        assert (pair.structural is None) == (weight == 0)


def test_conditions_and_labels_that_differ(store):
    everything = list(alike_pairs(store, 1.2, matcher=MATCHER))
    differing = list(alike_pairs(store, 1.2, matcher=MATCHER, differ="label"))
    labels = [(pair.metadata_a["label"], pair.metadata_b["label"]) for pair in everything]
    expected = {(p.a, p.b) for p, (a, b) in zip(everything, labels, strict=True) if a and b and a != b}
    assert 0 < len(expected) < len(everything)
    assert {(pair.a, pair.b) for pair in differing} == expected
    shelf = {(pair.a, pair.b) for pair in alike_pairs(store, 1.2, matcher=MATCHER, where="shelf < 3")}
    assert shelf == {(p.a, p.b) for p in everything if max(p.metadata_a["shelf"], p.metadata_b["shelf"]) < 3}


def test_pairs_come_before_all_is_compared(store):
    asked = []
    nearest = store.nearest

    def counted(pooled, k, **options):
        asked.append(len(pooled))
        return nearest(pooled, k, **options)

    store.nearest = counted
    assert next(alike_pairs(store, 1.2, matcher=MATCHER)).score >= 1.2
    assert asked == [64]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"neighbours": 0}, "at least 1"), ({"differ": "colour"}, "no column 'colour'"), ({"where": "("}, "where")],
)
def test_settings_out_of_range_are_refused_at_once(store, options, told):
    with pytest.raises(ValueError, match=told):
        alike_pairs(store, 1.0, **options)


def test_pairs_are_compared_as_the_index_says_unless_told_otherwise(store, tmp_path):
    own = {(pair.a, pair.b): pair.score for pair in alike_pairs(store, 1.2)}
    assert own == {(pair.a, pair.b): pair.score for pair in alike_pairs(store, 1.2, matcher=CONFIG.matcher)}
    assert own != {(pair.a, pair.b): pair.score for pair in alike_pairs(store, 1.2, matcher=Matcher())}


def test_an_index_of_pooled_vectors_has_pairs_by_pooled_cosine(tmp_path, regions):
    config = dataclasses.replace(CONFIG, storage="none", num_regions=0)
    store = create_store(tmp_path / "pooled", config)
    rows = Rows(
        tuple(f"{row:02}" for row in range(70)), regions.pooled.numpy(), np.empty((70, 0), np.uint8), ({},) * 70
    )
    store.add(rows)
    with pytest.raises(ValueError, match="pooled vectors only; compare those with structural_weight 0"):
        alike_pairs(store, 0.8)
    pooled = Matcher(structural_weight=0)
    found = {(pair.a, pair.b) for pair in alike_pairs(store, 0.8, matcher=pooled, neighbours=69)}
    assert found == brute(regions, 0.8, pooled).keys()
