"""`score_pairs` and galleries of 16-bit integers; `rerank` is tested with `match` in test_similarity.py."""

import pytest
import torch

from diml.matching import QuantizedRegions, Regions, match, rerank, score_pairs, scoring


def images(count=9, regions=4, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1))


LEFT, RIGHT = torch.tensor([3, 0, 3, 3, 8, 8]), torch.tensor([1, 5, 3, 0, 8, 2], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("score", ["both", "structural", "pooled"])
def test_any_pairs_score_as_match_has_it(dtype, at_once, score, monkeypatch):
    monkeypatch.setattr(scoring, "PAIRS_AT_ONCE", at_once)
    regions = images().to(dtype)
    scores, converged = score_pairs(regions, LEFT, RIGHT, score=score)
    expected = match(regions[LEFT], regions[RIGHT.long()])
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = expected.score if score == "both" else getattr(expected, score)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    assert converged.equal(expected.converged)


def test_pairs_that_are_cut_short_are_told():
    _, converged = score_pairs(images(), LEFT, RIGHT, max_iterations=1)
    assert not converged.all()
    _, converged = score_pairs(images(), LEFT, RIGHT)
    assert converged.all()


@pytest.mark.parametrize(
    ("left", "right", "error", "told"),
    [
        ([0, 9], [0, 1], ValueError, "left: need rows 0..8"),
        ([0, 1], [0, -1], ValueError, "right: need rows 0..8"),
        ([0, 1], [0], ValueError, "left, right: need as many rows, got 2 and 1"),
        ([0.5], [0], TypeError, "left: need integer row numbers"),
    ],
)
def test_rows_that_are_not_there_are_refused(left, right, error, told):
    with pytest.raises(error, match=told):
        score_pairs(images(), torch.tensor(left), torch.tensor(right))


# ------------------------------------------------------------------------------------------ 16-bit integers


def test_codes_of_16_bits_are_regions_to_a_step():
    regions = images(1500)  # in two parts
    stored = regions.quantized(torch.int16)
    assert stored.codes.dtype == torch.int16
    assert (stored[:].dense - regions.dense).abs().max() <= 0.5 / 32000 + 1e-7
    assert stored.pooled is regions.pooled
    again = stored[:].quantized(torch.int16)
    assert again.codes.equal(stored.codes)


def test_scores_of_16_bits_are_those_of_float32_to_a_few_steps():
    query, gallery, rows = images(5, 16, 128), images(40, 16, 128, seed=1), torch.arange(40).repeat(5, 1)
    found, exact = rerank(query, gallery.quantized(torch.int16), rows), rerank(query, gallery, rows)
    assert 0 < (found - exact).abs().max() < 1e-4


def test_the_longest_vectors_of_every_type_fit_16_bits():
    for dtype, length in ((torch.float32, 1.0009), (torch.float16, 1.004), (torch.bfloat16, 1.0195)):
        dense = torch.zeros(1, 1, 4, dtype=dtype)
        dense[0, 0, 0] = length
        regions = Regions(dense, dense[:, 0])
        stored = regions.quantized(torch.int16)
        assert stored[:].dense[0, 0, 0] == pytest.approx(dense[0, 0, 0].item(), abs=2e-5)
        expected = dense[0, 0, 0].item() ** 2
        assert rerank(regions, stored, torch.tensor([[0]]), score="structural").item() == pytest.approx(
            expected, rel=1e-4
        )


def test_codes_that_could_overflow_are_refused():
    codes = torch.full((1, 1, 4), 30000, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"codes: need int16 vectors of length 46340 at most; use Regions\.quantized"):
        QuantizedRegions(codes, torch.ones(1, 1), torch.ones(1, 4))
    assert len(QuantizedRegions(codes // 2, torch.ones(1, 1), torch.ones(1, 4))) == 1


def test_codes_are_of_8_or_16_bits():
    with pytest.raises(TypeError, match=r"dtype: need torch.int8 or torch.int16, got torch.float16; .to\(\) converts"):
        images().quantized(torch.float16)
    with pytest.raises(TypeError, match="need int8 or int16, float32"):
        QuantizedRegions(torch.ones(1, 1, 4, dtype=torch.int32), torch.ones(1, 1), torch.ones(1, 4))
