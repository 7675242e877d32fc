"""What the ledgers of an explanation say about a pair, in the form in which deletion and insertion test it.

`LEDGERS` lists the kinds. A further kind needs an entry there and nothing else: every measure, table and plot gives it
rows under its name.

Legend: Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diml.matching import Match

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What one ledger claims about one pair.

    Args:
        credit: (Rq,) the part of the score that each region of the query accounts for.
        matched: (regions of the query, regions of the gallery image) that account for the score together, the largest
            contribution first; one region or several on each side, each region at most once.
    """

    credit: Floats
    matched: Sequence[tuple[Ints, Ints]]


@dataclass(frozen=True)
class LedgerKind:
    """A kind of ledger.

    Args:
        label: name of its rows in tables and figures.
        read: (match, row of the pair) -> what the ledger claims.
        needs_shares: whether it needs the shares of the pooled vectors (see `Regions.shares`).
    """

    label: str
    read: Callable[[Match, int], Attribution]
    needs_shares: bool = False


def one_to_one(contributions: Tensor) -> list[tuple[Ints, Ints]]:
    """Pairs of one region each, by decreasing contribution (Rq, Rg), leaving out regions that are in a pair already."""
    values = contributions.detach().cpu().double().numpy()
    order = np.argsort(-values, axis=None, kind="stable")
    used_q, used_g = set[int](), set[int]()
    pairs = []
    for place in order.tolist():
        region_q, region_g = divmod(place, values.shape[1])
        if region_q not in used_q and region_g not in used_g:
            used_q.add(region_q)
            used_g.add(region_g)
            pairs.append((np.array([region_q]), np.array([region_g])))
    return pairs


def _of_cells(contributions: Tensor) -> Attribution:
    return Attribution(contributions.sum(dim=1).cpu().numpy(), one_to_one(contributions))


#: Name of a kind, which is the name of its method in the results -> the kind.
LEDGERS: Final[Mapping[str, LedgerKind]] = {
    "credit": LedgerKind("credit (ledger)", lambda match, pair: _of_cells(match.ledger(pair).contributions)),
    "whole": LedgerKind("credit (whole score)", lambda match, pair: _of_cells(match.ledger(pair).whole), True),
}
