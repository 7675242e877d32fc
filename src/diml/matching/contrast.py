"""Why one image scores above another for the same query: the difference of their scores, query region by region."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Contrast:
    """score of A - score of B, as the sum that it is: `pooled` + the entries of `regions`.

    Args:
        regions: (Rq,) float64: what each region of the query contributes with A, less what it contributes with B.
        pooled: pooled cosine with A less that with B.
        grid_q: (rows, columns) of the query's regions, or None.

    Source: each score is its ledger (Zhao et al., ICCV 2021, section 3.3); both have the query's regions as rows.
    """

    regions: Tensor
    pooled: float
    grid_q: tuple[int, int] | None = None

    @property
    def structural(self) -> float:
        """Difference of the structural scores: sum over the regions."""
        return float(self.regions.sum())

    @property
    def score(self) -> float:
        """Difference of the scores; positive where A is above B."""
        return self.pooled + self.structural

    def top(self, n: int) -> list[int]:
        """The n regions (or all there are) with the largest differences of either sign, ties in row-major order."""
        if n < 0:
            raise ValueError(f"n: need 0 or more, got {n}")
        return [int(region) for region in torch.argsort(self.regions.abs(), descending=True, stable=True)[:n]]

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and lists: score, pooled, structural, grid_q, regions."""
        return {**vars(self), "score": self.score, "structural": self.structural, "regions": self.regions.tolist()}
