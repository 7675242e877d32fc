"""Explainable image similarity: images are compared region by region, by optimal transport (DIML, ICCV 2021).

The score of a pair is a sum over pairs of regions, and `match.ledger()` is that sum, term by term.

    import diml

    match = diml.match("a.jpg", "b.jpg")
    print(match, match.ledger().top(3))
    match.draw().savefig("why.png")

Packages: `diml.matching` (the method), `diml.data`, `diml.models`, `diml.objectives`, `diml.evaluation`,
`diml.explain`, `diml.faithfulness`, `diml.search`, `diml.training`, `diml.web`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diml.calibration import Calibrator
    from diml.data import DataSet, ImageSet, Preprocess, load_dataset
    from diml.data.images import ImageLike
    from diml.data.samples import sample_images
    from diml.evaluation import Report, evaluate_dataset, evaluate_regions
    from diml.explain import Explanation
    from diml.explain.explanation import Foregrounds
    from diml.matching import Matcher, Ranking, Regions, nearest, rerank
    from diml.models import Embedder, load_embedder, load_regions, save_regions

__version__ = "0.2.0"

#: Public name -> its package, imported when first used: torch, timm, torchvision and matplotlib take seconds.
_PACKAGE_OF = {
    "DataSet": "data",
    "Embedder": "models",
    "Explanation": "explain",
    "ImageSet": "data",
    "Matcher": "matching",
    "Preprocess": "data",
    "Ranking": "matching",
    "Regions": "matching",
    "Report": "evaluation",
    "evaluate_dataset": "evaluation",
    "evaluate_regions": "evaluation",
    "load_dataset": "data",
    "load_embedder": "models",
    "load_regions": "models",
    "nearest": "matching",
    "rerank": "matching",
    "save_regions": "models",
    "sample_images": "data.samples",
}

__all__ = [
    "DataSet",
    "Embedder",
    "Explanation",
    "ImageSet",
    "Matcher",
    "Preprocess",
    "Ranking",
    "Regions",
    "Report",
    "evaluate_dataset",
    "evaluate_regions",
    "load_dataset",
    "load_embedder",
    "load_regions",
    "match",
    "nearest",
    "rerank",
    "sample_images",
    "save_regions",
]


def match(
    a: ImageLike | Regions,
    b: ImageLike | Regions,
    *,
    embedder: Embedder | None = None,
    matcher: Matcher | None = None,
    calibrator: Calibrator | None = None,
    foregrounds: Foregrounds | None = None,
    **settings: Any,
) -> Explanation:
    """Compare two images region by region, or row i of some `Regions` with row i of others.

    Args:
        a: the query: path, PIL image, tensor (3, H, W) or array (H, W, 3), uint8 or float in [0, 1]; or Regions.
        b: the gallery image, likewise.
        embedder: turns images into regions; MobileNetV2 when omitted. Not for Regions.
        matcher: settings of the method; by default the embedder's own, for Regions `Matcher()`.
        calibrator: what the scores of this embedder and matcher mean (`diml.calibration.load_calibration`), for the
            probability that both images are of one class.
        foregrounds: fraction of each region that is object, (Rq,) and (Rg,) in 0..1, for the share of the background.
        settings: single settings in place of a matcher, which replace those of the default one: weights, epsilon,
            tolerance, max_iterations, structural_weight, share (see `Matcher`).

    Returns:
        Explanation, a Match: one pair with its images; of Regions B pairs, whose images `draw(images=...)` takes.

    Raises:
        TypeError: one side is Regions and the other an image, Regions came with an embedder, or a matcher with single
            settings.
        ValueError, FileNotFoundError: an image cannot be read, or a setting is out of range.

    Example:
        >>> found = diml.match("a.jpg", "b.jpg", epsilon=0.02)
        >>> print(found.summary(), found.ledger().top(3))
    """
    from diml.explain.explanation import configured_matcher, match_pair

    return match_pair(
        a,
        b,
        embedder=embedder,
        matcher=configured_matcher(embedder, matcher, settings),
        calibrator=calibrator,
        foregrounds=foregrounds,
    )


def __getattr__(name: str) -> Any:
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module 'diml' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diml.{_PACKAGE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
