"""Weights of the regions: by hand, without mass, and tiny."""

from __future__ import annotations

import math

import pytest
import torch

from diml.matching.weights import cross_correlation_weights, normalize_mass

AXES = torch.eye(3)


def test_a_region_weighs_as_much_as_it_agrees_with_the_other_image():
    dense_q = AXES[None, :2]  # regions x and y
    pooled_q = AXES[None, 2]  # z
    pooled_g = torch.tensor([[[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]]])  # two candidates
    dense_g = torch.stack([AXES[[2, 0, 1]], torch.tensor([[0.6, 0, 0.8], [0, 0, 1.0], [0, 0, -1.0]])])[None]
    weight_q, weight_g = cross_correlation_weights(dense_q, pooled_q, dense_g, pooled_g)
    torch.testing.assert_close(weight_q, torch.tensor([[[0.6 / 1.4, 0.8 / 1.4], [1, 0]]]))
    torch.testing.assert_close(weight_g, torch.tensor([[[1, 0, 0], [0.8 / 1.8, 1 / 1.8, 0]]]))


def test_where_no_region_agrees_the_weights_are_uniform():
    weight_q, weight_g = cross_correlation_weights(
        AXES[None], AXES[None, 0], -AXES[None, None, :2], -AXES[None, None, 0]
    )
    torch.testing.assert_close(weight_q, torch.full((1, 1, 3), 1 / 3))
    torch.testing.assert_close(weight_g, torch.full((1, 1, 2), 1 / 2))


@pytest.mark.parametrize(
    ("mass", "expected"),
    [
        ([3.0, 1.0], [0.75, 0.25]),
        ([0.0, 5.0], [0.0, 1.0]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([7.0], [1.0]),
        ([0.0], [1.0]),
        ([3e-40, 1e-40], [0.75, 0.25]),
        ([3e38, 1e38, 3e38], [3 / 7, 1 / 7, 3 / 7]),
    ],
)
def test_mass_is_scaled_to_one(mass, expected):
    torch.testing.assert_close(normalize_mass(torch.tensor([mass])), torch.tensor([expected]), rtol=1e-4, atol=0)


def test_rows_are_scaled_apart():
    weights = normalize_mass(torch.tensor([[0.0, 0.0], [2.0, 6.0]]))
    assert weights.tolist() == [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_axes_are_kept(dtype):
    weights = normalize_mass(torch.rand(2, 3, 5, dtype=dtype))
    assert weights.dtype == dtype
    assert weights.shape == (2, 3, 5)
    assert math.isclose(weights.sum().item(), 6, rel_tol=1e-6)


def test_an_empty_batch_stays_empty():
    assert normalize_mass(torch.zeros(0, 4)).shape == (0, 4)
