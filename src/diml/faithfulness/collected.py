"""The values that are measured, collected pair by pair.

Legend: B pairs, F points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diml.faithfulness.deletion import area
from diml.faithfulness.pairs import embed_views
from diml.matching import Match, Regions
from diml.models import Embedder

Floats = NDArray[np.float64]

#: (measure, case, method, quantity), such as ("correspondence", "flip", "plan", "mass").
Key = tuple[str, str, str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Measurements:
    """The values of every pair for one network.

    Args:
        values: key -> (B',) values, of the pairs that have one.
        curves: ("deletion", "insertion", "interaction_deletion" or "interaction_insertion", method) -> (B, F) scores.
        shares: (F,) fraction of the regions that are changed.
        unconverged_plans: number of plans that stopped at max_iterations.
        embeddings: number of images that were embedded, by the network and by its control.
    """

    values: Mapping[Key, Floats]
    curves: Mapping[tuple[str, str], Floats]
    shares: Floats
    unconverged_plans: int
    embeddings: int = 0

    def __repr__(self) -> str:
        return f"Measurements({len(self.values)} quantities, {len(self.curves)} curves)"


@dataclass(eq=False)
class Collector:
    """Values collected chunk by chunk.

    Args:
        shares: (F,) fractions of the regions at which curves are recorded.
    """

    shares: Floats = field(default_factory=lambda: np.linspace(0, 1, 2))
    values: dict[Key, list[float]] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)
    unconverged_plans: int = 0
    embeddings: int = 0

    def embed(self, embedder: Embedder, views: Sequence[Image.Image], *, shares: bool = False) -> Regions:
        """Embed views and count them."""
        self.embeddings += len(views)
        return embed_views(embedder, views, shares=shares)

    def add_curve(self, key: tuple[str, str], scores: Floats, counts: Sequence[int]) -> None:
        """Add the curve of a pair and the area under it.

        Args:
            key: measure and method.
            scores: (F',) of the pair.
            counts: F' increasing numbers of changed regions; the curve is recorded at `shares` of the last one.
        """
        places = np.asarray(counts, dtype=np.float64) / counts[-1]
        self.curves.setdefault(key, []).append(np.interp(self.shares, places, scores).tolist())
        self.add((key[0], "", key[1], "area"), [area(scores, counts)])

    def add(self, key: Key, numbers: Sequence[float] | Floats) -> None:
        """Add the values of some pairs, leaving out NaN, which stands for pairs without a value."""
        present = [float(number) for number in numbers if not np.isnan(number)]
        if present:
            self.values.setdefault(key, []).extend(present)

    def count_unconverged(self, match: Match) -> None:
        """Add the plans of a match that have not converged."""
        self.unconverged_plans += int((~match.converged).sum())

    def measurements(self) -> Measurements:
        """All that was collected."""
        return Measurements(
            values={key: np.array(numbers) for key, numbers in self.values.items()},
            curves={key: np.array(rows) for key, rows in self.curves.items()},
            shares=self.shares,
            unconverged_plans=self.unconverged_plans,
            embeddings=self.embeddings,
        )
