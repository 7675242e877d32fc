"""What the ledgers of an explanation say about a pair, in the form in which deletion and insertion test it.

`LEDGERS` lists the kinds. A further kind needs an entry there and nothing else: every measure, table and plot gives it
rows under its name.

Legend: Rq and Rg regions of the two sides, F points of a curve.
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
        of_parts: whether its rows are parts, which are changed as a whole, not region by region.
    """

    label: str
    read: Callable[[Match, int], Attribution]
    needs_shares: bool = False
    of_parts: bool = False


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


def parts_changed(matched: Sequence[tuple[Ints, Ints]], regions: int) -> list[Ints]:
    """F sets of regions of the query: none, the first part, the first two, ..., and all regions at last."""
    sets = [np.empty(0, dtype=np.int64)]
    for part, _ in matched:
        sets.append(np.concatenate([sets[-1], part]))
    if len(sets[-1]) < regions:
        sets.append(np.concatenate([sets[-1], np.setdiff1d(np.arange(regions), sets[-1])]))
    return sets


def _of_cells(contributions: Tensor) -> Attribution:
    return Attribution(contributions.sum(dim=1).cpu().numpy(), one_to_one(contributions))


def _of_parts(match: Match, pair: int) -> Attribution:
    ledger = match.ledger(pair)
    values = ledger.whole if ledger.has_whole else ledger.contributions
    rows = [(np.array(part.regions_q), np.array(part.regions_g)) for part in ledger.parts().rows]
    return Attribution(values.sum(dim=1).cpu().numpy(), [row for row in rows if len(row[0]) and len(row[1])])


#: Name of a kind, which is the name of its method in the results -> the kind.
LEDGERS: Final[Mapping[str, LedgerKind]] = {
    "credit": LedgerKind("credit (ledger)", lambda match, pair: _of_cells(match.ledger(pair).contributions)),
    "whole": LedgerKind("credit (whole score)", lambda match, pair: _of_cells(match.ledger(pair).whole), True),
    "parts": LedgerKind("parts (ledger)", _of_parts, True, True),
}
