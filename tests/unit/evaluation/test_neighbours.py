"""Methods that rank by neighbours, against naive loops over their published definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.evaluation.neighbours import (
    EXPANDED_BY,
    EXPANSION,
    K1,
    K2,
    NEIGHBOUR_WEIGHT,
    NEIGHBOURS,
    PLAIN_PART,
    POWER,
    rank_by_neighbours,
)
from diml.evaluation.split import QueryGallerySplit
from diml.matching.retrieval import NOTHING

METHODS = ("alpha_qe", "k_reciprocal", "superglobal")


def clustered(images: int, seed: int, dim: int = 12) -> torch.Tensor:
    """Unit vectors around four centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, dim, generator=generator)
    vectors = centres[torch.arange(images) % 4] + 0.8 * torch.randn(images, dim, generator=generator)
    return torch.nn.functional.normalize(vectors, dim=1)


def leave_one_out(images: int) -> QueryGallerySplit:
    return QueryGallerySplit.from_labels(torch.arange(images) % 4)


def naive_alpha_qe(vectors: np.ndarray, query: int) -> np.ndarray:
    cosines = vectors @ vectors[query]
    cosines[query] = -np.inf
    near = np.argsort(-cosines, kind="stable")[:EXPANSION]
    expanded = vectors[query] + sum(max(cosines[i], 0) ** POWER * vectors[i] for i in near)
    return vectors @ (expanded / np.linalg.norm(expanded))


def naive_k_reciprocal(vectors: np.ndarray) -> np.ndarray:
    """Scores (N, N), by sets and Python loops."""
    distance = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    distance = distance / distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")
    images = len(vectors)

    def reciprocal(i: int, size: int) -> set[int]:
        return {int(j) for j in order[i, : size + 1] if i in order[j, : size + 1]}

    k1 = min(K1, images - 1)
    encoded = np.zeros((images, images))
    for i in range(images):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            others = reciprocal(j, max(1, round(k1 / 2)))
            if len(others & own) > 2 / 3 * len(others):
                expanded |= others
        for j in expanded:
            encoded[i, j] = np.exp(-distance[i, j])
        encoded[i] /= encoded[i].sum()
    encoded = np.stack([encoded[order[i, :K2]].mean(axis=0) for i in range(images)])
    overlap = np.array([[np.minimum(a, b).sum() for b in encoded] for a in encoded])
    return -(PLAIN_PART * distance + (1 - PLAIN_PART) * (1 - overlap / (2 - overlap)))


def naive_superglobal(vectors: np.ndarray, query: int) -> np.ndarray:
    """Scores (N,) of all images but the query, which has -infinity."""
    others = [i for i in range(len(vectors)) if i != query]
    refined = {}
    for i in others:
        near = sorted((j for j in others if j != i), key=lambda j: -float(vectors[i] @ vectors[j]))[:NEIGHBOURS]
        weights = [NEIGHBOUR_WEIGHT * max(float(vectors[i] @ vectors[j]), 0) for j in near]
        total = vectors[i] + sum(w * vectors[j] for w, j in zip(weights, near, strict=True))
        refined[i] = total / (1 + sum(weights))
    first = {i: float(vectors[query] @ refined[i]) for i in others}
    best = sorted(others, key=lambda i: -first[i])[:EXPANDED_BY]
    expanded = np.max([vectors[query], *(refined[i] for i in best)], axis=0)
    expanded = expanded / np.linalg.norm(expanded)
    scores = np.full(len(vectors), -np.inf)
    for i in others:
        scores[i] = (first[i] + float(expanded @ vectors[i])) / 2
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_rankings_equal_naive_ones(seed: int) -> None:
    images = 31
    vectors, split = clustered(images, seed), leave_one_out(images)
    plain = vectors.double().numpy()
    wanted = {
        "alpha_qe": np.stack([naive_alpha_qe(plain, query) for query in range(images)]),
        "k_reciprocal": naive_k_reciprocal(plain),
        "superglobal": np.stack([naive_superglobal(plain, query) for query in range(images)]),
    }
    for method in METHODS:
        scores = wanted[method].copy()
        np.fill_diagonal(scores, -np.inf)
        found = rank_by_neighbours(method, vectors, split, images - 1).ranking.order
        taken = np.take_along_axis(scores, found.numpy(), axis=1)
        assert (np.diff(taken, axis=1) <= 1e-5).all(), method  # falling, up to rounding
        assert (np.sort(found.numpy(), axis=1)[:, -1] < images).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_image_retrieves_or_moves_itself(method: str) -> None:
    images = 24
    found = rank_by_neighbours(method, clustered(images, 7), leave_one_out(images), 10)
    assert found.ranking.order.shape == found.moved_by.shape == (images, 10)
    assert not (found.ranking.order == torch.arange(images).unsqueeze(1)).any()
    if method != "superglobal":  # there the neighbour belongs to the hit and may be close to the query only
        assert not (found.moved_by == found.ranking.order).any()
    assert found.moved_by.max() < images


@pytest.mark.parametrize("method", METHODS)
def test_a_separate_gallery_is_searched_alone(method: str) -> None:
    split = QueryGallerySplit.from_labels(torch.arange(20) % 4, queries=[0, 1, 2], gallery=list(range(5, 20)))
    found = rank_by_neighbours(method, clustered(20, 3), split, 15)
    assert sorted(found.ranking.order[0].tolist()) == list(range(15))
    named = found.moved_by[found.moved_by != NOTHING]
    assert len(named)
    assert (named < 20).all()


@pytest.mark.parametrize("method", METHODS)
def test_two_images_are_enough(method: str) -> None:
    split = QueryGallerySplit.from_labels([0, 0])
    assert rank_by_neighbours(method, clustered(2, 0), split, 1).ranking.order.tolist() == [[1], [0]]


def test_errors_name_the_remedy() -> None:
    split = leave_one_out(4)
    with pytest.raises(ValueError, match="method: need one of"):
        rank_by_neighbours("diffusion", clustered(4, 0), split, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 20,000 images"):
        rank_by_neighbours("alpha_qe", torch.zeros(20_001, 1), split, 2)
