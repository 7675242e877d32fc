"""Galleries of 16-bit integers."""

import pytest
import torch

from diml.matching import QuantizedRegions, Regions
from scores import score


def images(count=9, regions=4, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1))


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
    found, exact = score(query, gallery.quantized(torch.int16), rows), score(query, gallery, rows)
    assert 0 < (found - exact).abs().max() < 1e-4


def test_the_longest_vectors_of_every_type_fit_16_bits():
    for dtype, length in ((torch.float32, 1.0009), (torch.float16, 1.004), (torch.bfloat16, 1.0195)):
        dense = torch.zeros(1, 1, 4, dtype=dtype)
        dense[0, 0, 0] = length
        regions = Regions(dense, dense[:, 0])
        stored = regions.quantized(torch.int16)
        assert stored[:].dense[0, 0, 0] == pytest.approx(dense[0, 0, 0].item(), abs=2e-5)
        expected = dense[0, 0, 0].item() ** 2
        assert score(regions, stored, torch.tensor([[0]]), structural_weight=float("inf")).item() == pytest.approx(
            expected, rel=1e-4
        )


def test_codes_that_could_overflow_are_refused():
    codes = torch.full((1, 1, 4), 30000, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"codes: need int16 vectors of length 46340 at most; use Regions\.quantized"):
        QuantizedRegions(codes, torch.ones(1, 1), torch.ones(1, 4))
    assert len(QuantizedRegions(codes // 2, torch.ones(1, 1), torch.ones(1, 4))) == 1


def test_codes_are_of_8_or_16_bits():
    with pytest.raises(
        TypeError, match=r"dtype: need torch.int8, torch.int16 or '1kb', got torch.float16; .to\(\) converts"
    ):
        images().quantized(torch.float16)
    with pytest.raises(TypeError, match="need int8 or int16, float32"):
        QuantizedRegions(torch.ones(1, 1, 4, dtype=torch.int32), torch.ones(1, 1), torch.ones(1, 4))
