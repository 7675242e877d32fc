"""Galleries of product-quantised codes: 32 bytes a region."""

import pytest
import torch

from diml.evaluation import evaluate_regions
from diml.matching import Matcher, QuantizedRegions, Regions, codebooks, native
from diml.matching.codebooks import CENTROIDS, CODE_BYTES, LEAST_REGIONS, Codebooks
from kernel_twin import by_twin, needs_kernel


def images(count=80, regions=16, dim=24, seed=0):
    """Regions that are one of a few parts each, with noise; the first image has blank regions."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(12, dim, generator=torch.Generator().manual_seed(99))
    dense = parts[torch.randint(12, (count, regions), generator=generator)]
    dense = dense + 0.5 * torch.randn(count, regions, dim, generator=generator)
    dense[0, : regions // 2] = 0
    return Regions.normalized(dense, dense.mean(dim=1))


@pytest.fixture(scope="module")
def fitted():
    """Codebooks by D: of whole groups of 1, 4 and 8 channels, and of groups that fill the last one partly."""
    return {dim: Codebooks.fit(images(dim=dim).dense) for dim in (24, 37, 128, 256)}


def test_an_image_of_16_regions_and_128_channels_takes_a_kilobyte():
    stored = images(dim=128).quantized("1kb")
    one = (stored.codes[0], stored.pooled[0])
    assert sum(part.numel() * part.element_size() for part in one) == 1024
    assert stored.scale is None
    assert (len(stored), stored.num_regions, stored.dim) == (80, 16, 128)
    assert "1kb" in repr(stored)


@pytest.mark.parametrize("dim", [1, 24, 31, 33, 37, 128, 300, 1280])
def test_groups_hold_all_channels_in_at_most_32_bytes(dim):
    width, groups = codebooks.group_width(dim), codebooks.group_count(dim)
    assert groups <= CODE_BYTES
    assert (groups - 1) * width < dim <= groups * width


def test_the_code_of_a_group_is_its_nearest_centroid(fitted):
    for dim, known in fitted.items():
        dense = images(3, dim=dim, seed=5).dense
        codes, (groups, _, width) = known.encode(dense), known.centroids.shape
        for image, region, group in ((1, 0, 0), (2, 7, groups // 2), (1, 15, groups - 1)):
            own = dense[image, region, group * width : (group + 1) * width]
            distance = (known.centroids[group, :, : len(own)] * known.step - own).square().sum(dim=1)
            assert distance[codes[image, region, group].long()] <= distance.min() + 1e-4


def test_decoded_regions_have_unit_length_and_blank_ones_stay_blank(fitted):
    for dim, known in fitted.items():
        given = images(dim=dim)
        stored = given.quantized("1kb", codebooks=known)
        found = stored[:]
        blank = (given.dense == 0).all(dim=2)
        torch.testing.assert_close(found.dense.norm(dim=2), (~blank).float())
        assert (stored.codes[blank] == 0).all()
        assert (found.dense * given.dense).sum(dim=2)[~blank].mean() > 0.9
        assert found.pooled.equal(given.pooled)
        Regions(found.dense, found.pooled)


def test_the_same_regions_and_seed_give_the_same_centroids():
    dense = images().dense
    first = Codebooks.fit(dense)
    assert first.centroids.equal(Codebooks.fit(dense).centroids)
    assert not first.centroids.equal(Codebooks.fit(dense, seed=1).centroids)
    assert first.centroids.abs().max() == 127


def test_few_distinct_regions_are_kept_as_they_are():
    dense = images(4).dense[:, 8:].repeat(40, 1, 1)
    decoded = Codebooks.fit(dense).decode(Codebooks.fit(dense).encode(dense))
    torch.testing.assert_close(decoded, dense, atol=5e-3, rtol=0)


def test_of_many_images_some_are_drawn(monkeypatch):
    monkeypatch.setattr(codebooks, "FIT_IMAGES", 70)
    dense = images(90).dense
    assert Codebooks.fit(dense).centroids.shape == (24, CENTROIDS, 1)


def test_too_few_regions_are_refused():
    blank = torch.zeros(64, 16, 24)
    blank[0] = images(2).dense[1]
    for dense, got in ((images(LEAST_REGIONS // 16 - 1).dense, "1,000 of 63"), (blank, "16 of 64")):
        with pytest.raises(ValueError, match=f"needs at least 1,024 regions that are not blank .* got {got} .*int8"):
            Regions._trusted(dense, dense[:, 0], (4, 4)).quantized("1kb")


@needs_kernel
@pytest.mark.parametrize("dim", [24, 37, 128, 256])
@pytest.mark.parametrize(
    "settings", [{}, {"weights": "uniform"}, {"epsilon": 0}, {"matching": "maxsim"}, {"share": 0.7}]
)
def test_kernel_and_torch_give_the_same_scores(dim, settings, fitted, instruction_set):
    query = images(3, 9, dim, seed=1)
    gallery = images(21, 16, dim, seed=2).quantized("1kb", codebooks=fitted[dim])
    rows = torch.arange(21).repeat(3, 1)
    matcher = Matcher(**settings)
    first, second = (call(lambda: matcher.score(query, gallery, rows)) for call in (lambda work: work(), by_twin))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    decoded = matcher.score(query, gallery[:], rows)
    torch.testing.assert_close(first, decoded, rtol=0, atol=1e-3)  # with queries that are not rounded


@needs_kernel
def test_the_kernel_checks_centroids():
    one, row = torch.ones(1, 2, 3), torch.tensor([0])
    codes, centroids = torch.zeros(1, 2, 3, dtype=torch.uint8), torch.zeros(3, CENTROIDS, 1, dtype=torch.int8)
    solver = native.SolverSettings(0.05, 1e-4, 10)
    wrong = (
        (codes, None),
        (codes, centroids[:2]),
        (codes, centroids[:, :255]),
        (codes, torch.zeros(3, CENTROIDS, 2, dtype=torch.int8)),
        (one, centroids),
    )
    for values, given in wrong:
        gallery = native.StoredRegions(values, one[:, 0], None, given)
        with pytest.raises(ValueError, match=r"gallery\.centroids"):
            native.score(
                native.StoredRegions(one, one[:, 0]), gallery, native.PairIndices(row, row), solver, uniform=True
            )


def test_evaluation_compares_originals_with_codes(fitted):
    given = images()
    stored, labels = given.quantized("1kb", codebooks=fitted[24]), torch.arange(80) % 8
    report = evaluate_regions(stored, labels, originals=given, rerank_at=(0, 10))
    order = torch.from_numpy(report.hits[0][:, :10])
    expected = Matcher().score(given, stored, order).max(dim=1)
    best = order.gather(1, Matcher().score(given, stored, order).argmax(dim=1, keepdim=True)).flatten()
    assert torch.equal(torch.from_numpy(report.hits[10][:, 0]), best)
    swapped = Matcher().score(stored[:], given, order)
    assert not torch.allclose(expected.values, swapped.max(dim=1).values, atol=1e-4)


def test_originals_have_to_be_those_of_the_images(fitted):
    given = images()
    stored = given.quantized("1kb", codebooks=fitted[24])
    with pytest.raises(ValueError, match="originals: need the 80 images themselves, got 79"):
        evaluate_regions(stored, torch.arange(80) % 8, originals=given[1:])
    with pytest.raises(TypeError, match="need Regions"):
        evaluate_regions(stored, torch.arange(80) % 8, originals=given.dense)


def test_wrong_arguments_raise(fitted):
    known, given = fitted[24], images(3)
    codes = known.encode(given.dense)
    with pytest.raises(ValueError, match="codebooks: need dtype '1kb' with them"):
        given.quantized(torch.int8, codebooks=known)
    with pytest.raises(ValueError, match="dense: need D 24 as the centroids, got 37"):
        images(3, dim=37).quantized("1kb", codebooks=known)
    with pytest.raises(TypeError, match="need uint8, no scale"):
        QuantizedRegions(codes, torch.ones(3, 16), given.pooled, codebooks=known)
    with pytest.raises(ValueError, match=r"need \(N, R, 24\) and \(N, 24\) as the codebooks"):
        QuantizedRegions(codes[..., :5], None, given.pooled, codebooks=known)
    with pytest.raises(TypeError, match="need int8 or int16, float32"):
        QuantizedRegions(codes, None, given.pooled)
    with pytest.raises(TypeError, match=r"centroids: need int8, got torch\.float64"):
        Codebooks(known.centroids.double(), known.step, 24)
    for dim in (0, 23, 200_000):
        with pytest.raises(ValueError, match=r"centroids: need \(S, 256, w\)"):
            Codebooks(known.centroids, known.step, dim)
    for step in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="step: need a finite number above 0"):
            Codebooks(known.centroids, step, 24)
