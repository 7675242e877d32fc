"""The regimes of generated embeddings have the properties that the benchmarks state."""

from __future__ import annotations

import pytest
import torch

import plain
import regimes


@pytest.mark.parametrize(("name", "least", "most"), [("easy", 4, 7), ("hard", 100, 100)])
@pytest.mark.parametrize("classes", [12, 120])
def test_the_released_rule_stops_where_the_regime_states(name, least, most, classes):
    found = regimes.generate(name, images=600, classes=classes)
    queries = regimes.drawn_queries(6, 600, seed=1)
    used = [
        plain.rerank(found.regions, query, order, best)[1]
        for query, order, best in zip(queries.tolist(), *regimes.candidates(found.regions, queries, 100), strict=True)
    ]
    assert least <= sum(used) / len(used) <= most


@pytest.mark.parametrize("name", regimes.REGIMES)
def test_generated_embeddings_are_valid_and_repeatable(name, monkeypatch):
    monkeypatch.setattr(regimes, "CHUNK", 7)
    one, other = (regimes.generate(name, images=20, classes=3, regions=4, dim=8, seed=5) for _ in range(2))
    assert torch.equal(one.regions.dense, other.regions.dense)
    type(one.regions)(one.regions.dense, one.regions.pooled)  # rejects vectors that do not have unit length
    assert one.labels.tolist() == [i % 3 for i in range(20)]
    assert one.regions.grid == (2, 2)


def test_candidates_are_the_nearest_without_the_query():
    found = regimes.generate("easy", images=30, classes=3, regions=4, dim=8)
    queries = torch.tensor([4, 17])
    order, best = regimes.candidates(found.regions, queries, 50)
    assert order.shape == best.shape == (2, 29)
    assert not (order == queries[:, None]).any()
    assert (best[:, 1:] <= best[:, :-1]).all()


def test_noisy_images_are_made_of_regions_of_one_class(monkeypatch):
    monkeypatch.setattr(regimes, "CHUNK", 7)
    real = regimes.generate("hard", images=12, classes=3, regions=4, dim=64)
    one, other = (regimes.noisy(real, images=20, noise=0.05, seed=5) for _ in range(2))
    assert torch.equal(one.dense, other.dense)
    type(one)(one.dense, one.pooled)  # rejects vectors that do not have unit length
    assert one.grid == (2, 2)
    cosine = torch.einsum("nrd,mrd->nrm", one.dense, real.regions.dense)
    assert cosine.amax(dim=2).min() > 0.99  # each region is one of the same place
    labels = real.labels[cosine.argmax(dim=2)]
    assert (labels == labels[:, :1]).all()
    assert len(labels[:, 0].unique()) == 3
