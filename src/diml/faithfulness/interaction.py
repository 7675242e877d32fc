"""Interaction deletion and insertion: blur, or restore, regions of both images together, and record the score.

A ledger claims more than that a region matters: it says which region of the other image it matters with. Removing
matched regions is therefore compared with removing as many unmatched ones. Two numbers are recorded: the score, and the
interaction, the score with both sides changed - with the query changed - with the gallery image changed + unchanged.
The effects of either side alone cancel in the second; what remains is the part of the score that is shared by the
changed regions of the query and those of the gallery image.

For a score that is a sum of contributions of pairs of regions, removing n matched pairs removes n large contributions,
and removing n unmatched ones up to 2 n: matched regions are expected to lower the score *less* than unmatched regions
of the same credit, to raise it more when they are restored, and to have the larger interaction in both.

Legend: R regions, S steps, F points of a curve (S + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diml.faithfulness.controls import derangement, shifted
from diml.faithfulness.ledgers import Attribution

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]

#: The method of the matched pairs is that of the ledger; its controls.
CONTROLS = ("permuted", "shifted", "same place", "random")


@dataclass(frozen=True, eq=False)
class JointOrders:
    """In which order regions are changed on both sides.

    Args:
        sizes: F numbers of regions changed on (the query, the gallery image), from (0, 0) to all that are matched.
        orders: "matched" and `CONTROLS` -> regions of (the query, the gallery image) in the order of change.
    """

    sizes: list[tuple[int, int]]
    orders: dict[str, tuple[Ints, Ints]]


def joint_orders(
    attribution: Attribution, random_q: Ints, grids: tuple[Grid, Grid], steps: int, generator: np.random.Generator
) -> JointOrders:
    """Matched regions in the order of a ledger, and unmatched ones of the same number.

    - permuted: the same regions of the query, the partners exchanged among each other so that none keeps its own;
    - shifted: the same regions of the query, the partners moved on the torus: the same spatial structure;
    - same place: the same regions of the query, with those at the same positions (only for grids of one shape);
    - random: random regions on both sides.

    Args:
        attribution: of the ledger; where sets of regions are matched, each step changes a whole set.
        random_q: (Rq,) a random order of the query's regions.
        grids: of the query's and of the gallery image's regions.
        steps: S, for single regions.
        generator: of the controls.
    """
    matched = attribution.matched
    order_q, order_g = (np.concatenate([pair[side] for pair in matched]) for side in (0, 1))
    others = derangement(len(matched), generator)
    regions_g = grids[1][0] * grids[1][1]
    orders = {
        "matched": (order_q, order_g),
        "permuted": (order_q, np.concatenate([matched[other][1] for other in others])),
        "shifted": (order_q, shifted(grids[1], generator)[order_g]),
    }
    if grids[0] == grids[1]:
        rest = np.setdiff1d(np.arange(regions_g), order_q)  # where more regions of the gallery image are changed
        orders["same place"] = (order_q, np.concatenate([order_q, rest]))
    orders["random"] = (random_q, generator.permutation(regions_g))
    return JointOrders(_sizes(matched, steps), orders)


def _sizes(matched: Sequence[tuple[Ints, Ints]], steps: int) -> list[tuple[int, int]]:
    """Single regions are changed in even steps, sets one by one."""
    ends = [np.cumsum([0, *(len(pair[side]) for pair in matched)]) for side in (0, 1)]
    if all(len(side) == 1 for pair in matched for side in pair):
        return [(count, count) for count in (round(at * len(matched) / steps) for at in range(steps + 1))]
    return [(int(q), int(g)) for q, g in zip(*ends, strict=True)]


class ScoredPairs:
    """Pairs of composed images to be scored together, each once."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], int] = {}

    def place(self, pair: tuple[int, int]) -> int:
        """Where the score of a pair of rows (query, gallery) will be among the scores."""
        return self._rows.setdefault(pair, len(self._rows))

    @property
    def sides(self) -> tuple[list[int], list[int]]:
        """Rows of the queries and of the gallery images of all pairs."""
        pairs = list(self._rows)
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@dataclass(frozen=True, eq=False)
class JointCurve:
    """Where the scores of one curve are among those of `ScoredPairs`.

    Args:
        both, only_q, only_g: F places of the scores with both sides changed, the query alone, the gallery image alone.
    """

    both: list[int]
    only_q: list[int]
    only_g: list[int]

    @classmethod
    def request(cls, rows_q: list[int], rows_g: list[int], pairs: ScoredPairs) -> JointCurve:
        """Ask for the scores of images in F rows of each side, the first of which are unchanged."""
        return cls(
            [pairs.place(pair) for pair in zip(rows_q, rows_g, strict=True)],
            [pairs.place((row, rows_g[0])) for row in rows_q],
            [pairs.place((rows_q[0], row)) for row in rows_g],
        )

    def score(self, scores: Floats) -> Floats:
        """(F,) the score with both sides changed."""
        return scores[self.both]

    def interaction(self, scores: Floats) -> Floats:
        """(F,) both changed - query changed - gallery image changed + unchanged."""
        values: Floats = scores[self.both] - scores[self.only_q] - scores[self.only_g] + scores[self.both[0]]
        return values
