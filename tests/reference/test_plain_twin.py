"""The slow twin of the benchmarks is the authors' algorithm: its numbers are those of the released code."""

from __future__ import annotations

import pytest
import torch

import plain
from diml.matching import Regions

WEIGHTS = {"cc": "cross_correlation", "uniform": "uniform"}


def recorded(oracle, name):
    return torch.from_numpy(oracle[name])


def maps_of(oracle):
    return recorded(oracle, "loss_feature_maps")


@pytest.mark.parametrize("case", ["small", "paper", "fine"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_structural_similarities_are_the_recorded_ones(oracle, case, weights):
    """To rounding: same rule of stopping, same batch."""
    dense, pooled = (recorded(oracle, f"match_{case}_{part}") for part in ("regions", "global"))
    found, _ = plain.structural(dense[0], pooled[0], dense[1:], pooled[1:], WEIGHTS[weights])
    batched = recorded(oracle, f"match_{case}_structural_{weights}_batched")
    torch.testing.assert_close(found, batched, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["small", "paper", "fine"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_one_candidate_at_a_time_too(oracle, case, weights):
    dense, pooled = (recorded(oracle, f"match_{case}_{part}") for part in ("regions", "global"))
    others = range(1, len(dense))
    found = [
        plain.structural(dense[0], pooled[0], dense[i : i + 1], pooled[i : i + 1], WEIGHTS[weights])[0] for i in others
    ]
    pairwise = recorded(oracle, f"match_{case}_structural_{weights}_pairwise")
    torch.testing.assert_close(torch.cat(found), pairwise, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["a", "b"])
def test_whole_evaluations_are_the_recorded_ones(oracle, case):
    """Rows K = 0 and the largest K; those between have duplicated results in the released code (defect 3)."""
    dense, pooled, labels = (recorded(oracle, f"eval_{case}_{part}") for part in ("regions", "global", "labels"))
    trunc, table = (oracle[f"eval_{case}_{part}"].tolist() for part in ("trunc", "r1_rp_mapr"))
    found = plain.evaluate(Regions(dense, pooled), labels, max(trunc))
    for k, expected in zip(trunc, table, strict=True):
        if k in (0, max(trunc)):
            assert [100 * found.row(k)[name] for name in plain.COLUMNS] == pytest.approx(expected, abs=1e-4)


def test_similarities_in_training_are_the_recorded_ones(oracle):
    found = plain.similarity_matrix(Regions.from_maps(maps_of(oracle)))
    torch.testing.assert_close(found, recorded(oracle, "train_similarity_matrix_oriented"), rtol=0, atol=1e-5)


def test_distances_in_training_are_the_recorded_ones(oracle):
    regions = Regions.from_maps(maps_of(oracle))
    left, right = torch.cartesian_prod(torch.arange(12), torch.arange(12)).T
    found = plain.pair_distances(regions, left, right).reshape(12, 12)
    expected, off = recorded(oracle, "train_distance_matrix_oriented"), ~torch.eye(12, dtype=torch.bool)
    torch.testing.assert_close(found[off], expected[off], rtol=0, atol=2e-5)
    # an image is as far from itself as the rounding of 2 - 2 * cosine under the root allows
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_multisimilarity_diml_is_the_recorded_one(oracle):
    maps = maps_of(oracle).requires_grad_()
    loss = plain.multisimilarity_diml(Regions.from_maps(maps), recorded(oracle, "loss_labels"))
    loss.backward()
    assert loss.item() == pytest.approx(float(oracle["train_multisimilarity_loss_oriented"]), rel=1e-5)
    expected = recorded(oracle, "train_multisimilarity_grad_oriented")
    assert (maps.grad - expected).norm() <= 1e-4 * expected.norm()
