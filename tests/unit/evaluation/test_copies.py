"""Copies among the images of an evaluation, and R@1 without them, against a loop over all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diml.data import ImageSet, load_image
from diml.data.judgements import Judgements
from diml.data.reid import with_drawn_galleries
from diml.evaluation import evaluate_regions
from diml.evaluation.copies import COPY_CORRELATION, Copies, find_copies
from diml.evaluation.evaluate import DatasetEvaluation
from diml.evaluation.report import Report
from diml.matching import Matcher, Regions


def evaluated(images: ImageSet, regions: Regions, **options) -> DatasetEvaluation:
    matcher = Matcher(epsilon=0.2)
    parts = [
        evaluate_regions(
            regions,
            images.labels,
            queries=queries,
            gallery=gallery,
            cameras=images.cameras,
            judgements=images.judgements,
            matcher=matcher,
            **{"rerank_at": (0, 8)} | options,
        )
        for queries, gallery in images.draws or [(images.queries, images.gallery)]
    ]
    return DatasetEvaluation(Report.concat(parts), images, regions, (), matcher)


def regions_with_copies(images: int, copies: dict[int, int], seed: int = 0) -> Regions:
    """Random regions of four classes; image `a` of `copies` is image `b` but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 4, 8, generator=generator)
    dense = centres[torch.arange(images) % 4] + 2.5 * torch.randn(images, 4, 8, generator=generator)
    for a, b in copies.items():
        dense[a] = dense[b] + 0.1 * torch.randn(4, 8, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), (2, 2))


def pixels_with_copies(images: int, copies: dict[int, int]) -> list[np.ndarray]:
    """Random images; a copy has another size, and slightly other pixels."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 250, (16, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(images)]
    for a, b in copies.items():
        pixels[a] = pixels[b].repeat(2, 0).repeat(2, 1) + rng.integers(0, 5, (128, 128, 3), dtype=np.uint8)
    return pixels


COPIES = {20: 0, 21: 1, 22: 6, 23: 7, 24: 0}


@pytest.mark.parametrize("kind", ["leave-one-out", "query and gallery", "cameras", "judgements"])
def test_it_equals_a_loop_over_all_pairs(kind: str) -> None:
    count = 28
    regions, labels = regions_with_copies(count, COPIES), np.arange(count) % 4
    options: dict = {}
    if kind != "leave-one-out":
        options = {"queries": list(range(10)), "gallery": list(range(8, count))}
    if kind == "cameras":
        options["cameras"] = np.arange(count) % 3
    rng = np.random.default_rng(0)
    lists = [rng.choice(count, 6, replace=False) for _ in range(10)]
    if kind == "judgements":
        options["judgements"] = Judgements(lists)
    pixels = pixels_with_copies(count, COPIES)
    images = ImageSet(pixels, labels, **options)
    found = find_copies(evaluated(images, regions, rerank_at=(0,)))
    small = [np.asarray(load_image(image).resize((32, 32), Image.Resampling.BOX), dtype=float) for image in pixels]
    alike = np.corrcoef(np.stack(small).reshape(count, -1))
    cosines = (regions.pooled.double() @ regions.pooled.double().T).numpy()
    gallery = range(count) if images.gallery is None else images.gallery.tolist()
    with_copy, right, queries = 0, [], 0
    for query in range(count) if images.queries is None else images.queries.tolist():
        same = {g for g in gallery if labels[g] == labels[query]}
        if kind == "judgements":
            same = set(lists[query].tolist()) & set(gallery)
        searched = [g for g in gallery if g != query]
        if kind == "cameras":
            searched = [g for g in searched if not (g in same and g % 3 == query % 3)]
        relevant = same & set(searched)
        if not relevant:
            continue
        queries += 1
        copies = {g for g in searched if alike[query, g] >= COPY_CORRELATION}
        with_copy += bool(copies)
        if relevant - copies:
            others = [g for g in searched if g not in copies]
            right.append(max(others, key=lambda g, query=query: cosines[query, g]) in relevant)
    assert (found.queries, found.with_copy) == (queries, with_copy)
    assert found.recall[0] == pytest.approx(np.mean(right), abs=1e-12)
    assert found.with_copy > 0


def test_draws_and_reranked_rankings_are_covered() -> None:
    regions = regions_with_copies(28, COPIES)
    images = with_drawn_galleries(ImageSet(pixels_with_copies(28, COPIES), np.arange(28) % 4), 5)
    found = find_copies(evaluated(images, regions))
    assert found.queries == 5 * 24
    assert set(found.recall) == {0, 8}
    only = find_copies(evaluated(images, regions, rerank_at=(8,)))
    assert only.recall[8] == pytest.approx(found.recall[8])


def test_without_copies_nothing_changes() -> None:
    regions = regions_with_copies(24, {})
    images = ImageSet(pixels_with_copies(24, {}), np.arange(24) % 4)
    evaluation = evaluated(images, regions)
    found = find_copies(evaluation)
    assert found.with_copy == 0
    assert found.recall == {k: pytest.approx(evaluation.report.row(k)["recall@1"]) for k in (0, 8)}
    assert found.line() == "Copies: no query has an exact or near copy among its ten best hits."


def test_where_all_images_are_copies_nothing_is_left() -> None:
    dense = torch.ones(6, 2, 4)
    images = ImageSet(pixels_with_copies(1, {}) * 6, [0, 0, 0, 1, 1, 1])
    found = find_copies(evaluated(images, Regions.normalized(dense, dense[:, 0])))
    assert (found.with_copy, found.recall, found.without_relevant) == (6, {}, 6)
    assert "R@1 without copies: undefined; 6 queries" in found.line()


def test_even_images_and_unreadable_ones_are_no_copies(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "white").save(tmp_path / "white.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    paths = [tmp_path / name for name in ("white.png", "white.png", "bad.png", "bad.png", "gone.png", "gone.png")]
    found = find_copies(evaluated(ImageSet(paths, [0, 0, 1, 1, 2, 2]), regions_with_copies(6, {}), rerank_at=(0,)))
    assert found.with_copy == 0


def test_files_scaled_and_compressed_again_are_copies_and_crops_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    original = coarse.resize((480, 360), Image.Resampling.BICUBIC)
    original.save(tmp_path / "a.png")
    original.save(tmp_path / "b.jpg", quality=50)
    original.resize((240, 180)).save(tmp_path / "c.jpg")
    original.crop((48, 36, 480, 360)).save(tmp_path / "d.jpg")
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.jpg", "d.jpg")]
    found = find_copies(evaluated(ImageSet(paths, [0, 0, 0, 0]), regions_with_copies(4, {}), rerank_at=(0,)))
    assert (found.queries, found.with_copy) == (4, 3)


def test_the_line_and_the_json() -> None:
    found = Copies(0.998, 200, 30, {0: 0.5, 100: 0.625}, 4)
    assert found.line() == (
        "Copies: 30 of 200 queries (15.0 %) have an exact or near copy among their ten best hits. R@1 without copies: "
        "50.00 (K = 0), 62.50 (K = 100); 4 queries have nothing else to find."
    )
    assert found.to_dict()["recall@1_without"] == {"0": 0.5, "100": 0.625}
    with pytest.raises(ValueError, match="correlation: need"):
        find_copies(None, correlation=1.5)
