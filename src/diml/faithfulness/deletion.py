"""Deletion and insertion: take regions of the query away, or put them back, in an order; embed again; watch the score.

Legend: B pairs, R regions of the query, S steps, F images of one curve (S + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from diml.matching import Match

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]

#: Blur that takes a region away: standard deviation in shares of the image's side. At 224 pixels, 22.
BLUR: Final = 0.1


def region_credit(match: Match, pair: int) -> dict[str, Tensor]:
    """(Rq,) credit of the query's regions by name: what the ledger says, and what it is held against.

    - credit: what a region contributes in all (row sums of the ledger);
    - weights: its mass alone, without plan and cosines;
    - argmax: its largest cosine with any region of the gallery image.
    """
    return {
        "credit": match.ledger(pair).total_q,
        "weights": match.weight_q[pair].double(),
        "argmax": match.cosine[pair].amax(dim=1).double(),
    }


def order_by(credit: Tensor | Floats, generator: np.random.Generator) -> Ints:
    """(R,) regions by falling credit; equal ones in an order by chance."""
    values = np.asarray(credit.cpu() if isinstance(credit, Tensor) else credit, dtype=np.float64)
    order: Ints = np.lexsort((generator.permutation(len(values)), -values)).astype(np.int64)
    return order


def blurred(view: Image.Image) -> Image.Image:
    """The image with nothing left but broad patches of colour."""
    return view.filter(ImageFilter.GaussianBlur(BLUR * min(view.size)))


def composed(view: Image.Image, away: Image.Image, regions: Sequence[int] | Ints, grid: Grid) -> Image.Image:
    """The image `view` with some regions, cells of the grid, taken from the image `away` of the same size."""
    made = view.copy()
    for region in regions:
        row, column = divmod(int(region), grid[1])
        left, right = (round(at * view.width / grid[1]) for at in (column, column + 1))
        top, bottom = (round(at * view.height / grid[0]) for at in (row, row + 1))
        made.paste(away.crop((left, top, right, bottom)), (left, top))
    return made


def steps_of(regions: int, steps: int) -> list[int]:
    """How many regions are gone at each point of a curve: from 0 to all, at most `steps` steps, evenly."""
    return sorted({round(at * regions / steps) for at in range(steps + 1)})


@dataclass(frozen=True, eq=False)
class CurveImages:
    """The images that all curves of one query need, each once.

    Args:
        images: to be embedded.
        curves: ("deletion" or "insertion", method) -> F places in `images`, the first with nothing done yet.
    """

    images: list[Image.Image]
    curves: dict[tuple[str, str], list[int]]


def curve_images(view: Image.Image, orders: Mapping[str, Ints], grid: Grid, counts: Sequence[int]) -> CurveImages:
    """Blur the first regions of each order (deletion), or all but them (insertion).

    Args:
        view: what the network sees of the query.
        orders: method -> (R,) regions, the first to go first.
        grid: of the regions.
        counts: F rising numbers of regions, from 0 to R.
    """
    away = blurred(view)
    images, curves = [view, away], {}
    for method, order in orders.items():
        for kind, base, other, ends in (("deletion", view, away, (0, 1)), ("insertion", away, view, (1, 0))):
            between = [composed(base, other, order[:count], grid) for count in counts[1:-1]]
            curves[kind, method] = [ends[0], *range(len(images), len(images) + len(between)), ends[1]]
            images += between
    return CurveImages(images, curves)


def area(scores: Floats, counts: Sequence[int]) -> float:
    """Mean height of a curve (F,) over the share of regions, by trapezoids: the area under the curve."""
    share = np.asarray(counts, dtype=np.float64) / counts[-1]
    return float(((scores[1:] + scores[:-1]) / 2 * np.diff(share)).sum())
