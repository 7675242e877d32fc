"""The scores of retrieval divided into evidence from objects and from backgrounds.

A score is a sum over pairs of regions. With f the fraction of a region that is object, the term of regions i and j is
divided into four parts by f_i f_j, f_i (1 - f_j), (1 - f_i) f_j and (1 - f_i) (1 - f_j), which sum to the term.

Legend: N images, Q queries, H best hits of each, K candidates, R regions; the last axis of length 4: `KINDS`.
"""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.audit.foregrounds import Foregrounds
from diml.data import ImageSet, Preprocess
from diml.data.images import BadImage
from diml.evaluation import QueryGallerySplit
from diml.evaluation.split import sides_of
from diml.matching import ConvergenceWarning, Match, Matcher, Regions
from diml.matching.retrieval import NOTHING, Ranking
from diml.models import Embedder
from diml.progress import ShowProgress, progress_bar

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

#: The kinds of evidence: query region to region of the hit.
KINDS: Final = ("object_object", "object_background", "background_object", "background_background")
#: Bytes of regions of candidates to compare at a time.
_BLOCK_BYTES: Final = 64 * 2**20


class ClassEvidence(NamedTuple):
    """The queries of one class, or of all.

    Args:
        name: of the class.
        queries: how many.
        right: whose best hit is right.
        background_only: right, and wrong without the background.
        confirmed: those of them that are wrong by the objects alone too, whose size does not count there.
        object_only: wrong, and right without the background.
        shares: (4,) of the scores of the best hits, in the order of `KINDS`; they sum to 1.
        by_area: (4,) as it would be if evidence were distributed evenly over the regions; they sum to 1.
    """

    name: str
    queries: int
    right: int
    background_only: int
    confirmed: int
    object_only: int
    shares: Floats
    by_area: Floats

    def to_dict(self) -> dict[str, Any]:
        """Plain values; fractions."""
        vectors = {"shares": self.shares, "by_area": self.by_area}
        kinds = {name: dict(zip(KINDS, map(_finite, vector), strict=True)) for name, vector in vectors.items()}
        return {name: value for name, value in self._asdict().items() if name not in kinds} | kinds


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What the best hits of the queries owe to objects and to backgrounds; made by `audit_dataset`.

    Args:
        images: the N images that have a foreground and could be read; rows below are rows of these.
        coverage: (N, R) fraction of each region that is object.
        queries: (Q,) rows of the queries that have a relevant image in the gallery.
        hits: (Q, H) rows of the best hits, -1 where the gallery is used up.
        correct: (Q, H) whether they are of the query's class.
        scores: (Q, H) their scores.
        pooled: (Q, H) their pooled cosines.
        structural: (Q, H, 4) parts of the structural score, in the order of `KINDS`; they sum to it.
        whole: (Q, H, 4) parts of the whole score; they sum to it. None where the pooled cosine cannot be divided.
        by_area: (Q, H, 4) the products of the mean fractions of the two images; they sum to 1.
        object_hits: (Q,) row of the best of the same candidates without the contributions of the background.
        object_correct: (Q,) whether it is of the query's class.
        alone_correct: (Q,) whether the best candidate by the objects alone is. Contributions grow with the size of the
            objects, so a large object of another class can be above a small one of the right class. Here size does not
            count: the pooled vectors are those of the objects, and the structural score is the mean cosine of the mass
            that moves between objects.
        gaps: (Q,) without the background, the best score of a wrong candidate minus that of a right one; -infinity
            where all candidates are right, infinity where all are wrong.
        matcher: settings of the comparison.
        preprocess: of the embedder.
        foregrounds: all images with their foregrounds.
        kept: (N,) their rows in `foregrounds.images`.
        left_out: images without a foreground or that cannot be read.
        clipped: boxes that extended beyond their image.
        empty: images whose view shows nothing of the object.
        without_relevant: queries left out because no gallery image is of their class.
        candidates: K, or as many as the gallery has for a query.
        unconverged: pairs whose plan stopped at max_iterations.
        undivided: why `whole` is None; then the pooled cosine counts in full with and without the background.
    """

    images: ImageSet
    coverage: Floats
    queries: Rows
    hits: Rows
    correct: NDArray[np.bool_]
    scores: Floats
    pooled: Floats
    structural: Floats
    whole: Floats | None
    by_area: Floats
    object_hits: Rows
    object_correct: NDArray[np.bool_]
    alone_correct: NDArray[np.bool_]
    gaps: Floats
    matcher: Matcher
    preprocess: Preprocess
    foregrounds: Foregrounds | None = None
    kept: Rows | None = None
    left_out: tuple[BadImage, ...] = ()
    clipped: int = 0
    empty: int = 0
    without_relevant: int = 0
    candidates: int = 100
    unconverged: int = 0
    undivided: str = ""

    @property
    def evidence(self) -> Floats:
        """(Q, H, 4) parts of the whole score where it can be divided, else of the structural score."""
        return self.structural if self.whole is None else self.whole

    @property
    def background_only(self) -> NDArray[np.bool_]:
        """(Q,) queries that are right only because of the background: the best hit is right, and wrong without it."""
        return np.asarray(self.correct[:, 0] & ~self.object_correct)

    @property
    def confirmed(self) -> NDArray[np.bool_]:
        """(Q,) those of `background_only` that are wrong by the objects alone too, so not because of their size."""
        return np.asarray(self.background_only & ~self.alone_correct)

    @property
    def object_only(self) -> NDArray[np.bool_]:
        """(Q,) queries that are wrong because of the background: the best hit is wrong, and right without it."""
        return np.asarray(~self.correct[:, 0] & self.object_correct)

    @property
    def total(self) -> ClassEvidence:
        """All queries together."""
        return self._class_evidence("all", np.ones(len(self.queries), dtype=bool))

    @property
    def classes(self) -> list[ClassEvidence]:
        """The classes of the queries, the smallest share from object to object first."""
        labels = self.images.labels[self.queries]
        found = [self._class_evidence(self.images.class_names[label], labels == label) for label in np.unique(labels)]
        return sorted(found, key=lambda one: float(one.shares[0]))

    def worst_first(self) -> Rows:
        """(Q,) rows of `queries`: right only because of the background, confirmed ones first, then right, then wrong.

        Within each of these the largest gaps come first.
        """
        return np.asarray(np.lexsort((-self.gaps, ~self.correct[:, 0], ~self.background_only, ~self.confirmed)))

    def shares(self) -> Floats:
        """(Q, H, 4) `evidence` as fractions that sum to 1; not a number where the score is 0."""
        total = self.evidence.sum(axis=2, keepdims=True)
        found: Floats = np.divide(self.evidence, total, out=np.full_like(self.evidence, np.nan), where=total != 0)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each query and hit, worst queries first: plain values, None for what is unknown."""
        shares = self.shares()
        names, labels = self.images.class_names, self.images.labels
        rows = []
        for query in self.worst_first():
            image, without = int(self.queries[query]), int(self.object_hits[query])
            for rank, hit in enumerate(self.hits[query]):
                if hit == NOTHING:
                    continue
                parts = {"structural": self.structural[query, rank]}
                parts |= {"share": shares[query, rank], "by_area": self.by_area[query, rank]}
                parts |= {} if self.whole is None else {"whole": self.whole[query, rank]}
                rows.append(
                    {
                        "query": self.images.image_name(image),
                        "class": names[labels[image]],
                        "rank": rank + 1,
                        "hit": self.images.image_name(int(hit)),
                        "hit_class": names[labels[hit]],
                        "correct": bool(self.correct[query, rank]),
                        "score": float(self.scores[query, rank]),
                        "pooled": float(self.pooled[query, rank]),
                        "background_only": bool(self.background_only[query]),
                        "confirmed": bool(self.confirmed[query]),
                        "hit_without_background": self.images.image_name(without),
                        "class_without_background": names[labels[without]],
                        "gap": _finite(self.gaps[query]),
                    }
                    | {
                        f"{what}_{kind}": _finite(part)
                        for what, of in parts.items()
                        for kind, part in zip(KINDS, of, strict=True)
                    }
                )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: settings, totals, classes, rows, and the images that were left out; fractions."""
        return {
            "unit": "fraction",
            "evidence": "structural" if self.whole is None else "whole",
            "undivided": self.undivided,
            "matcher": self.matcher.to_dict(),
            "candidates": self.candidates,
            "images": len(self.images),
            "left_out": [vars(image) for image in self.left_out],
            "boxes_clipped": self.clipped,
            "empty": self.empty,
            "without_relevant": self.without_relevant,
            "unconverged_pairs": self.unconverged,
            "total": self.total.to_dict(),
            "classes": [one.to_dict() for one in self.classes],
            "rows": self.rows(),
        }

    def to_csv(self) -> str:
        """`rows` as CSV text, with a header."""
        rows, stream = self.rows(), io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def _class_evidence(self, name: str, chosen: NDArray[np.bool_]) -> ClassEvidence:
        evidence = self.evidence[chosen, 0].sum(axis=0)
        flags = (self.correct[:, 0], self.background_only, self.confirmed, self.object_only)
        right, background, confirmed, objects = (int(which[chosen].sum()) for which in flags)
        by_area = self.by_area[chosen, 0].mean(axis=0)
        total = float(evidence.sum())
        shares = evidence / total if total else np.full(len(KINDS), np.nan)
        return ClassEvidence(name, int(chosen.sum()), right, background, confirmed, objects, shares, by_area)

    def __repr__(self) -> str:
        found = self.total
        return (
            f"Audit({found.queries:,} queries, {found.right:,} right, {found.background_only:,} of them only because "
            f"of the background; object to object {found.shares[0]:.1%})"
        )


def audit_dataset(
    embedder: Embedder,
    foregrounds: Foregrounds,
    *,
    matcher: Matcher | None = None,
    rerank_at: int = 100,
    hits: int = 1,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = False,
) -> Audit:
    """Divide the scores of the best hits among objects and backgrounds, and find queries right for the wrong reason.

    Images without a foreground, and images that cannot be read, are left out of queries and gallery and reported.

    Args:
        embedder: turns images into regions.
        foregrounds: labelled images, and where the object is in each.
        matcher: settings of the comparison; the embedder's own when omitted.
        rerank_at: K, the nearest gallery images by pooled cosine that are compared region by region, at least 1.
        hits: best hits of each query to divide, 1 to K.
        batch_size, workers: of the loader.
        progress: show progress bars.

    Raises:
        ValueError: a mask has another size than its image; no image has a foreground; no query has a relevant image.

    Example:
        >>> found = audit_dataset(embedder, Foregrounds.from_masks(images, "masks"))  # doctest: +SKIP
        >>> found.total.shares, found.background_only.sum()  # doctest: +SKIP
    """
    matcher = embedder.matcher if matcher is None else matcher
    embedder.check_matcher(matcher)
    grid = _grid_of(embedder)
    covered = foregrounds.cover(embedder.preprocess, grid, progress=progress)
    images = foregrounds.images.subset(covered.kept)
    embedded = embedder.embed_checked(
        images, batch_size=batch_size, workers=workers, progress=progress, on_bad_image="skip", shares=True
    )
    rows = embedded.kept.numpy()
    if embedded.bad:
        images = images.subset(rows)
    return audit_regions(
        embedded.regions,
        covered.values[rows],
        images,
        matcher=matcher,
        preprocess=embedder.preprocess,
        rerank_at=rerank_at,
        hits=hits,
        progress=progress,
        foregrounds=foregrounds,
        kept=covered.kept[rows],
        left_out=(*covered.left_out, *embedded.bad),
        clipped=covered.clipped,
        empty=int((covered.values[rows].max(axis=1) == 0).sum()),
    )


@torch.no_grad()
def audit_regions(
    regions: Regions,
    coverage: Floats,
    images: ImageSet,
    *,
    matcher: Matcher,
    rerank_at: int = 100,
    hits: int = 1,
    preprocess: Preprocess | None = None,
    progress: ShowProgress = False,
    **facts: Any,
) -> Audit:
    """Audit the regions of N images; `facts` are further fields of `Audit`.

    Args:
        regions: of `images`, with shares of the pooled vectors where these exist.
        coverage: (N, R) fraction of each region that is object, in [0, 1].
        images, matcher, rerank_at, hits, preprocess, progress: as of `Audit` and `audit_dataset`; with cameras, a query
            ignores the images of its own class and camera.

    Raises:
        ValueError: another shape; a number out of range; no query has a relevant image; nothing can be divided; images
            that are judged one by one.
    """
    _check(regions, coverage, images, rerank_at, hits)
    split = QueryGallerySplit.of_regions(regions, images.labels, sides_of(images))
    counted = (split.relevant_count > 0).nonzero().flatten()
    if not len(counted):
        raise ValueError("images: need a query with another image of its class in the gallery, got none")
    without = len(split) - len(counted)
    split = split.subset(counted)
    inside = torch.from_numpy(np.ascontiguousarray(coverage, dtype=np.float64)).to(regions.pooled.device)
    halves = torch.stack([inside, 1 - inside], dim=1)  # (N, 2, R)
    lengths = _object_lengths(regions, inside)
    plain = split.nearest(regions.pooled, rerank_at)
    found = []
    with progress_bar(len(split), show=progress, what="auditing", unit="queries") as advance:
        for query in range(len(split)):
            found.append(_audit_query(regions, halves, lengths, split, query, plain.order[query], matcher, hits))
            advance(1)
    unconverged = sum(one.unconverged for one in found)
    if unconverged:
        warnings.warn(ConvergenceWarning(unconverged), stacklevel=2)
    undivided = found[0].undivided
    arrays: dict[str, Any] = {
        name: np.stack([getattr(one, name) for one in found])
        for name in ("hits", "correct", "scores", "pooled", "structural", "by_area")
    }
    return Audit(
        images=images,
        coverage=np.asarray(coverage, dtype=np.float64),
        queries=split.queries.cpu().numpy(),
        whole=None if undivided else np.stack([one.whole for one in found]),
        object_hits=np.array([one.object_hit for one in found], dtype=np.int64),
        object_correct=np.array([one.object_correct for one in found]),
        alone_correct=np.array([one.alone_correct for one in found]),
        gaps=np.array([one.gap for one in found]),
        matcher=matcher,
        preprocess=preprocess or Preprocess(),
        without_relevant=without,
        candidates=int((plain.order != NOTHING).sum(dim=1).max()),
        unconverged=unconverged,
        undivided=undivided,
        **arrays,
        **facts,
    )


class _QueryEvidence(NamedTuple):
    """One query: fields of `Audit` without the axis of queries."""

    hits: Rows
    correct: NDArray[np.bool_]
    scores: Floats
    pooled: Floats
    structural: Floats
    whole: Floats
    by_area: Floats
    object_hit: int
    object_correct: bool
    alone_correct: bool
    gap: float
    unconverged: int
    undivided: str


def _audit_query(
    regions: Regions,
    halves: Tensor,
    lengths: Tensor,
    split: QueryGallerySplit,
    query: int,
    order: Tensor,
    matcher: Matcher,
    hits: int,
) -> _QueryEvidence:
    """Compare one query with its candidates, gallery rows `order` (K,), and divide their scores."""
    order = order[order != NOTHING]
    image = int(split.queries[query])
    rows = split.gallery[order]
    at_once = max(1, _BLOCK_BYTES // (3 * regions.num_regions * regions.dim * regions.dense.element_size()))
    parts = [
        _divide(
            matcher.match(regions[image], regions[some]), halves[image], halves[some], lengths[image], lengths[some]
        )
        for some in torch.split(rows, at_once)
    ]
    columns = [torch.cat(column) for column in list(zip(*parts, strict=True))[:6]]
    scores, pooled, structural, whole, alone_scores, converged = columns
    undivided = parts[0].undivided
    if undivided and matcher.structural_weight == 0:
        raise ValueError(f"matcher: with structural_weight 0 the score is the pooled cosine, and {undivided}")
    # Both rankings by sums in float64, so that where all is object they are the same, ties included.
    if undivided:
        everything, objects = (
            matcher.combine(pooled.double(), part) for part in (structural.sum(dim=1), structural[:, 0])
        )
    else:
        everything, objects = whole.sum(dim=1), whole[:, 0]
    same = split.gallery_labels[order] == split.query_labels[query]
    place = torch.arange(len(order), device=order.device)
    best = _sorted(everything, order, place, len(split.gallery))[:hits]
    first, alone = (int(_sorted(by, order, place, len(split.gallery))[0]) for by in (objects, alone_scores))
    right, wrong = (objects[which].max() if which.any() else objects.new_tensor(-torch.inf) for which in (same, ~same))
    fraction = halves.mean(dim=2)
    area = torch.einsum("a,kb->kab", fraction[image], fraction[rows[best]]).flatten(1)

    def padded(values: Tensor, fill: float) -> NDArray[Any]:
        full = values.new_full((hits, *values.shape[1:]), fill)
        full[: len(values)] = values
        return full.cpu().numpy()

    return _QueryEvidence(
        hits=padded(rows[best], NOTHING),
        correct=padded(same[best], False),
        **{
            name: padded(values[best].double(), 0.0)
            for name, values in (("scores", scores), ("pooled", pooled), ("structural", structural), ("whole", whole))
        },
        by_area=padded(area, 0.0),
        object_hit=int(rows[first]),
        object_correct=bool(same[first]),
        alone_correct=bool(same[alone]),
        gap=float(wrong - right),
        unconverged=int((~converged).sum()),
        undivided=undivided,
    )


class _Divided(NamedTuple):
    """K pairs of one query: scores (K,), pooled cosines (K,), parts (K, 4), scores of objects alone, converged (K,)."""

    scores: Tensor
    pooled: Tensor
    structural: Tensor
    whole: Tensor
    alone: Tensor
    converged: Tensor
    undivided: str


def _divide(found: Match, half_q: Tensor, half_g: Tensor, length_q: Tensor, length_g: Tensor) -> _Divided:
    """The scores of K pairs by kinds of evidence.

    Args:
        found: K pairs of one query.
        half_q, half_g: (2, R) and (K, 2, R) fractions that are object and background.
        length_q, length_g: () and (K,) lengths of the objects' shares of the pooled vectors.
    """
    structural = divided(found.plan.double() * found.cosine.double(), half_q, half_g)
    mass = divided(found.plan.double(), half_q, half_g)[:, 0]
    mean_cosine = _over(structural[:, 0], mass)
    ledger = found.ledger(0)
    combine = found.matcher.combine
    undivided = "" if ledger.has_whole else ledger.undivided
    if found.pooled_parts is None:  # undivided, or structural_weight is infinite
        whole, alone = structural, combine(found.pooled.double(), mean_cosine)
    else:
        parts = divided(found.pooled_parts.double(), half_q, half_g)
        whole = combine(parts, structural)
        alone = combine(_over(parts[:, 0], length_q * length_g), mean_cosine)
    return _Divided(found.score, found.pooled, structural, whole, alone, found.converged, undivided)


def _over(values: Tensor, divisor: Tensor) -> Tensor:
    """Quotients; 0 where the divisor is 0."""
    return torch.where(divisor > 0, values / torch.where(divisor > 0, divisor, 1), 0)


def _object_lengths(regions: Regions, inside: Tensor) -> Tensor:
    """(N,) length of the part of the pooled vector that the object has, from inside (N, R); 0 without shares."""
    lengths = inside.new_zeros(len(regions))
    if regions.shares is not None:
        at_once = max(1, _BLOCK_BYTES // (8 * regions.num_regions * regions.dim))
        for start in range(0, len(regions), at_once):
            some = slice(start, start + at_once)
            parts = torch.einsum("nr,nrd->nd", inside[some], regions.shares[some].double())
            lengths[some] = torch.linalg.vector_norm(parts, dim=1)
    return lengths


def divided(terms: Tensor, half_q: Tensor, half_g: Tensor) -> Tensor:
    """(K, 4) terms (K, R, R) of pairs of regions, summed by kinds of evidence; each row sums to its terms.

    Args:
        terms: (K, R, R).
        half_q: (2, R) fractions of the query's regions that are object and background.
        half_g: (K, 2, R) those of the gallery images.
    """
    return torch.einsum("aq,kqg,kbg->kab", half_q, terms, half_g).flatten(1)


def _sorted(scores: Tensor, order: Tensor, place: Tensor, size: int) -> Tensor:
    """Places of candidates by score, best first, equal scores in gallery order."""
    ranked = Ranking._trusted(order.unsqueeze(0), size).reranked(scores.unsqueeze(0)).order[0]
    position = place.new_zeros(size)
    position[order] = place
    return position[ranked]


def _grid_of(embedder: Embedder) -> tuple[int, int]:
    """(rows, columns) of the regions; where these are the backbone's own cells, of a trial image."""
    if embedder.grid is not None:
        return (embedder.grid, embedder.grid)
    size = embedder.preprocess.size
    grid = embedder.embed(torch.zeros(3, size, size)).grid
    if grid is None:
        raise ValueError("embedder: need regions that form a grid, got none; set grid")
    return grid


def _check(regions: Regions, coverage: Floats, images: ImageSet, rerank_at: int, hits: int) -> None:
    if coverage.shape != (len(images), regions.num_regions) or len(images) != len(regions):
        need = f"({len(images)}, {regions.num_regions})"
        raise ValueError(f"coverage: need {need} for {len(regions)} images, got {coverage.shape}")
    if not ((coverage >= 0) & (coverage <= 1)).all():
        raise ValueError("coverage: need fractions in [0, 1]")
    if images.judgements is not None:
        raise ValueError(f"images: need images with classes, got {images.name} with judgements of single images")
    if rerank_at < 1:
        raise ValueError(f"rerank_at: need at least 1 candidate, got {rerank_at}")
    if not 1 <= hits <= rerank_at:
        raise ValueError(f"hits: need 1 to rerank_at ({rerank_at}), got {hits}")


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
