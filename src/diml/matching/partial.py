"""Partial transport: a dustbin on either side takes the mass that is not transported.

A dustbin is one more region. Mass that a region sends to the dustbin of the other side stays unmatched. With a share s
both dustbins have mass 1 - s and may not send to each other, so that s of the mass moves between regions. With "auto"
both have mass 1, and mass moves between regions whose cosine exceeds a threshold (with entropy, smoothly so).

Sources: Chapel, Alaya and Gasso, NeurIPS 2020 (partial transport by one more row and column); Sarlin et al.,
"SuperGlue", CVPR 2020 (a dustbin for each side of a matching).

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from diml.matching.exact import TIE_BREAK

#: Exact plans with closed dustbins: their cost, between the lowest of the regions (0) and the mean (1); a good start.
CLOSED_LEVEL = 0.7

#: Share of the mass that is transported, in (0, 1], or a threshold of the cosine, chosen for each pair of images.
Share = float | Literal["auto"]


def check_share(share: Share) -> None:
    """Raise ValueError for a share that is out of range."""
    if share == "auto":
        return
    if not isinstance(share, numbers.Real) or not 0 < share <= 1:
        raise ValueError(
            f"share: need a number above 0 and up to 1, or 'auto', got {share!r}; 1 transports all mass, "
            "0.8 leaves a fifth of each image unmatched"
        )


def auto_threshold(cosine: Tensor, weight_q: Tensor, weight_g: Tensor) -> Tensor:
    """Cosine above which two regions are matched with share "auto".

    It is the mean cosine of all pairs of regions by the product of their weights: the structural score of the plan that
    knows nothing. Two regions are matched only if they are more alike than regions of these two images are on average.
    It has no constant, follows the level of a model's cosines, and is the same when the sides are exchanged.

    Args:
        cosine: (B, Rq, Rg) float.
        weight_q, weight_g: (B, Rq) and (B, Rg), rows summing to 1.

    Returns (B,) in the type of `cosine`.
    """
    return torch.einsum("bqg,bq,bg->b", cosine, weight_q, weight_g)


@dataclass(frozen=True, eq=False)
class Dustbins:
    """The dustbins of B pairs.

    With closed dustbins the level is arbitrary, as the mass that goes there is given; the solver starts well with one
    among the costs. With open ones it is 1 - the threshold. To leave mass unmatched then costs half of the level on
    either side, and nothing between the dustbins; here it costs the level at all three places, which differs by numbers
    added to whole rows and columns and so by the same amount for every plan, and keeps the range of the costs.

    Args:
        mass: of either dustbin, where the weights of the regions of a side sum to 1.
        level: (B,) cost between a region and a dustbin, and between open dustbins.
        closed: whether the dustbins may not send to each other.
    """

    mass: float
    level: Tensor
    closed: bool

    @classmethod
    def of(cls, cost: Tensor, weight_q: Tensor, weight_g: Tensor, share: Share) -> Dustbins:
        """Of pairs with costs (B, Rq, Rg), 1 - cosine, and weights (B, Rq), (B, Rg)."""
        if share == "auto":
            return cls(1.0, 1 - auto_threshold(1 - cost, weight_q, weight_g), closed=False)
        return cls(1.0 - share, torch.einsum("bqg,bq,bg->b", cost, weight_q, weight_g), closed=True)

    @property
    def total(self) -> float:
        """Mass of either side together with its dustbin."""
        return 1 + self.mass

    def extended(self, cost: Tensor, corner: Tensor | float) -> Tensor:
        """(B, Rq + 1, Rg + 1): costs with the dustbins last; `corner` lies between them, if they are closed."""
        wide = torch.nn.functional.pad(cost, (0, 1, 0, 1))
        wide[:, -1, :] = wide[:, :, -1] = self.level.unsqueeze(1)
        if self.closed:
            wide[:, -1, -1] = corner
        return wide

    def with_mass(self, weights: Tensor) -> Tensor:
        """(B, R + 1): weights (B, R) with that of the dustbin, together 1."""
        return torch.nn.functional.pad(weights, (0, 1), value=self.mass) / self.total

    def exact_costs(self, cost: Tensor) -> Tensor:
        """(B, Rq + 1, Rg + 1): `extended` for the exact solver.

        Regions whose cosine is the threshold are matched, as open dustbins cost a little more. Closed ones stay closed:
        mass between them would pay the corner and let as much more flow between regions, which costs `low` at least,
        together more than twice the level, the cost of leaving both unmatched.
        """
        low, high = cost.amin(dim=(1, 2)), cost.amax(dim=(1, 2))
        span = torch.where(high > low, high - low, 1)
        if self.closed:
            level = low + CLOSED_LEVEL * (self.level - low)
            return replace(self, level=level).extended(cost, 2 * level - low + span / 2)
        wide = self.extended(cost, 0.0)
        wide[:, -1, :-1] += TIE_BREAK * span.unsqueeze(1)
        wide[:, :-1, -1] += TIE_BREAK * span.unsqueeze(1)
        return wide


def unmatched(plan: Tensor, weight_q: Tensor, weight_g: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Rq) and (B, Rg): weights minus what a plan (B, Rq, Rg) transports, at least 0."""
    return (weight_q - plan.sum(dim=2)).clamp_min(0), (weight_g - plan.sum(dim=1)).clamp_min(0)
