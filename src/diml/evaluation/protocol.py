"""The whole evaluation: rank by pooled cosine, re-rank the best K region by region, measure.

Legend: N images, Q queries, G gallery images, R relevant images of a query, K re-ranked candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Unpack, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from diml.evaluation.index_sets import IndexSets, index_sets
from diml.evaluation.metrics import METRICS, depth_needed, query_metrics
from diml.evaluation.report import Report, summarize
from diml.evaluation.rescoring import structural_scores
from diml.matching import ConvergenceWarning, MatchSettings, QuantizedRegions, Regions, Score, match, native
from diml.matching import rerank as rerank_candidates
from diml.matching.retrieval import NOTHING, Ranking, rank

Images = Regions | QuantizedRegions
WithoutRelevant = Literal["exclude", "miss", "fail"]

#: Best hits of each query that a report keeps.
HITS_KEPT = 10

#: Queries that are ranked and measured together at most, with the compiled kernel and without: more is not faster.
QUERIES_AT_ONCE = {True: 8192, False: 256}

#: Rankings to keep at a time, in bytes. Within so many queries no pair of images is compared twice.
SPAN_BYTES = 128 * 2**20


def evaluate_regions(
    regions: Images,
    labels: ArrayLike | Tensor,
    *,
    rerank: Sequence[int] = (0, 100),
    queries: ArrayLike | Tensor | None = None,
    gallery: ArrayLike | Tensor | None = None,
    score: Score = "both",
    without_relevant: WithoutRelevant = "exclude",
    resamples: int = 1000,
    seed: int = 0,
    block_bytes: int = 128 * 2**20,
    progress: bool = False,
    **settings: Unpack[MatchSettings],
) -> Report:
    """Evaluate retrieval by class: plain cosine ranking, and its best K re-ranked structurally.

    Every K re-ranks its own prefix of the plain ranking; what lies behind it keeps its order. Equal scores stand in
    gallery order. A image that is query and gallery image never retrieves itself.

    Args:
        regions: N images; `regions.quantized()` takes a quarter of the memory.
        labels: (N,) integer class of each.
        rerank: the K to evaluate; 0 is the plain ranking; a K beyond the gallery re-ranks all of it.
        queries: (Q,) image rows that query, or all. Without `queries` and `gallery` this is leave-one-out.
        gallery: (G,) image rows that are searched, or all.
        score: what to re-rank by: "both" (pooled + structural, the paper's), "structural" or "pooled".
        without_relevant: a query without a relevant image is left out of the means and counted apart ("exclude"),
            counted with zeros ("miss"), or refused ("fail").
        resamples: bootstrap resamples for the 95 % intervals.
        seed: of the bootstrap.
        block_bytes: working memory to aim at for the block of scores, in bytes, where torch does the work.
        progress: show a progress bar on standard error.
        settings: marginals, epsilon, tolerance, max_iterations as in `diml.matching.match`.

    Returns:
        Report, in fractions.

    Raises:
        ValueError: labels do not fit, an index set is empty, doubled or out of range, no query can be counted.
        ConvergenceWarning: (a warning) pairs that stopped at the cap of iterations.

    Source: two-stage retrieval of Zhao et al., ICCV 2021, section 3.4; metrics of Musgrave et al., ECCV 2020.

    Example:
        >>> report = evaluate_regions(embedder.embed(paths), labels, rerank=(0, 100))
        >>> report.row(100)["map@r"] - report.row(0)["map@r"]
    """
    sets = index_sets(regions, labels, queries, gallery)
    wanted = _checked_rerank(rerank)
    _check_settings(score, resamples, settings)
    if without_relevant not in get_args(WithoutRelevant):
        raise ValueError(f"without_relevant: need one of {get_args(WithoutRelevant)}, got {without_relevant!r}")
    lacking = sets.relevant_count == 0
    if without_relevant == "fail" and lacking.any():
        first = int(sets.queries[lacking][0])
        raise ValueError(
            f"labels: {int(lacking.sum())} queries have no relevant gallery image (image {first} the first); "
            "use without_relevant='exclude' or 'miss'"
        )
    counted = torch.ones_like(lacking) if without_relevant == "miss" else ~lacking
    if not counted.any():
        raise ValueError("labels: no query has a relevant image in the gallery; check labels, queries and gallery")
    found = _Found(wanted)
    chosen = counted.nonzero().flatten()
    depth = max(HITS_KEPT, depth_needed(sets.relevant_count, wanted))
    at_once = _queries_at_once(regions, sets, block_bytes)
    with _progress(len(chosen), progress) as advance:
        for span in torch.split(chosen, max(at_once, SPAN_BYTES // (8 * depth))):
            _evaluate_span(regions, sets, span, at_once, depth, found, score, settings, advance)
    if found.unfinished:
        warnings.warn(ConvergenceWarning(found.unfinished), stacklevel=2)
    per_query = {k: {metric: np.concatenate(found.metrics[k][metric]) for metric in METRICS} for k in wanted}
    rows, intervals, comparisons = summarize(per_query, resamples, seed)
    return Report(
        rows=rows,
        intervals=intervals,
        comparisons=comparisons,
        per_query=per_query,
        queries=sets.queries[chosen].cpu().numpy(),
        without_relevant=sets.queries[lacking].cpu().numpy(),
        hits={k: np.concatenate(found.hits[k]) for k in wanted},
        gallery_size=len(sets.gallery),
        unfinished_pairs=found.unfinished,
        settings={"score": score, "without_relevant": without_relevant, "resamples": resamples, "seed": seed}
        | {name: value if isinstance(value, str | float | int) else "given" for name, value in settings.items()},
    )


@dataclass(eq=False)
class _Found:
    """Numbers of the blocks so far."""

    rerank: tuple[int, ...]
    metrics: dict[int, dict[str, list[NDArray[np.float64]]]] = field(init=False)
    hits: dict[int, list[NDArray[np.int64]]] = field(init=False)
    unfinished: int = 0

    def __post_init__(self) -> None:
        self.metrics = {k: {metric: [] for metric in METRICS} for k in self.rerank}
        self.hits = {k: [] for k in self.rerank}

    def add(self, k: int, metrics: dict[str, Tensor], hits: Tensor) -> None:
        """Numbers of some queries, re-ranked at `k`."""
        for metric, values in metrics.items():
            self.metrics[k][metric].append(values.cpu().numpy())
        self.hits[k].append(hits.cpu().numpy())


@torch.no_grad()
def _evaluate_span(
    regions: Images,
    sets: IndexSets,
    span: Tensor,
    at_once: int,
    depth: int,
    found: _Found,
    score: Score,
    settings: MatchSettings,
    advance: Callable[[float], None],
) -> None:
    """Rank, re-rank and measure the queries `span` (rows of sets.queries), whose pairs are scored together."""
    blocks = torch.split(span, at_once)
    plain = [_plain_ranking(regions, sets, block, depth) for block in blocks]
    candidates = torch.cat([ranking.order[:, : max(found.rerank)] for ranking in plain])
    images = _images(sets, candidates)
    refined, unfinished = structural_scores(
        regions, sets.queries[span], images, score, settings, lambda share: advance(share * len(span))
    )
    found.unfinished += unfinished
    for block, order, scores in zip(blocks, plain, torch.split(refined, at_once), strict=True):
        for k in found.rerank:
            ranking = order.reranked(scores[:, :k]) if k else order
            relevant = _relevant(ranking, sets.gallery_labels, sets.query_labels[block])
            metrics = query_metrics(relevant, sets.relevant_count[block], sets.own_row[block] != NOTHING)
            found.add(k, metrics, _images(sets, ranking.order[:, :HITS_KEPT]))


def _images(sets: IndexSets, rows: Tensor) -> Tensor:
    """Image rows of gallery rows; `NOTHING` stays."""
    if sets.gallery_is_everything:
        return rows
    return torch.where(rows == NOTHING, NOTHING, sets.gallery[rows.clamp_min(0)])


def _queries_at_once(regions: Images, sets: IndexSets, block_bytes: int) -> int:
    """Queries that are ranked together; without the kernel their scores with the gallery take `block_bytes`."""
    if native.suits(regions.pooled):
        return QUERIES_AT_ONCE[True]
    return max(1, min(QUERIES_AT_ONCE[False], block_bytes // (4 * len(sets.gallery))))


def _plain_ranking(regions: Images, sets: IndexSets, block: Tensor, depth: int) -> Ranking:
    """The first `depth` places by pooled cosine: by the compiled kernel on the CPU, else by all scores of the block."""
    own_row, size = sets.own_row[block], len(sets.gallery)
    if not native.suits(regions.pooled):
        return rank(_pooled_scores(regions, sets, block), depth, own_row)
    gallery = regions.pooled if sets.gallery_is_everything else regions.pooled[sets.gallery]
    return Ranking._trusted(native.nearest(regions.pooled[sets.queries[block]], gallery, own_row, depth), size)


def _pooled_scores(regions: Images, sets: IndexSets, block: Tensor) -> Tensor:
    """(Q, G) cosines of the pooled vectors, summed in float64 and rounded to float32.

    In float32 the same two vectors can differ in the last bit with their place in the matrix product; rounded after
    float64, copies of a image tie, and blocks of any size and number of processes give the same ranking.
    """
    query, gallery = regions.pooled[sets.queries[block]].double(), regions.pooled[sets.gallery].double()
    return (query @ gallery.T).to(torch.promote_types(regions.pooled.dtype, torch.float32))


def _relevant(ranking: Ranking, gallery_labels: Tensor, query_labels: Tensor) -> Tensor:
    """(Q, M) bool: the image at each place has the query's class."""
    same = gallery_labels[ranking.order.clamp_min(0)] == query_labels.unsqueeze(1)
    return same & (ranking.order != NOTHING)


def _checked_rerank(rerank: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(rerank, Iterable) or any(not isinstance(k, int | np.integer) for k in rerank):
        raise ValueError(f"rerank: need a sequence of integers K >= 0, got {rerank!r}; (0, 100) is the paper's")
    wanted = tuple(dict.fromkeys(int(k) for k in rerank))
    if not wanted or min(wanted) < 0:
        raise ValueError(f"rerank: need at least one K >= 0, got {tuple(rerank)}; 0 is the plain ranking")
    return wanted


def _check_settings(score: str, resamples: int, settings: MatchSettings) -> None:
    """Refuse a wrong setting before any work, also when no K needs it: try them on a pair of one region."""
    if resamples < 1:
        raise ValueError(f"resamples: need at least 1, got {resamples}")
    one = torch.ones(1, 1, 1)
    single = Regions(one, one[0])
    tried = settings.copy()
    if isinstance(settings.get("marginals"), tuple):
        tried["marginals"] = (one[0], one[0])
    match(single, single, **tried)
    rerank_candidates(single, single, torch.zeros(1, 0, dtype=torch.int64), score=cast(Score, score))


@contextmanager
def _progress(queries: int, show: bool) -> Iterator[Callable[[float], None]]:
    """A bar that counts queries; yields how to advance it."""
    columns = (TextColumn("matching"), BarColumn(), MofNCompleteColumn(), TextColumn("queries"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("matching", total=queries)
        yield lambda count: bar.advance(task, count)
