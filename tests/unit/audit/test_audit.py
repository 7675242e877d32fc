"""Evidence from objects and backgrounds where the answer is known, and laws that hold for all images."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch

from diml.audit import Audit, Foregrounds, audit_dataset
from diml.audit.audit import KINDS, audit_regions
from diml.audit.page import audit_page, outlined
from diml.data import ImageSet
from diml.data.judgements import Judgements
from diml.matching import Matcher, Regions
from diml.matching.retrieval import NOTHING
from diml.models import Embedder, load_embedder
from unit.audit.pasted import BLUE, GREEN, PLAIN, RED, colour_embedder, noise, pasted, save_set

SHARP = Matcher(weights="uniform", epsilon=0.02)


def images_of(labels: list[str], **sides: object) -> ImageSet:
    """An image set without files; only labels matter."""
    return ImageSet([np.zeros((2, 2), dtype=np.uint8)] * len(labels), labels, **sides)


def regions_of(objects: torch.Tensor, backgrounds: torch.Tensor) -> tuple[Regions, np.ndarray]:
    """Images of 2 x 2 regions, the upper ones object (N, 3) and the lower ones background (N, 3), never alike."""
    nothing = torch.zeros_like(objects)
    upper, lower = torch.cat([objects, nothing], dim=1), torch.cat([nothing, backgrounds], dim=1)
    maps = torch.stack([upper, upper, lower, lower], dim=1).mT.reshape(len(objects), 6, 2, 2)
    return Regions.from_maps(maps, shares=True), np.tile([1.0, 1.0, 0.0, 0.0], (len(objects), 1))


def at_cosine(cosine: float) -> list[float]:
    """A unit vector with this cosine to (1, 0, 0)."""
    return [cosine, math.sqrt(1 - cosine**2), 0.0]


@pytest.fixture
def by_background() -> tuple[Regions, np.ndarray, ImageSet]:
    """A query whose own class is alike in the background (cosine 1) and hardly in the object (0.2).

    The other class is alike in the object (0.6) and hardly in the background (0.1).
    """
    objects = torch.tensor([at_cosine(1), at_cosine(0.2), at_cosine(0.6)])
    backgrounds = torch.tensor([at_cosine(1), at_cosine(1), at_cosine(0.1)])
    return *regions_of(objects, backgrounds), images_of(["a", "a", "b"], queries=[0], gallery=[1, 2])


def test_a_query_right_only_because_of_the_background(by_background):
    found = audit_regions(*by_background, matcher=SHARP, hits=2)
    assert found.hits.tolist() == [[1, 2]]
    assert found.correct.tolist() == [[True, False]]
    assert found.object_hits.tolist() == [2]
    assert (found.background_only.tolist(), found.object_only.tolist()) == ([True], [False])
    # half of the mass joins the objects and half the backgrounds; of the pooled vectors half of the square is each
    assert found.whole is not None
    np.testing.assert_allclose(found.structural, [[[0.1, 0, 0, 0.5], [0.3, 0, 0, 0.05]]], atol=1e-6)
    np.testing.assert_allclose(found.whole, [[[0.2, 0, 0, 1.0], [0.6, 0, 0, 0.1]]], atol=1e-6)
    np.testing.assert_allclose(found.scores, [[1.2, 0.7]], atol=1e-6)
    np.testing.assert_allclose(found.gaps, [0.4], atol=1e-6)
    np.testing.assert_allclose(found.total.shares, [1 / 6, 0, 0, 5 / 6], atol=1e-6)
    np.testing.assert_allclose(found.total.by_area, [0.25] * 4)
    assert found.confirmed.tolist() == [True]
    assert found.total[:6] == ("all", 1, 1, 1, 1, 0)
    assert repr(found) == "Audit(1 queries, 1 right, 1 of them only because of the background; object to object 16.7%)"


def test_a_query_wrong_because_of_the_background(by_background):
    regions, coverage, images = by_background
    other = ImageSet(images.images, ["a", "b", "a"], queries=[0], gallery=[1, 2])
    found = audit_regions(regions, coverage, other, matcher=SHARP)
    assert (found.background_only.tolist(), found.object_only.tolist()) == ([False], [True])
    assert found.total[:6] == ("all", 1, 0, 0, 0, 1)


def test_swapping_object_and_background_swaps_the_kinds(by_background):
    regions, coverage, images = by_background
    found, swapped = (audit_regions(regions, f, images, matcher=SHARP) for f in (coverage, 1 - coverage))
    np.testing.assert_allclose(found.evidence, swapped.evidence[..., ::-1], atol=1e-12)
    assert swapped.background_only.tolist() == [False]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_where_all_is_object_or_all_is_background(fraction):
    regions = Regions.from_maps(noise(0, (8, 6, 3, 3)), shares=True)
    found = audit_regions(regions, np.full((8, 9), fraction), images_of(list("aabbaabb")), matcher=Matcher())
    kind = 0 if fraction else 3
    np.testing.assert_allclose(found.shares()[..., kind], 1)
    if fraction:
        assert not (found.background_only | found.object_only).any()
        assert found.object_hits.tolist() == found.hits[:, 0].tolist()


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("shares", [True, False])
def test_parts_sum_to_the_scores_of_the_ledger(weight, shares):
    regions = Regions.from_maps(noise(1, (7, 5, 3, 4)), shares=shares)
    coverage = np.random.default_rng(2).random((7, 12))
    matcher = Matcher(structural_weight=weight)
    if weight == 0 and not shares:
        with pytest.raises(ValueError, match="structural_weight 0"):
            audit_regions(regions, coverage, images_of(list("aabbabb")), matcher=matcher)
        return
    found = audit_regions(regions, coverage, images_of(list("aabbabb")), matcher=matcher, hits=3, rerank_at=4)
    assert (found.whole is None) == (not shares and not math.isinf(weight))
    assert bool(found.undivided) == (found.whole is None)
    for query, hits in zip(found.queries, found.hits, strict=True):
        compared = matcher.match(regions[int(query)], regions[hits])
        for rank in range(3):
            ledger = compared.ledger(rank)
            np.testing.assert_allclose(found.scores[query, rank], ledger.score, atol=1e-6)
            np.testing.assert_allclose(found.structural[query, rank].sum(), ledger.structural, atol=1e-6)
            own, hit = coverage[query], coverage[hits[rank]]
            terms = ledger.contributions.numpy()
            by_hand = [a @ terms @ b for a in (own, 1 - own) for b in (hit, 1 - hit)]
            np.testing.assert_allclose(found.structural[query, rank], by_hand, atol=1e-6)
            if found.whole is not None:
                np.testing.assert_allclose(found.whole[query, rank].sum(), ledger.score, atol=1e-6)
                assert ledger.has_whole
    np.testing.assert_allclose(found.shares().sum(axis=2), 1)
    np.testing.assert_allclose(found.by_area.sum(axis=2), 1)


def test_objects_rank_as_by_hand():
    """Without the background: the same candidates sorted by their object-to-object part."""
    regions = Regions.from_maps(noise(3, (12, 4, 3, 3)), shares=True)
    coverage = np.random.default_rng(4).random((12, 9)).round()
    labels = list("aaabbbcccddd")
    found = audit_regions(regions, coverage, images_of(labels), matcher=Matcher(), rerank_at=6, hits=6)
    for query in range(12):
        assert found.whole is not None
        best = found.hits[query][int(found.whole[query, :, 0].argmax())]
        assert found.object_hits[query] == best
        assert found.object_correct[query] == (labels[best] == labels[query])
        objects = found.whole[query, :, 0]
        right = found.correct[query]
        gap = max(objects[~right], default=-math.inf) - max(objects[right], default=-math.inf)
        np.testing.assert_allclose(found.gaps[query], gap)
    assert (found.background_only == (found.correct[:, 0] & (found.gaps > 0))).all()


def test_the_worst_come_first():
    regions = Regions.from_maps(noise(5, (30, 4, 3, 3)), shares=True)
    coverage = np.random.default_rng(6).random((30, 9)).round()
    found = audit_regions(regions, coverage, images_of(list("abc" * 10)), matcher=Matcher(), rerank_at=20)
    order = found.worst_first()
    count, confirmed = int(found.background_only.sum()), int(found.confirmed.sum())
    assert 0 < confirmed < count < 30
    assert found.confirmed[order[:confirmed]].all()
    assert found.background_only[order[:count]].all()
    for some in (order[:confirmed], order[confirmed:count]):
        assert (np.diff(found.gaps[some]) <= 0).all()
    right = int(found.correct[:, 0].sum())
    assert found.correct[order[:right], 0].all()
    assert found.total.right == right
    assert sum(one.queries for one in found.classes) == 30
    assert sum(one.background_only for one in found.classes) == count
    assert [one.shares[0] for one in found.classes] == sorted(one.shares[0] for one in found.classes)


def test_rows_are_those_of_the_arrays(by_background):
    found = audit_regions(*by_background, matcher=SHARP, hits=2)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["correct"] for row in rows] == ["True", "False"]
    assert [float(rows[0][f"whole_{kind}"]) for kind in KINDS] == found.evidence[0, 0].tolist()
    assert sum(float(rows[0][f"share_{kind}"]) for kind in KINDS) == pytest.approx(1)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["total"]["background_only"] == 1
    assert document["rows"][0]["class_without_background"] == "b"
    assert document["evidence"] == "whole"


def test_a_small_gallery_and_queries_without_relevant_images():
    regions = Regions.from_maps(noise(7, (3, 4, 2, 2)), shares=True)
    found = audit_regions(regions, np.ones((3, 4)), images_of(list("aab")), matcher=Matcher(), hits=3)
    assert found.queries.tolist() == [0, 1]
    assert found.without_relevant == 1
    assert found.candidates == 2
    assert found.hits[:, 2].tolist() == [NOTHING, NOTHING]
    assert len(found.rows()) == 4
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": np.ones((3, 5))}, "coverage: need"),
        ({"coverage": np.full((3, 4), 1.1)}, "fractions"),
        ({"rerank_at": 0}, "rerank_at"),
        ({"hits": 0}, "hits"),
        ({"hits": 101}, "hits"),
        ({"images": images_of(list("abc"))}, "another image of its class"),
    ],
)
def test_errors_name_the_argument(changes, message):
    regions = Regions.from_maps(noise(7, (3, 4, 2, 2)))
    arguments = {"coverage": np.ones((3, 4)), "images": images_of(list("aab")), "matcher": Matcher()} | changes
    with pytest.raises(ValueError, match=message):
        audit_regions(regions, **arguments)


def test_pasted_objects_of_pure_colours(tmp_path):
    """A quarter of each image is object; colours of objects and backgrounds are orthogonal, so shares are known."""
    box = (16, 16, 48, 48)
    made = [pasted(BLUE, RED, box), pasted(BLUE, RED, box), pasted(BLUE, GREEN, box), pasted(BLUE, GREEN, box)]
    images = save_set(tmp_path, made, ["red", "red", "green", "green"])
    embedder = colour_embedder(epsilon=0.02)
    found = audit_dataset(embedder, Foregrounds.from_masks(images, tmp_path / "masks"))
    assert found.correct.all()
    assert not found.background_only.any()
    assert found.whole is not None
    np.testing.assert_allclose(found.structural[:, 0], np.tile([0.25, 0, 0, 0.75], (4, 1)), atol=1e-6)
    # pooled vectors are (4 object + 12 background) / sqrt(160)
    np.testing.assert_allclose(found.whole[:, 0], np.tile([0.35, 0, 0, 1.65], (4, 1)), atol=1e-5)
    np.testing.assert_allclose(found.by_area[:, 0], np.tile([1 / 16, 3 / 16, 3 / 16, 9 / 16], (4, 1)))


def test_backgrounds_that_go_with_the_class_are_found(tmp_path):
    """Three images on a beach whose objects differ, and one with the object of the first on another background."""
    box = (16, 16, 48, 48)
    yellow, cyan = (255, 255, 0), (0, 255, 255)
    made = [pasted(BLUE, RED, box), pasted(BLUE, GREEN, box), pasted(yellow, RED, box), pasted(cyan, yellow, box)]
    images = save_set(tmp_path, made, ["beach", "beach", "meadow", "meadow"])
    images = ImageSet(images.paths, ["beach", "beach", "meadow", "meadow"], queries=[0], gallery=[1, 2, 3])
    found = audit_dataset(colour_embedder(epsilon=0.02), Foregrounds.from_masks(images, tmp_path / "masks"))
    assert found.hits.tolist() == [[1]]
    assert found.object_hits.tolist() == [2]
    assert found.background_only.tolist() == [True]
    page = audit_page(found, title="shop <b>", queries=3)
    assert "Right only because of the background, also where the size of the objects does not count." in page
    assert "shop &lt;b&gt;" in page
    assert page.count("<figure>") == 3
    assert "<script" not in page
    assert 'src="http' not in page


def test_a_small_object_is_not_confirmed_where_only_size_speaks_against_it(tmp_path):
    """Of the right class a small object; of the wrong one a large object of a colour between."""
    yellow, cyan = (255, 255, 0), (0, 255, 255)
    small, large = (16, 16, 32, 32), (0, 0, 64, 48)
    made = [pasted(BLUE, RED, small), pasted(BLUE, RED, small), pasted(cyan, yellow, large)]
    save_set(tmp_path, made, ["red", "red", "yellow"])
    paths = sorted((tmp_path / "images").rglob("*.png"))
    images = ImageSet(paths, ["red", "red", "yellow"], queries=[0], gallery=[1, 2])
    foregrounds = Foregrounds.from_masks(images, tmp_path / "masks")
    found = audit_dataset(colour_embedder(epsilon=0.02, structural_weight=0.0), foregrounds)
    assert found.background_only.tolist() == [True]
    assert found.confirmed.tolist() == [False]
    found = audit_dataset(colour_embedder(epsilon=0.02, structural_weight=math.inf), foregrounds)
    assert found.background_only.tolist() == [False]


def test_names_are_escaped_on_the_page(tmp_path):
    box = (0, 0, 32, 32)
    name = "<img src=x onerror=alert(1)>&'\""
    made = [pasted(BLUE, RED, box), pasted(BLUE, RED, box)]
    images = save_set(tmp_path, made, [name, name])
    found = audit_dataset(colour_embedder(), Foregrounds.from_masks(images, tmp_path / "masks"))
    page = audit_page(found, title=name)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&#x27;&quot;" in page
    with pytest.raises(ValueError, match="queries"):
        audit_page(found, title="x", queries=0)


def test_the_outline_lies_on_the_border_of_the_object():
    image, _ = pasted((90, 90, 90), (90, 90, 90), (0, 0, 1, 1))
    inside = np.zeros((64, 64), dtype=bool)
    inside[20:40, 10:50] = True
    changed = (np.asarray(outlined(image, inside)) != 90).any(axis=2)
    assert not changed[24:36, 14:46].any()
    assert changed[20, 10:50].all()
    assert changed[18, 10:50].all()
    assert not changed[:17].any()
    assert not (np.asarray(outlined(image, np.ones((64, 64), dtype=bool))) != 90).any()


@pytest.fixture(scope="module")
def network() -> Embedder:
    """A real, untrained network."""
    torch.manual_seed(0)
    return load_embedder("test_resnet", grid=3, pretrained=False, preprocess=PLAIN)


def small_audit(folder, embedder: Embedder) -> Audit:
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (6, 2, 3))
    made = [pasted(tuple(b), tuple(c), (10, 5, 40 + n, 50)) for n, (b, c) in enumerate(colours.tolist())]
    images = save_set(folder, made, list("aabbcc"))
    (folder / "masks" / "a" / "1.bmp").write_bytes(b"")
    images.paths[3].write_bytes(images.paths[3].read_bytes()[:90])  # the header can be read, the pixels cannot
    return audit_dataset(embedder, Foregrounds.from_masks(images, folder / "masks"), hits=2)


def test_a_network_and_images_that_are_left_out(tmp_path, network):
    found = small_audit(tmp_path, network)
    assert [image.path[-7:] for image in found.left_out] == ["a/1.png", "b/3.png"]
    assert found.queries.tolist() == [2, 3]
    assert found.without_relevant == 2
    assert found.kept is not None
    assert found.kept.tolist() == [0, 2, 4, 5]
    assert found.whole is not None
    np.testing.assert_allclose(found.whole.sum(axis=2), found.scores, atol=1e-6)
    expected = Foregrounds.from_masks(found.images, tmp_path / "masks").cover(PLAIN, (3, 3)).values
    np.testing.assert_array_equal(found.coverage, expected)
    assert "1.png" in audit_page(found, title="t")


def test_own_cells_of_a_backbone_are_regions(tmp_path, network):
    found = small_audit(tmp_path, network.with_settings(grid=None))
    assert found.coverage.shape[1] == network.with_settings(grid=None).embed(found.images).num_regions


def test_a_query_ignores_its_own_class_from_its_own_camera():
    regions, labels = Regions.from_maps(noise(5, (12, 6, 2, 2)), shares=True), list("aaaabbbbcccc")
    coverage, settings = np.random.default_rng(1).random((12, 4)), {"matcher": Matcher(), "hits": 4}
    without = audit_regions(regions, coverage, images_of(labels), **settings)
    apart = audit_regions(regions, coverage, images_of(labels, cameras=np.arange(12)), **settings)
    assert apart.rows() == without.rows()
    cameras = np.arange(12) % 2
    found = audit_regions(regions, coverage, images_of(labels, cameras=cameras), **settings)
    classes = np.array(labels)
    for query, hits in zip(found.queries, found.hits, strict=True):
        ignored = (classes == classes[query]) & (cameras == cameras[query])
        assert not ignored[hits[hits != NOTHING]].any()
    assert found.candidates == 10


def test_images_that_are_judged_one_by_one_are_refused():
    regions = Regions.from_maps(noise(5, (4, 6, 2, 2)), shares=True)
    sides = {"queries": [0], "gallery": [1, 2, 3], "judgements": Judgements([[1]])}
    with pytest.raises(ValueError, match="need images with classes"):
        audit_regions(regions, np.ones((4, 4)), images_of(list("abcd"), **sides), matcher=Matcher())
