"""Stability: do the largest entries of the ledger stay the same when the query is perturbed?

Legend: B pairs, n entries compared, S pixels of a side.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diml.data import load_image
from diml.matching import Match

Floats = NDArray[np.float64]

#: Amplitude of the uniform noise as a fraction of the range of values, and the JPEG quality.
NOISE, QUALITY = 0.2, 50


def noisy(view: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The image with uniform noise of +- `NOISE` of the range on every value, clipped to the range."""
    values = np.asarray(view, dtype=np.float64)
    moved = values + generator.uniform(-NOISE, NOISE, values.shape) * 255
    return Image.fromarray(np.rint(np.clip(moved, 0, 255)).astype(np.uint8))


def as_jpeg(view: Image.Image, _: np.random.Generator) -> Image.Image:
    """The image after JPEG compression at `QUALITY`."""
    file = io.BytesIO()
    view.save(file, format="JPEG", quality=QUALITY)
    return load_image(file.getvalue())


#: Name -> perturbation of the query as the network sees it.
PERTURBATIONS: Final[Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]]] = {
    "noise": noisy,
    "jpeg": as_jpeg,
}


def top_pairs(values: Tensor, count: int) -> Tensor:
    """(B, n) int64 positions of the largest entries in the flattened (B, Rq, Rg), ties in row-major order."""
    flat = values.flatten(1)
    return torch.argsort(flat, dim=1, descending=True, stable=True)[:, :count]


def share_unchanged(before: Tensor, after: Tensor, count: int) -> Floats:
    """(B,) fraction of the `count` largest entries of matrices (B, Rq, Rg) that are still among the largest."""
    first, second = top_pairs(before, count), top_pairs(after, count)
    shares: Floats = (first.unsqueeze(2) == second.unsqueeze(1)).any(dim=2).double().mean(dim=1).cpu().numpy()
    return shares


def stability(before: Match, after: Match, count: int) -> dict[str, Floats]:
    """Method -> (B,) fraction of top pairs unchanged: of contributions ("ledger") and of cosines ("argmax")."""
    contributions = [match.plan.double() * match.cosine.double() for match in (before, after)]
    return {
        "ledger": share_unchanged(contributions[0], contributions[1], count),
        "argmax": share_unchanged(before.cosine, after.cosine, count),
    }


def chance(match: Match, count: int) -> float:
    """The expected fraction unchanged if both sets were random."""
    entries = match.plan.shape[1] * match.plan.shape[2]
    return min(count, entries) / entries
