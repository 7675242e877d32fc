"""Structural scores of the candidates of many queries, each pair of images solved once.

Legend: N images, Q queries, K re-ranked candidates, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diml.matching import MatchSettings, QuantizedRegions, Regions, Score, score_pairs
from diml.matching.retrieval import NOTHING
from diml.matching.scoring import PAIRS_AT_ONCE

#: Images whose fingerprints are made together.
AT_ONCE = 1024


def structural_scores(
    regions: Regions | QuantizedRegions,
    queries: Tensor,
    candidates: Tensor,
    score: Score,
    settings: MatchSettings,
    advance: Callable[[float], None],
) -> tuple[Tensor, int]:
    """Scores of the candidates, and how many of them stopped early.

    Two images that are candidates of each other are compared once, and which of them is the query depends on nothing
    but their contents (`in_order`): so a pair scores the same whichever queries are evaluated with it, and copies of
    an image tie. Where weights are given for either side, the sides are not exchanged.

    Args:
        regions: N images.
        queries: (Q,) int64 rows of them.
        candidates: (Q, K) int64 rows of them, or `NOTHING`.
        score, settings: as in `evaluate_regions`.
        advance: told the share of the work that has been done since.

    Returns:
        (Q, K) scores, -infinity in the place of no image; how many candidates' pairs stopped at the cap of
        iterations.
    """
    there = candidates != NOTHING
    if not there.any():
        advance(1)
        return torch.full(candidates.shape, -torch.inf, device=candidates.device), 0
    chosen = slice(None) if there.all() else there.flatten()  # mostly all, which need no copies
    left, right = queries.repeat_interleave(candidates.shape[1])[chosen], candidates.flatten()[chosen]
    if not isinstance(settings.get("marginals"), tuple):
        left, right = in_order(regions, left, right)
    pairs, place = torch.unique(left * len(regions) + right, return_inverse=True)
    found = []
    for some in torch.split(pairs, PAIRS_AT_ONCE):
        rows = (some // len(regions), some % len(regions))
        found.append(score_pairs(regions, *rows, score=score, **settings))
        advance(len(some) / len(pairs))
    scores, converged = (torch.cat(parts) for parts in zip(*found, strict=True))
    refined = torch.full((candidates.numel(),), -torch.inf, dtype=scores.dtype, device=candidates.device)
    refined[chosen] = scores[place]
    return refined.view(candidates.shape), int((~converged[place]).sum())


def in_order(regions: Regions | QuantizedRegions, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `left` and `right` (P,), exchanged where the contents of the images say so; copies count as the same."""
    used = torch.zeros(len(regions), dtype=torch.bool, device=left.device)
    used[left] = used[right] = True
    rows = used.nonzero().squeeze(1)
    prints = torch.zeros(len(regions), dtype=torch.int64, device=left.device)
    prints[rows] = _fingerprints(regions.pooled, rows)
    first, second = prints[left], prints[right]
    exchange = first > second
    alike = (first == second).nonzero().squeeze(1)
    if len(alike):  # hardly ever: their regions are read as well
        rows = torch.unique(torch.cat([left[alike], right[alike]]))
        prints[rows] = _fingerprints(regions.codes if isinstance(regions, QuantizedRegions) else regions.dense, rows)
        first, second = prints[left[alike]], prints[right[alike]]
        exchange[alike] = (first > second) | ((first == second) & (left[alike] > right[alike]))
    return torch.where(exchange, right, left), torch.where(exchange, left, right)


def _fingerprints(vectors: Tensor, rows: Tensor) -> Tensor:
    """(n,) int64 of `vectors` (N, ...) at `rows`, equal for copies and for hardly any others: weighed sums of all."""
    part, found = vectors.flatten(1), torch.zeros_like(rows)
    size = part.element_size()
    words = -(-part.shape[1] * size // 8)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (words,), generator=generator).to(part.device) * 2 + 1
    filled = part.new_zeros(min(AT_ONCE, len(rows)), words * 8 // size)
    for start in range(0, len(rows), AT_ONCE):
        some = part[rows[start : start + AT_ONCE]]
        filled[: len(some), : part.shape[1]] = some + 0  # 0 and -0 are the same number
        found[start : start + len(some)] = (filled[: len(some)].view(torch.int64) * weights).sum(dim=1)
    return found
