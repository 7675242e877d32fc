"""Settings of the matcher chosen on labelled images that are not those of the test, with the gain to expect.

The gain is cross-validated over classes: the settings that are best for the queries of all classes but those of one
fold are measured on that fold. So it does not contain the luck of the choice, as the metric of the chosen settings on
all queries does.

Legend: N images, Q queries, S settings, K re-ranked candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.evaluation.evaluate import counted_queries
from diml.evaluation.intervals import Interval, bootstrap_means, interval
from diml.evaluation.metrics import check_metrics, depth_needed, query_metrics
from diml.evaluation.split import QueryGallerySplit, Sides
from diml.matching import Matcher, Regions
from diml.matching.maxsim import Matching
from diml.matching.retrieval import NOTHING, Ranking
from diml.progress import ShowProgress, progress_bar

if TYPE_CHECKING:
    from diml.data.judgements import Judgements

#: Settings that are tried by default.
MATCHINGS: Final[tuple[Matching, ...]] = ("transport", "maxsim")
EPSILONS: Final = (0.1, 0.05, 0.02, 0.01, 0.0)
STRUCTURAL_WEIGHTS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, float("inf"))
CANDIDATES: Final = (50, 100, 200)
#: Parts of the classes that are left out in turn.
FOLDS: Final = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Tuning:
    """Result of `tune_matcher`. All metrics are fractions.

    Args:
        matcher: the best settings on all queries.
        rerank_at: the best K.
        baseline: what the gain is against, and its K.
        baseline_rerank_at: its K.
        gain: cross-validated mean difference of the metric to the baseline, with its 95 % bootstrap interval over the
            classes; what to expect on other classes of the same kind.
        gain_of_choice: the same without cross-validation, biased upwards by the choice.
        tried: (setting, K, mean of the metric) of all settings, best first.
        chosen_by_fold: setting and K that each fold was measured with.
        metric: name of the metric.
        queries, classes: how many there were.
    """

    matcher: Matcher
    rerank_at: int
    baseline: Matcher
    baseline_rerank_at: int
    gain: Interval
    gain_of_choice: Interval
    tried: tuple[tuple[Matcher, int, float], ...]
    chosen_by_fold: tuple[tuple[Matcher, int], ...]
    metric: str
    queries: int
    classes: int

    @property
    def is_better(self) -> bool:
        """Whether the interval of the cross-validated gain lies above 0."""
        return self.gain.low > 0

    def to_dict(self, most: int = 20) -> dict[str, Any]:
        """Plain values for JSON, with the `most` best settings that were tried."""
        return {
            "matcher": self.matcher.to_dict(),
            "rerank_at": self.rerank_at,
            "baseline": self.baseline.to_dict() | {"rerank_at": self.baseline_rerank_at},
            "metric": self.metric,
            "gain": self.gain._asdict(),
            "gain_of_choice": self.gain_of_choice._asdict(),
            "is_better": self.is_better,
            "chosen_by_fold": [matcher.to_dict() | {"rerank_at": k} for matcher, k in self.chosen_by_fold],
            "tried": [m.to_dict() | {"rerank_at": k, self.metric: value} for m, k, value in self.tried[:most]],
            "settings_tried": len(self.tried),
            "queries": self.queries,
            "classes": self.classes,
        }

    def __repr__(self) -> str:
        value, low, high = (100 * part for part in self.gain)
        return f"Tuning({self.matcher}, K = {self.rerank_at}; {self.metric} {value:+.2f} ({low:+.2f}..{high:+.2f}))"


def tune_matcher(
    regions: Regions,
    labels: ArrayLike | Tensor,
    *,
    base: Matcher | None = None,
    matchings: Sequence[Matching] = MATCHINGS,
    epsilons: Sequence[float] = EPSILONS,
    structural_weights: Sequence[float] = STRUCTURAL_WEIGHTS,
    rerank_at: Sequence[int] = CANDIDATES,
    baseline_rerank_at: int = 100,
    metric: str = "map@r",
    queries: ArrayLike | Tensor | None = None,
    gallery: ArrayLike | Tensor | None = None,
    cameras: ArrayLike | Tensor | None = None,
    judgements: Judgements | None = None,
    folds: int = FOLDS,
    resamples: int = 1000,
    seed: int = 0,
    progress: ShowProgress = False,
) -> Tuning:
    """Choose matching, epsilon, structural weight and K by a metric of retrieval.

    Args:
        regions: N images, which the test must not contain.
        labels, queries, gallery, cameras, judgements: as of `evaluate_regions`. With judgements, queries that have a
            relevant image in common, directly or by other queries, stand for a class.
        base: the baseline, and the settings that are not tuned; the paper's when omitted.
        matchings, epsilons, structural_weights, rerank_at: values to try, all combinations; epsilon is varied for
            "transport" only, and what is not transport has a share of 1.
        baseline_rerank_at: K of the baseline.
        metric: name, see `query_metrics`.
        folds: parts of the classes, at least 2; at most as many as there are classes.
        resamples, seed: of the bootstrap and of the folds.
        progress: show a progress bar, or call a function with the settings finished since.

    Returns:
        Tuning; on ties the setting that was named first.

    Raises:
        ValueError: nothing to try, fewer than two classes or folds, or as `evaluate_regions`.

    Source: nested selection of Varma and Simon, "Bias in error estimation when using cross-validation for model
    selection", BMC Bioinformatics 2006, with whole classes left out.
    """
    base = base or Matcher()
    metric = check_metrics([metric])[0]
    ks = tuple(dict.fromkeys((*rerank_at, baseline_rerank_at)))
    tried = _plans_to_try(base, matchings, epsilons)
    if not tried or not structural_weights or not rerank_at or min(ks) < 1:
        raise ValueError(
            "matchings, epsilons, structural_weights, rerank_at: need at least one value each, and K of at least 1"
        )
    split = QueryGallerySplit.of_regions(
        regions, labels, Sides(queries=queries, gallery=gallery, cameras=cameras, judgements=judgements)
    )
    split = split.subset(counted_queries(split, "exclude"))
    number = groups_of(split)
    classes = int(number.max()) + 1
    if classes < 2 or folds < 2:
        raise ValueError(f"labels, folds: need at least two classes and two folds, got {classes} and {folds}")
    plans = tuple(dict.fromkeys((*tried, base)))
    weights = tuple(dict.fromkeys((*structural_weights, base.structural_weight)))
    with progress_bar(len(plans), show=progress, what="tuning", unit="plans") as advance:
        settings, values = _measure(regions, split, plans, weights, ks, metric, advance)
    wanted = [
        row
        for row, (matcher, k) in enumerate(settings)
        if replace(matcher, structural_weight=base.structural_weight) in tried
        and matcher.structural_weight in structural_weights
        and k in rerank_at
    ]
    start = settings.index((base, baseline_rerank_at))
    fold_of = np.random.default_rng(seed).permutation(classes) % min(folds, classes)
    return _selected(settings, values, wanted, start, number, fold_of, metric, (resamples, seed))


def groups_of(split: QueryGallerySplit) -> NDArray[np.int64]:
    """(Q,) number of each query's class, 0 to C - 1; of judged queries, of those that share relevant images."""
    if split.judged is None or split.relevant_pairs is None:
        return np.unique(split.query_labels.cpu().numpy(), return_inverse=True)[1].astype(np.int64)
    place = {number: query for query, number in enumerate(split.judged.tolist())}
    pairs = [divmod(pair, len(split.gallery)) for pair in split.relevant_pairs.tolist()]
    queries, rows = np.array([(place[number], row) for number, row in pairs if number in place]).reshape(-1, 2).T
    group = np.arange(len(split))
    while True:  # each query takes the smallest number among those that it shares an image with
        of_row = np.full(len(split.gallery), len(split))
        np.minimum.at(of_row, rows, group[queries])
        smaller = group.copy()
        np.minimum.at(smaller, queries, of_row[rows])
        if (smaller == group).all():
            return np.unique(group, return_inverse=True)[1].astype(np.int64)
        group = smaller


def _plans_to_try(base: Matcher, matchings: Sequence[Matching], epsilons: Sequence[float]) -> list[Matcher]:
    """The base with each way of matching, and with each epsilon where there is transport."""
    plans = []
    for matching in matchings:
        if matching == "transport":
            plans += [replace(base, matching=matching, epsilon=epsilon) for epsilon in epsilons]
        else:
            plans.append(replace(base, matching=matching, share=1.0))
    return plans


@torch.no_grad()
def _measure(
    regions: Regions,
    split: QueryGallerySplit,
    plans: Sequence[Matcher],
    weights: Sequence[float],
    ks: Sequence[int],
    metric: str,
    advance: Callable[[float], None],
) -> tuple[list[tuple[Matcher, int]], Floats]:
    """All settings, and the metric (Q, S) of each query under each."""
    depth = depth_needed(split.relevant_count, tuple(ks), (metric,), len(split.gallery))
    plain = split.nearest(regions.pooled, depth)
    candidates = split.images(plain.order[:, : max(ks)])
    missing = candidates == NOTHING
    pooled = torch.einsum("qd,qkd->qk", regions.pooled[split.queries], regions.pooled[candidates.clamp_min(0)])
    settings, columns = [], []
    for plan in plans:
        structural = replace(plan, structural_weight=float("inf")).score_unique_pairs(
            regions, split.queries, candidates
        )
        for weight in weights:
            matcher = replace(plan, structural_weight=weight)
            scores = matcher.combine(pooled.to(structural.scores.dtype), structural.scores)
            scores = scores.masked_fill(missing, -torch.inf)
            for k in ks:
                settings.append((matcher, k))
                columns.append(_values(plain.reranked(scores[:, :k]), split, metric))
        advance(1)
    return settings, np.stack(columns, axis=1)


def _values(ranking: Ranking, split: QueryGallerySplit, metric: str) -> Floats:
    """(Q,) metric of each query."""
    relevant, inside = split.relevant(ranking.order), split.own_row != NOTHING
    values: Floats = query_metrics(relevant, split.relevant_count, inside, (metric,))[metric].cpu().numpy()
    return values


def _selected(
    settings: list[tuple[Matcher, int]],
    values: Floats,
    wanted: list[int],
    start: int,
    class_of: NDArray[np.int64],
    fold_of: NDArray[np.int64],
    metric: str,
    bootstrap: tuple[int, int],
) -> Tuning:
    """The best setting, and the gain by folds of classes."""
    means = values[:, wanted].mean(axis=0)
    best = wanted[int(means.argmax())]
    fold = fold_of[class_of]
    gains, chosen = np.empty(len(values)), []
    for left_out in range(int(fold_of.max()) + 1):
        outside = fold != left_out
        choice = wanted[int(values[outside][:, wanted].mean(axis=0).argmax())]
        gains[~outside] = (values[:, choice] - values[:, start])[~outside]
        chosen.append(settings[choice])
    order = sorted(wanted, key=lambda row: -float(values[:, row].mean()))
    return Tuning(
        *settings[best],
        *settings[start],
        gain=_by_class(gains, class_of, bootstrap),
        gain_of_choice=_by_class(values[:, best] - values[:, start], class_of, bootstrap),
        tried=tuple((*settings[row], float(values[:, row].mean())) for row in order),
        chosen_by_fold=tuple(chosen),
        metric=metric,
        queries=len(values),
        classes=len(fold_of),
    )


def _by_class(gains: Floats, class_of: NDArray[np.int64], bootstrap: tuple[int, int]) -> Interval:
    """Mean over the queries, and its interval by resampling whole classes, whose queries depend on each other."""
    classes = int(class_of.max()) + 1
    sums = np.bincount(class_of, weights=gains, minlength=classes)
    counts = np.bincount(class_of, minlength=classes).astype(np.float64)
    drawn = bootstrap_means(np.stack([sums, counts], axis=1), *bootstrap)
    return Interval(float(gains.mean()), *interval(drawn[:, 0] / drawn[:, 1]))


def setting_text(matcher: Matcher, base: Matcher, rerank_at: int) -> str:
    """The settings of a matcher that differ from `base`, and K, as in a table."""
    changed = {name: value for name, value in matcher.to_dict().items() if value != base.to_dict()[name]}
    return ", ".join(itertools.chain((f"{name} {value}" for name, value in changed.items()), [f"K {rerank_at}"]))
