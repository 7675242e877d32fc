"""Retrieval metrics of each query, computed from the relevance of its ranked images.

Legend: Q queries, M depth of the ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

RECALL_AT = (1, 2, 4, 8)

#: Default columns in the order of tables.
METRICS = (
    *(f"recall@{k}" for k in RECALL_AT),
    "r_precision",
    "map@r",
    "r_precision_self_counted",
    "map@r_self_counted",
)


#: Metrics of the whole ranking, of person and vehicle re-identification and of landmark retrieval.
WHOLE_RANKING = ("map", "map_trapezoid", "minp")


def recall_metrics(ranks: Iterable[int]) -> tuple[str, ...]:
    """Names of recall at these ranks, which is the cumulative matching characteristic (CMC) of re-identification."""
    return tuple(f"recall@{k}" for k in ranks)


def main_metric(names: Iterable[str]) -> str:
    """The metric that sums up a ranking best: MAP@R, else a mean average precision, else the first."""
    names = list(names)
    averages = [name for name in names if name in ("map@r", "map", "map_trapezoid") or _rank_of(name, "map")]
    return next((name for name in ("map@r", *averages) if name in names), names[0])


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ValueError: an unknown name, or none.
    """
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in (*METRICS, *WHOLE_RANKING) and not (_rank_of(name) or _rank_of(name, "map") or 0) >= 1:
            known = "recall@k and map@k for any k >= 1, " + ", ".join((*METRICS[len(RECALL_AT) :], *WHOLE_RANKING))
            raise ValueError(f"metrics: no metric {name!r}; there are {known}")
    if not chosen:
        raise ValueError("metrics: need at least one, got none")
    return chosen


def _rank_of(name: str, kind: str = "recall") -> int | None:
    """k of recall@k (or map@k), else None."""
    found, _, rank = name.partition("@")
    return int(rank) if found == kind and rank.isdecimal() else None


def depth_needed(
    relevant_count: Tensor, rerank_at: tuple[int, ...], metrics: Sequence[str] = METRICS, gallery_size: int = 0
) -> int:
    """Ranks that `query_metrics` needs: the largest of R + 1, K and k of recall@k and map@k, or all of them."""
    most = int(relevant_count.max()) if len(relevant_count) else 0
    whole = gallery_size if set(metrics) & set(WHOLE_RANKING) else 0
    return max(most + 1, whole, *rerank_at, *(_rank_of(name) or _rank_of(name, "map") or 1 for name in metrics))


def query_metrics(
    relevant: Tensor, relevant_count: Tensor, in_gallery: Tensor, metrics: Sequence[str] = METRICS
) -> dict[str, Tensor]:
    """Metrics of each query, as fractions.

    Args:
        relevant: (Q, M) bool, whether the image at each place of the ranking has the query's class.
        relevant_count: (Q,) int64, R, relevant images in the query's gallery (itself not counted).
        in_gallery: (Q,) bool, whether the query itself was excluded from its gallery.
        metrics: names; those of `WHOLE_RANKING` need M to reach the last relevant image.

    Returns:
        name -> (Q,) float64, in the order of `metrics`; 0 where R = 0:

        - recall@k: 1 if any of the first k is relevant; averaged over queries, the CMC at rank k;
        - r_precision: relevant among the first R, over R;
        - map@r: sum over relevant places i <= R of precision at i, over R;
        - ..._self_counted: with R + 1 in place of R for queries of the gallery, as the released code computes
          them: a perfect ranking then scores R / (R + 1);
        - map@k: sum over relevant places i <= k of precision at i, over the smaller of R and k, as Google Landmarks v2
          has it with k = 100;
        - map: average precision of the whole ranking, the mean over relevant places i of the precision at i, as most
          evaluations of re-identification have it;
        - map_trapezoid: the same with the mean of the precisions at i and at i - 1 (1 before the first place), as
          Oxford5k, Paris6k and the original evaluation of Market-1501 have it;
        - minp: R over the place of the last relevant image (inverse negative penalty).

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2; Philbin et al., "Object
    Retrieval with Large Vocabularies and Fast Spatial Matching", CVPR 2007; Weyand et al., "Google Landmarks Dataset
    v2", CVPR 2020; Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021.
    """
    found = {}
    for name in metrics:
        if (rank := _rank_of(name)) is not None:
            found[name] = relevant[:, :rank].any(dim=1).double()
        elif (rank := _rank_of(name, "map")) is not None:
            found[name] = _up_to(rank, relevant, relevant_count)
    self_counted = relevant_count + in_gallery.to(relevant_count.dtype)
    for suffix, count in (("", relevant_count), ("_self_counted", self_counted)):
        if {f"r_precision{suffix}", f"map@r{suffix}"} & set(metrics):
            found[f"r_precision{suffix}"], found[f"map@r{suffix}"] = _at_r(relevant, count)
    if set(WHOLE_RANKING) & set(metrics):
        found |= _of_whole_ranking(relevant, relevant_count)
    return {name: found[name] for name in metrics}


def _of_whole_ranking(relevant: Tensor, relevant_count: Tensor) -> dict[str, Tensor]:
    """The metrics of `WHOLE_RANKING`."""
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    found = relevant.cumsum(dim=1).double()
    divisor = relevant_count.clamp_min(1).double()
    precision = found / place
    before = (found - 1) / (place - 1)
    before[:, :1] = 1
    last = (relevant * place).amax(dim=1) if relevant.shape[1] else torch.zeros_like(relevant_count)
    return {
        "map": (precision * relevant).sum(dim=1) / divisor,
        "map_trapezoid": (torch.where(relevant, precision + before, 0) / 2).sum(dim=1) / divisor,
        "minp": relevant_count.double() / last.clamp_min(1) * (last > 0),
    }


def _up_to(rank: int, relevant: Tensor, relevant_count: Tensor) -> Tensor:
    """MAP of the first `rank` places."""
    hits = relevant[:, :rank]
    place = torch.arange(1, hits.shape[1] + 1, device=relevant.device)
    precision = hits.cumsum(dim=1).double() / place
    return (precision * hits).sum(dim=1) / relevant_count.clamp(1, rank).double()


def _at_r(relevant: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """R-precision and MAP@R with R = count."""
    relevant = relevant[:, : int(count.max()) if len(count) else 0]
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    hits = relevant & (place <= count.unsqueeze(1))
    divisor = count.clamp_min(1).double()
    precision = hits.cumsum(dim=1).double() / place
    return hits.sum(dim=1).double() / divisor, (precision * hits).sum(dim=1) / divisor
