"""A calibration of plain numbers for any embedder, so that tests need not fit one."""

from __future__ import annotations

from typing import Any

from diml.calibration import Calibrator
from diml.calibration.calibrator import HitMap, Landmarks
from diml.calibration.rates import RateTable
from diml.matching import Matcher
from diml.models import Embedder


def made_up_calibrator(embedder: Embedder, matcher: Matcher | None = None, **changes: Any) -> Calibrator:
    """Scores from 0 to 2 become probabilities from 0.1 to 0.9; a first hit below 1 is not in the gallery at 5 %."""
    values: dict[str, Any] = {
        "fingerprint": embedder.fingerprint(),
        "matcher": embedder.matcher if matcher is None else matcher,
        "model": "tiny",
        "data": "made up",
        "method": "logistic",
        "pairs": "candidates",
        "depth": 100,
        "prior": 0.2,
        "images": 500,
        "classes": 50,
        "same_pairs": 400,
        "different_pairs": 1600,
        "gallery_images": 12.0,
        "scores": (0.0, 2.0),
        "probabilities": (0.1, 0.9),
        "hits": HitMap(coefficients=(2.0, -0.5, 0.0, 0.0, 0.0), values=(-4.0, 4.0), probabilities=(0.02, 0.98)),
        "false_accept": RateTable(
            scores=(1.9, 1.5, 1.0), rates=(0.0, 0.01, 0.1), bounds=(0.005, 0.02, 0.12), count=1600
        ),
        "not_in_gallery": RateTable(
            scores=(1.9, 1.5, 1.0, 0.5), rates=(0.0, 0.01, 0.03, 0.2), bounds=(0.01, 0.02, 0.05, 0.25), count=500
        ),
        "auc": 0.93,
        "auc_interval": (0.9, 0.96),
        "present": (0.9, 1.4, 1.6, 1.8, 1.9),
        "landmarks": Landmarks(same=(1.2, 1.4, 1.5, 1.6, 1.8), different=(0.4, 0.6, 0.8, 1.0, 1.2), self_match=1.97),
    }
    return Calibrator(**values | changes)
