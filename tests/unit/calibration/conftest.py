"""Made-up scores and images whose true probabilities are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.calibration.calibrator import fit_calibrator
from diml.calibration.pairs import BestScores, LabelledScores, ScoredImages
from diml.matching import Matcher, Regions


def made_up_pairs(count: int, seed: int, *, classes: int = 50, prior: float = 0.2) -> LabelledScores:
    """Independent pairs: same-class scores from N(1.5, 0.2), the others from N(1, 0.2)."""
    random = np.random.default_rng(seed)
    same = random.random(count) < prior
    scores = random.normal(np.where(same, 1.5, 1.0), 0.2)
    class_q = random.integers(classes, size=count)
    class_g = np.where(same, class_q, (class_q + random.integers(1, classes, size=count)) % classes)
    return LabelledScores(scores, class_q, class_g, np.ones(count))


def true_probability(scores: np.ndarray, prior: float = 0.2) -> np.ndarray:
    """P(same class) of such a score."""
    odds = np.log(prior / (1 - prior)) + ((scores - 1.0) ** 2 - (scores - 1.5) ** 2) / (2 * 0.2**2)
    return 1 / (1 + np.exp(-odds))


def made_up_images(count: int, seed: int) -> ScoredImages:
    random = np.random.default_rng(seed + 1)
    best = BestScores(
        random.normal(1.3, 0.1, count // 10),
        random.integers(50, size=count // 10),
        random.integers(50, size=count // 10),
    )
    candidates = made_up_pairs(count, seed)
    return ScoredImages(
        candidates=candidates,
        lists=candidates.scores.reshape(-1, 20),
        random=made_up_pairs(count, seed + 2, prior=0.05),
        absent=best,
        self_match=2.0,
        depth=100,
        images=500,
        classes=50,
        absent_gallery=490.0,
        unconverged=0,
    )


@pytest.fixture(scope="session")
def scored():
    return made_up_images(20_000, 0)


@pytest.fixture(scope="session")
def calibrator(scored):
    return fit_calibrator(scored, fingerprint="f" * 64, matcher=Matcher(), model="tiny", data="made up")


@pytest.fixture(scope="session")
def labelled():
    """Regions of 12 classes of 5 images each, and their classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) // 5
    centres = torch.randn(12, 4, 8, generator=generator)
    dense = centres[labels] + 0.4 * torch.randn(60, 4, 8, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1), grid=(2, 2)), labels.numpy()
