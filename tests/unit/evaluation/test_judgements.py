"""Evaluation by lists of relevant and ignored images, and over several draws, against loops over the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.data import ImageSet, Preprocess
from diml.data.judgements import Judgements
from diml.data.reid import with_drawn_galleries
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.compare import compare_matchers
from diml.evaluation.evaluate import evaluate_dataset
from diml.evaluation.intervals import bootstrap_means
from diml.evaluation.split import QueryGallerySplit
from diml.matching import Matcher, Regions
from diml.matching.retrieval import NOTHING
from diml.models import load_embedder

METRICS = ("recall@1", "recall@5", "map_trapezoid", "map", "map@5", "map@100", "map@r", "r_precision", "minp")


def regions_of(images: int, seed: int) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 4, 8, generator=generator)
    dense = centres[torch.arange(images) % 4] + 1.5 * torch.randn(images, 4, 8, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), (2, 2))


def revisited_by_loops(ranking: list[int], relevant: set[int], ignored: set[int]) -> dict[str, float]:
    """One query as the evaluation of the revisited Oxford and Paris defines it: positions corrected for junk."""
    positions, junk = [], 0
    for place, image in enumerate(ranking):
        if image in ignored:
            junk += 1
        elif image in relevant:
            positions.append(place - junk)
    average, step = 0.0, 1 / len(relevant)
    for found, position in enumerate(positions):
        before = 1.0 if position == 0 else found / position
        average += (before + (found + 1) / (position + 1)) * step / 2
    precisions = [(found / (position + 1), position + 1) for found, position in enumerate(positions, start=1)]
    return {
        "map_trapezoid": average,
        "map": sum(value for value, _ in precisions) / len(relevant),
        "map@5": sum(value for value, place in precisions if place <= 5) / min(5, len(relevant)),
        "map@100": sum(value for value, place in precisions if place <= 100) / min(100, len(relevant)),
        "map@r": sum(value for value, place in precisions if place <= len(relevant)) / len(relevant),
        "r_precision": sum(place <= len(relevant) for _, place in precisions) / len(relevant),
        "recall@1": float(any(place == 1 for _, place in precisions)),
        "recall@5": float(any(place <= 5 for _, place in precisions)),
        "minp": len(relevant) / (positions[-1] + 1),
    }


def judged(images: int, queries: list[int], seed: int) -> Judgements:
    rng = np.random.default_rng(seed)
    relevant, ignored = [], []
    for query in range(len(queries)):
        shuffled = rng.permutation(images)
        first = 0 if query == 2 else int(rng.integers(1, 9))  # the third query has nothing to find
        relevant.append(shuffled[:first])
        ignored.append(shuffled[first : first + int(rng.integers(0, 12))])
    return Judgements(relevant, ignored)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", [False, True])
def test_metrics_equal_loops_over_the_definition(seed: int, overlap: bool) -> None:
    images, queries = 40, [5, 0, 7, 3, 9]
    gallery = list(range(2 if overlap else 10, images))  # with overlap, 5, 7, 3 and 9 are gallery images as well
    regions, judgements = regions_of(images, seed), judged(images, queries, seed)
    found = evaluate_regions(
        regions,
        [0] * images,
        rerank_at=(0, 12),
        queries=queries,
        gallery=gallery,
        judgements=judgements,
        metrics=METRICS,
        matcher=Matcher(structural_weight=0),
    )
    cosines = (regions.pooled.double() @ regions.pooled.double().T).numpy()
    wanted = {}
    for number, query in enumerate(queries):
        own = [image for image in gallery if image != query]
        relevant = set(judgements.relevant[number].tolist()) & set(own)
        if relevant:
            ranking = sorted(own, key=lambda image, query=query: -cosines[query, image])
            wanted[query] = revisited_by_loops(ranking, relevant, set(judgements.ignored[number].tolist()))
    assert found.queries.tolist() == list(wanted)
    assert 7 in found.without_relevant
    for name in METRICS:
        for k in (0, 12):  # re-ranked by the pooled cosine: the same order
            expected = [one[name] for one in wanted.values()]
            np.testing.assert_allclose(found.per_query[k][name], expected, rtol=0, atol=1e-12, err_msg=name)


def test_judgements_by_class_and_camera_equal_classes_and_cameras() -> None:
    images = 30
    regions, labels, cameras = regions_of(images, 9), np.arange(images) % 4, np.arange(images) // 4 % 3
    queries, gallery = list(range(8)), list(range(4, images))
    same = labels[:, None] == labels
    near = cameras[:, None] == cameras
    lists = Judgements(
        [np.flatnonzero(same[q] & ~near[q]) for q in queries], [np.flatnonzero(same[q] & near[q]) for q in queries]
    )
    options = {"queries": queries, "gallery": gallery, "rerank_at": (0, 6), "metrics": METRICS}
    by_class = evaluate_regions(regions, labels, cameras=cameras, **options)
    by_lists = evaluate_regions(regions, labels, judgements=lists, **options)
    assert by_class.rows == by_lists.rows
    assert all(np.array_equal(by_class.hits[k], by_lists.hits[k]) for k in (0, 6))


def test_ignored_images_never_stand_in_a_ranking() -> None:
    regions, queries = regions_of(40, 1), [5, 0, 7, 3, 9]
    judgements = judged(40, queries, 3)
    split = QueryGallerySplit.from_labels([0] * 40, queries=queries, gallery=range(10, 40), judgements=judgements)
    for part, numbers in ((split, range(5)), (split.subset(torch.tensor([3, 1])), [3, 1])):
        order = part.images(part.nearest(regions.pooled, 30).order)
        for row, number in zip(order.tolist(), numbers, strict=True):
            kept = [image for image in row if image != NOTHING]
            assert sorted({*kept, *judgements.ignored[number].tolist()} - set(range(10))) == sorted(
                set(range(10, 40)) - set(range(10))
            )
            assert not set(kept) & set(judgements.ignored[number].tolist())


def test_other_commands_take_judgements() -> None:
    regions, queries = regions_of(40, 2), [5, 0, 7, 3, 9]
    sides = {"queries": queries, "gallery": range(10, 40), "judgements": judged(40, queries, 2)}
    found = compare_matchers(regions, [0] * 40, {"paper": Matcher()}, baseline="plain", rerank_at=5, **sides)
    report = evaluate_regions(regions, [0] * 40, rerank_at=(0, 5), **sides)
    assert found.mean("paper", "map@r").value == pytest.approx(report.row(5)["map@r"], abs=1e-12)


def test_judgements_have_to_fit() -> None:
    sides = {"queries": [0, 1], "gallery": [2, 3]}
    regions = regions_of(8, 0)
    with pytest.raises(ValueError, match="need those of 2 queries, got 1"):
        evaluate_regions(regions, [0] * 8, judgements=Judgements([[2]]), **sides)
    with pytest.raises(ValueError, match=r"image rows 0\.\.7, got 8"):
        evaluate_regions(regions, [0] * 8, judgements=Judgements([[8], []]), **sides)
    with pytest.raises(ValueError, match="cameras cannot be given"):
        evaluate_regions(regions, [0] * 8, judgements=Judgements([[2], [3]]), cameras=[0] * 8, **sides)


def shop(images: int = 18) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(images)]
    return with_drawn_galleries(ImageSet(pixels, np.arange(images) % 5), 3)


def test_an_evaluation_is_over_all_draws_and_embeds_once() -> None:
    images = shop()
    embedder = load_embedder("test_resnet", pretrained=False, preprocess=Preprocess(size=64, resize=72))
    found = evaluate_dataset(embedder, images, rerank_at=(0, 3), workers=0)
    assert len(found.regions) == len(images)
    parts = [
        evaluate_regions(
            found.regions, images.labels, rerank_at=(0, 3), queries=queries, gallery=gallery, matcher=embedder.matcher
        )
        for queries, gallery in images.draws
    ]
    joined = Report.concat(parts)
    assert found.report.rows == joined.rows
    assert found.report.settings["draws"] == 3
    assert found.report.gallery_size == 5
    assert np.array_equal(found.report.queries, np.concatenate([part.queries for part in parts]))


def test_resamples_draw_images_with_all_their_queries() -> None:
    rng = np.random.default_rng(1)
    values, groups = rng.random((40, 2)), np.arange(40) % 20
    # Twice the same value of each image says no more than once.
    twice = np.concatenate([values[:20], values[:20]])
    np.testing.assert_allclose(bootstrap_means(twice, 50, 0, groups), bootstrap_means(values[:20], 50, 0), atol=1e-12)
    alone = bootstrap_means(values, 50, 0, np.arange(40))
    np.testing.assert_allclose(alone, bootstrap_means(values, 50, 0), atol=1e-12)
