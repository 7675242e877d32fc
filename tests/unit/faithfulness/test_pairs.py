"""Pairs are of one class, each query once, the same for the same seed."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from diml.faithfulness.pairs import choose_pairs, embed_views, other_classes


def test_pairs_are_of_one_class_and_never_an_image_with_itself(shop):
    chosen = choose_pairs(shop, 100, seed=0)
    assert sorted(query for query, _ in chosen) == [0, 1, 2, 3, 4, 5]  # the seventh is alone in its class
    assert all(shop.labels[query] == shop.labels[other] and query != other for query, other in chosen)
    assert choose_pairs(shop, 2, seed=0) == chosen[:2]
    assert any(choose_pairs(shop, 100, seed=seed) != chosen for seed in range(1, 4))


def test_queries_and_gallery_of_a_set_are_kept_apart(shop):
    sides = dataclasses.replace(shop, queries=np.array([0, 3]), gallery=np.array([1, 2, 4]))
    chosen = choose_pairs(sides, 10, seed=1)
    assert {query for query, _ in chosen} == {0, 3}
    assert {other for _, other in chosen} <= {1, 2, 4}


def test_no_pair_is_an_error(shop):
    with pytest.raises(ValueError, match="pairs: need at least 1, got 0"):
        choose_pairs(shop, 0, seed=0)
    alone = shop.subset([0, 3, 6])
    with pytest.raises(ValueError, match="no query of shop has another image of its class"):
        choose_pairs(alone, 5, seed=0)


def test_views_are_embedded_as_the_images_are(tiny, shop):
    images = [Image.open(path).convert("RGB") for path in shop.paths[:3]]
    counts = []
    found = embed_views(tiny, [tiny.preprocess.view(image) for image in images], counts.append)
    assert torch.allclose(found.dense, tiny.embed(images).dense, atol=1e-5)
    assert counts == [3]


def test_the_image_of_another_class_is_the_same_for_the_same_query(shop):
    pairs = choose_pairs(shop, 6, seed=0)
    rows = other_classes(shop, pairs, seed=3)
    assert len(rows) == len(pairs)
    assert all(shop.labels[row] != shop.labels[query] for row, (query, _) in zip(rows, pairs, strict=True))
    assert other_classes(shop, pairs[2:], seed=3) == rows[2:]
    alone = dataclasses.replace(shop, labels=np.zeros(len(shop), dtype=np.int64))
    assert other_classes(alone, pairs, seed=3) == []
