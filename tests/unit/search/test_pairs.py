"""All pairs that reach a threshold: those of comparing everything with everything, each once."""

from __future__ import annotations

import pytest
import torch

from diml.matching import Regions, match
from diml.search import Rows, alike_pairs, create_store
from diml.search.coding import encode_regions
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


def brute(regions, threshold, structural=True):
    found = {}
    for a in range(69):
        pairs = match(regions[a], regions[a + 1 :], epsilon=0.2)
        for b, score in enumerate((pairs.score if structural else pairs.pooled).tolist(), start=a + 1):
            if score >= threshold:
                found[f"{a:02}", f"{b:02}"] = score
    return found


@pytest.mark.parametrize(("threshold", "structural"), [(1.2, True), (0.8, False)])
def test_pairs_are_those_of_comparing_all(store, regions, threshold, structural):
    expected = brute(regions, threshold, structural)
    assert len(expected) > 5
    found = list(alike_pairs(store, threshold, epsilon=0.2, neighbours=69, structural=structural))
    assert len(found) == len(expected)  # each once
    assert {(pair.a, pair.b) for pair in found} == expected.keys()
    for pair in found:
        assert pair.score == pytest.approx(expected[pair.a, pair.b], abs=2e-3)


def test_conditions_and_labels_that_differ(store):
    everything = list(alike_pairs(store, 1.2, epsilon=0.2))
    differing = list(alike_pairs(store, 1.2, epsilon=0.2, differ="label"))
    labels = [(pair.metadata_a["label"], pair.metadata_b["label"]) for pair in everything]
    expected = {(p.a, p.b) for p, (a, b) in zip(everything, labels, strict=True) if a and b and a != b}
    assert 0 < len(expected) < len(everything)
    assert {(pair.a, pair.b) for pair in differing} == expected
    shelf = {(pair.a, pair.b) for pair in alike_pairs(store, 1.2, epsilon=0.2, where="shelf < 3")}
    assert shelf == {(p.a, p.b) for p in everything if max(p.metadata_a["shelf"], p.metadata_b["shelf"]) < 3}


def test_pairs_come_before_all_is_compared(store):
    asked = []
    nearest = store.nearest

    def counted(pooled, k, **options):
        asked.append(len(pooled))
        return nearest(pooled, k, **options)

    store.nearest = counted
    assert next(alike_pairs(store, 1.2, epsilon=0.2)).score >= 1.2
    assert asked == [64]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"neighbours": 0}, "at least 1"), ({"differ": "colour"}, "no column 'colour'"), ({"where": "("}, "where")],
)
def test_settings_out_of_range_are_refused_at_once(store, options, told):
    with pytest.raises(ValueError, match=told):
        alike_pairs(store, 1.0, epsilon=0.2, **options)
