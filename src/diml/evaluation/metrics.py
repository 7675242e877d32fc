"""Retrieval metrics of each query, computed from the relevance of its ranked images.

Legend: Q queries, M depth of the ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 2, 4, 8)

#: Columns in the order of tables.
METRICS = (
    *(f"recall@{k}" for k in RECALL_AT),
    "r_precision",
    "map@r",
    "r_precision_self_counted",
    "map@r_self_counted",
)


def depth_needed(relevant_count: Tensor, rerank_at: tuple[int, ...]) -> int:
    """Ranks that `query_metrics` needs: the largest of R + 1, K, and 8."""
    most = int(relevant_count.max()) if len(relevant_count) else 0
    return max(most + 1, *rerank_at, *RECALL_AT)


def query_metrics(relevant: Tensor, relevant_count: Tensor, in_gallery: Tensor) -> dict[str, Tensor]:
    """Metrics of each query, as fractions.

    Args:
        relevant: (Q, M) bool, whether the image at each place of the ranking has the query's class.
        relevant_count: (Q,) int64, R, relevant images in the query's gallery (itself not counted).
        in_gallery: (Q,) bool, whether the query itself was excluded from its gallery.

    Returns:
        name -> (Q,) float64, in the order of `METRICS`; 0 where R = 0:

        - recall@k: 1 if any of the first k is relevant;
        - r_precision: relevant among the first R, over R;
        - map@r: sum over relevant places i <= R of precision at i, over R;
        - ..._self_counted: with R + 1 in place of R for queries of the gallery, as the released code computes
          them: a perfect ranking then scores R / (R + 1).

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2.
    """
    found = {f"recall@{k}": relevant[:, :k].any(dim=1).double() for k in RECALL_AT}
    self_counted = relevant_count + in_gallery.to(relevant_count.dtype)
    for suffix, count in (("", relevant_count), ("_self_counted", self_counted)):
        found[f"r_precision{suffix}"], found[f"map@r{suffix}"] = _at_r(relevant, count)
    return found


def _at_r(relevant: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """R-precision and MAP@R with R = count."""
    relevant = relevant[:, : int(count.max()) if len(count) else 0]
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    hits = relevant & (place <= count.unsqueeze(1))
    divisor = count.clamp_min(1).double()
    precision = hits.cumsum(dim=1).double() / place
    return hits.sum(dim=1).double() / divisor, (precision * hits).sum(dim=1) / divisor
