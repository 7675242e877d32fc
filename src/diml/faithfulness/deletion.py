"""Deletion and insertion: blur regions of the query, or restore them, in a given order, and record the score.

Legend: B pairs, R regions of the query, S steps, F images of one curve (S + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from diml.matching import Match

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]

#: Blur that removes a region: standard deviation as a fraction of the side of the image; 22 of 224 pixels.
BLUR: Final = 0.1

#: Regions are blurred, or restored in the blurred image.
KINDS: Final = ("deletion", "insertion")


def baseline_credit(match: Match, pair: int) -> dict[str, Tensor]:
    """(Rq,) credit of the query's regions without a ledger, by name.

    - weights: its mass alone, without plan and cosines;
    - argmax: its largest cosine with any region of the gallery image.
    """
    return {
        "weights": match.weight_q[pair].double(),
        "argmax": match.cosine[pair].amax(dim=1).double(),
    }


def order_by(credit: Tensor | Floats, generator: np.random.Generator) -> Ints:
    """(R,) regions by decreasing credit; equal ones in random order."""
    values = np.asarray(credit.cpu() if isinstance(credit, Tensor) else credit, dtype=np.float64)
    order: Ints = np.lexsort((generator.permutation(len(values)), -values)).astype(np.int64)
    return order


def cut(order: Ints, counts: Sequence[int]) -> list[Ints]:
    """F sets of regions: the first `counts` of an order."""
    return [order[:count] for count in counts]


def blurred(view: Image.Image) -> Image.Image:
    """The image blurred to broad patches of colour."""
    return view.filter(ImageFilter.GaussianBlur(BLUR * min(view.size)))


def shuffled(view: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The image with its pixels in random order: noise of the same colours, unlike anything in a blurred image."""
    pixels = np.asarray(view)
    return Image.fromarray(generator.permutation(pixels.reshape(-1, pixels.shape[-1])).reshape(pixels.shape))


def composed(view: Image.Image, other: Image.Image, regions: Sequence[int] | Ints, grid: Grid) -> Image.Image:
    """The image `view` with some regions, cells of the grid, copied from the image `other` of the same size."""
    made = view.copy()
    for region in regions:
        row, column = divmod(int(region), grid[1])
        left, right = (round(at * view.width / grid[1]) for at in (column, column + 1))
        top, bottom = (round(at * view.height / grid[0]) for at in (row, row + 1))
        made.paste(other.crop((left, top, right, bottom)), (left, top))
    return made


def steps_of(regions: int, steps: int) -> list[int]:
    """Number of regions changed at each point of a curve: from 0 to all in at most `steps` even steps."""
    return sorted({round(at * regions / steps) for at in range(steps + 1)})


class ComposedImages:
    """Images of one view in which some regions are blurred, each made once.

    Args:
        view: as the network sees it; row 0 of `images`. Row 1 is the blurred view.
        grid: of the regions.
        removed: takes the place of the blurred view.
    """

    def __init__(self, view: Image.Image, grid: Grid, removed: Image.Image | None = None) -> None:
        self.grid = grid
        self.images = [view, blurred(view) if removed is None else removed]
        regions = grid[0] * grid[1]
        self._rows = {bytes(regions): 0, b"\1" * regions: 1}

    def row(self, kind: str, changed: Ints) -> int:
        """The row of the image with these regions blurred ("deletion"), or all others ("insertion")."""
        blur = np.zeros(self.grid[0] * self.grid[1], dtype=np.bool_)
        blur[changed] = True
        blur = blur if kind == "deletion" else ~blur
        if blur.tobytes() not in self._rows:
            base = int(2 * blur.sum() > len(blur))  # copy the smaller part
            part = np.flatnonzero(blur if base == 0 else ~blur)
            self._rows[blur.tobytes()] = len(self.images)
            self.images.append(composed(self.images[base], self.images[1 - base], part, self.grid))
        return self._rows[blur.tobytes()]


def curve_rows(images: ComposedImages, changed: Mapping[str, Sequence[Ints]]) -> dict[tuple[str, str], list[int]]:
    """("deletion" or "insertion", method) -> F rows of `images`, the first of which is unchanged.

    Args:
        images: of the query; those of the curves are added.
        changed: method -> F sets of regions that are blurred (deletion) or restored (insertion), from none to all.
    """
    return {
        (kind, method): [images.row(kind, regions) for regions in sets]
        for method, sets in changed.items()
        for kind in KINDS
    }


def area(scores: Floats, counts: Sequence[int]) -> float:
    """Area under a curve (F,) over the fraction of the last number of regions, by the trapezoidal rule."""
    share = np.asarray(counts, dtype=np.float64) / counts[-1]
    return float(((scores[1:] + scores[:-1]) / 2 * np.diff(share)).sum())
