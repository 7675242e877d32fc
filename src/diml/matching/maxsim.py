"""MaxSim: the mass of each region goes to the most similar region of the other image.

It needs no solver. A plan that fixes the sums of its rows alone, or of its columns alone, is optimal where every region
takes the best of the other side; MaxSim is the mean of these two plans. What a region receives is therefore not its
weight: a region that resembles many of the other image receives from all of them, and one that is nobody's most similar
region receives nothing.

Source: Khattab and Zaharia, "ColBERT", SIGIR 2020, the query's side alone with uniform weights.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from diml.matching.partial import Share

#: How the regions of two images are matched: by optimal transport, or each with its most similar region, from both
#: sides or from the query's side alone.
Matching = Literal["transport", "maxsim", "maxsim_query"]


def check_matching(matching: Matching, share: Share) -> None:
    """Raise ValueError for an unknown way of matching, or one that cannot leave mass unmatched with a share below 1."""
    if matching not in get_args(Matching):
        raise ValueError(f"matching: need one of {get_args(Matching)}, got {matching!r}")
    if matching != "transport" and share != 1:
        raise ValueError(
            f"share: need 1 with matching {matching!r}, where every region has a counterpart, got {share!r}; "
            "use share=1, or matching='transport'"
        )


@torch.no_grad()
def maxsim_plan(cosine: Tensor, weight_q: Tensor, weight_g: Tensor, matching: Matching = "maxsim") -> Tensor:
    """Send the mass of each region to its most similar region, half of it from either side.

    plan[i, j] is weight_q[i] / 2 where j is the most similar to i, plus weight_g[j] / 2 where i is the most similar to
    j. Equally similar regions share the mass equally, so that exchanging the sides transposes the plan, and permuting
    the regions permutes it; equal means equal in every bit.

    Args:
        cosine: (B, Rq, Rg) finite float.
        weight_q, weight_g: (B, Rq) and (B, Rg), non-negative, rows summing to 1.
        matching: "maxsim", or "maxsim_query" for the query's side alone: plan[i, j] = weight_q[i] where j is the most
            similar to i.

    Returns:
        (B, Rq, Rg) in the type of `cosine`, without gradient. Entries sum to 1 for each pair.

    Example:
        >>> plan = maxsim_plan(cosine, weight_q, weight_g)
        >>> structural = (plan * cosine).sum(dim=(1, 2))
    """
    share = 1.0 if matching == "maxsim_query" else 0.5
    plan = _to_most_similar(cosine, share * weight_q.unsqueeze(2), dim=2)
    if matching == "maxsim_query":
        return plan
    return plan + _to_most_similar(cosine, share * weight_g.unsqueeze(1), dim=1)


def _to_most_similar(cosine: Tensor, mass: Tensor, dim: int) -> Tensor:
    """(B, Rq, Rg): mass shared equally among the largest cosines along a dimension."""
    chosen = cosine == cosine.amax(dim=dim, keepdim=True)
    return torch.where(chosen, mass.to(cosine) / chosen.sum(dim=dim, keepdim=True), 0)
