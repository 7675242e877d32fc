"""Image similarity that can be read: two images compared part by part, by optimal transport.

The score of a pair is a sum of part-to-part matches, and `Match.ledger()` is that sum, entry by entry.

    import diml

    match = diml.match("a.jpg", "b.jpg")
    print(match.score, match.ledger().top(3))
    match.draw().savefig("why.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diml.allocator import keep_freed_memory
    from diml.data import DataSet, ImageSet, Preprocess, load_dataset
    from diml.evaluation import Report, evaluate_dataset, evaluate_regions
    from diml.explain import Explanation
    from diml.matching import Ledger, Match, Regions, rerank
    from diml.models import Embedder, load_embedder

__version__ = "0.1.0"

__all__ = [
    "DataSet",
    "Embedder",
    "Explanation",
    "ImageSet",
    "Ledger",
    "Match",
    "Preprocess",
    "Regions",
    "Report",
    "evaluate_dataset",
    "evaluate_regions",
    "keep_freed_memory",
    "load_dataset",
    "load_embedder",
    "match",
    "rerank",
]

#: Where each name lives. Rooms are opened when first used: torch, timm, torchvision and matplotlib take seconds.
_PACKAGE_OF = {
    "DataSet": "data",
    "Embedder": "models",
    "Ledger": "matching",
    "Match": "matching",
    "Explanation": "explain",
    "ImageSet": "data",
    "Preprocess": "data",
    "Regions": "matching",
    "Report": "evaluation",
    "evaluate_dataset": "evaluation",
    "evaluate_regions": "evaluation",
    "keep_freed_memory": "allocator",
    "load_dataset": "data",
    "load_embedder": "models",
    "rerank": "matching",
}


def match(a: Any, b: Any, *, embedder: Embedder | None = None, **settings: Any) -> Match:
    """Compare two images, or two `Regions` row by row.

    Args:
        a: the query: path, PIL image, image tensor (3, H, W) uint8 or float in [0, 1]; or Regions.
        b: the gallery image, likewise.
        embedder: what turns images into regions; MobileNetV2 when omitted. Not for Regions.
        settings: marginals, epsilon, tolerance, max_iterations as in `diml.matching.match`.

    Returns:
        Explanation, which remembers its images and can `draw()`; a plain Match for Regions.

    Raises:
        TypeError: one side is Regions and the other a image, or Regions came with an embedder.
        ValueError, FileNotFoundError: a image cannot be read, or a setting is out of range.

    Example:
        >>> diml.match("a.jpg", "b.jpg").ledger().top(3)
    """
    from diml import matching

    if isinstance(a, matching.Regions) and isinstance(b, matching.Regions):
        if embedder is not None:
            raise TypeError("embedder: Regions are embedded already; leave it out, or give images")
        return matching.match(a, b, **settings)
    from diml.explain import match_images

    return match_images(a, b, embedder=embedder, **settings)


def __getattr__(name: str) -> Any:
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module 'diml' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diml.{_PACKAGE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
