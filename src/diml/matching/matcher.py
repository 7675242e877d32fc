"""Compare images region by region: every setting of the method, once, and what can be done with it.

`Matcher.match` is the readable method, with the plan of every pair. `score`, `rerank` and `score_unique_pairs` compare
many pairs without keeping their plans: by the compiled kernel on the CPU, else in torch, in blocks of bounded memory.

Legend: B pairs, Q queries, K candidates of each, N images, Rq and Rg regions of the two sides, D channels.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor

from diml.matching import native
from diml.matching.ledger import Contrast, Ledger, Number, combined, plain_weight
from diml.matching.maxsim import Matching, check_matching, maxsim_plan
from diml.matching.pairs import by_content
from diml.matching.partial import Share, check_share
from diml.matching.regions import NOT_COMPUTED, SHORTS_PER_UNIT, QuantizedRegions, Regions
from diml.matching.retrieval import NOTHING, Ranking
from diml.matching.transport import (
    EPSILON,
    MAX_ITERATIONS,
    TOLERANCE,
    TransportPlan,
    check_solver,
    exact_transport,
    sinkhorn,
)
from diml.matching.weights import Weights, cross_correlation_weights, given_weights, masses_of

Grid = tuple[int, int]
Images = Regions | QuantizedRegions
#: Rows of a gallery for each query: a tensor, a numpy array or nested lists of integers.
Candidates = Tensor | Sequence[Sequence[int]] | Any

#: Working memory in bytes to aim at where torch does the work.
BLOCK_BYTES = 64 * 2**20

#: The largest finite `structural_weight`: float32 has no digits left for the pooled cosine beyond it.
LARGEST_WEIGHT = 1e6

#: Pairs that are scored together: larger batches bring no speed-up, and copies of queries stay small.
PAIRS_AT_ONCE = 2**17


class ConvergenceWarning(UserWarning):
    """That many `pairs` stopped at max_iterations: their scores carry the remaining marginal error."""

    def __init__(self, pairs: int) -> None:
        super().__init__(f"{pairs} pairs stopped at max_iterations; raise max_iterations, tolerance or epsilon")
        self.pairs = pairs


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """The settings of the method; validated when built, saved with embedders, runs and indexes.

    score = pooled cosine + structural_weight * sum over pairs of regions of plan * cosine, where only the mass that is
    transported counts: the sum is not divided by the share.

    Raises:
        ValueError: a setting is out of range.

    Source: Zhao et al., "Towards Interpretable Deep Metric Learning with Structural Matching", ICCV 2021.

    Example:
        >>> matcher = Matcher(epsilon=0.02)
        >>> matcher.match(query, gallery).score
        >>> matcher.rerank(query, gallery, nearest(query, gallery, 100).order).order
    """

    matching: Matching = "transport"
    """How regions are matched: by optimal transport; or each with the most similar region of the other image, which
    needs no iterations, half of the mass from either side ("maxsim") or all of it from the query's ("maxsim_query", as
    in ColBERT). Epsilon, tolerance and max_iterations are then not used, and share has to be 1."""

    weights: Weights = "cross_correlation"
    """Mass of each region: its agreement with the other image as a whole; the same for every region ("uniform"); or,
    for plain vision transformers, what the network itself attends to ("rollout": truncated attention rollout, see
    docs/vits.md), computed in torch."""

    epsilon: float = EPSILON
    """Entropic regularisation of the transport plan, in units of cosine, >= 0; a smaller value gives a sharper plan and
    takes more iterations. 0 is the exact plan, which has at most Rq + Rg - 1 entries and needs no iterations."""

    tolerance: float = TOLERANCE
    """Marginal error at which the plan of a pair has converged, > 0; not used with epsilon 0."""

    max_iterations: int = MAX_ITERATIONS
    """Iterations after which a plan is used although it has not converged; such pairs are reported. Not used with
    epsilon 0, where every plan has converged."""

    structural_weight: float = 1.0
    """Weight of the structural score against the pooled cosine, >= 0: 1 as in the paper, 0 ranks by the pooled cosine
    alone, inf by the structural score alone."""

    share: Share = 1.0
    """Share of the mass of each image that is transported, in (0, 1]; the rest stays unmatched, so that occluded
    regions and clutter need no counterpart. With "auto" regions are matched where their cosine exceeds a threshold, the
    mean cosine of all regions of the two images; use it for ranking with an epsilon above 0 only."""

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights: need one of {get_args(Weights)}, got {self.weights!r}")
        check_solver(self.epsilon, self.tolerance, self.max_iterations)
        check_share(self.share)
        check_matching(self.matching, self.share)
        if not self.structural_weight >= 0:
            raise ValueError(f"structural_weight: need a number of at least 0, got {self.structural_weight}")
        if LARGEST_WEIGHT < self.structural_weight < math.inf:
            need = f"at most {LARGEST_WEIGHT:g}, or inf for the structural score alone"
            raise ValueError(f"structural_weight: need {need}, got {self.structural_weight}")

    def match(self, query: Regions, gallery: Regions, *, weights: tuple[Tensor, Tensor] | None = None) -> Match:
        """Compare row i of `query` with row i of `gallery`, keeping the plan of every pair.

        Gradients flow through the cosines and not through the plan: as the plan is a minimiser, its own change does
        not matter to first order for the regularised transport cost (envelope theorem).

        Args:
            query, gallery: B images each, or one against B; R may differ between the sides, D may not.
            weights: weights of the regions of both sides, (B or 1, Rq) and (B or 1, Rg), non-negative, normalised to
                sum to 1 a row; they replace those of the setting `weights`.

        Returns:
            Match of B pairs in float32 (float64 for float64 input), also under autocast; with `pooled_parts` where both
            sides have shares of their pooled vectors.

        Raises:
            TypeError, ValueError: the two sides do not fit together.
        """
        _check_sides(query, gallery)
        if len(query) != len(gallery) and 1 not in (len(query), len(gallery)):
            got = f"{len(query)} and {len(gallery)}"
            raise ValueError(f"query, gallery: need as many images on both sides, or one on one side; got {got}")
        if len(query) == 1:  # one query against many shares one matrix product
            dense_g, pooled_g = gallery.dense.unsqueeze(0), gallery.pooled.unsqueeze(0)
        else:
            dense_g = gallery.dense.unsqueeze(1).expand(len(query), -1, -1, -1)
            pooled_g = gallery.pooled.unsqueeze(1).expand(len(query), -1, -1)
        if weights is None and self.weights == "rollout":
            weights = masses_of("query", query), masses_of("gallery", gallery)
        found = self._compared(query, dense_g, pooled_g, gallery.grid, weights)
        dense_q, dense_g = (side.dense.detach().expand(len(found), -1, -1) for side in (query, gallery))
        return _with_pooled_parts(replace(found, dense_q=dense_q, dense_g=dense_g), query, gallery)

    def score(
        self,
        query: Regions,
        gallery: Images,
        candidates: Candidates,
        *,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Scores of query i against the gallery rows `candidates[i]`, without their plans.

        Args:
            query, gallery: Q and N images on one device, stored in any float type; the gallery also as codes.
            candidates: (Q, K) integer rows of `gallery`; K may be 0. A tensor, numpy array or lists.
            weights: (1, Rq) and (1, Rg), the same for all pairs, as of `match`; computed in torch.

        Returns:
            (Q, K), higher is more similar; float32 (float64 for float64 input), without gradient.

        Raises:
            TypeError, ValueError: the sides or the candidates do not fit.
            ConvergenceWarning: (a warning) pairs stopped at `max_iterations`.
        """
        rows = _rows(query, gallery, candidates)
        found = self._scored(query, gallery, rows, weights)
        found.warn(stacklevel=3)
        return found.scores

    def rerank(
        self,
        query: Regions,
        gallery: Images,
        candidates: Candidates,
        *,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Ranking:
        """Stage 2 of retrieval: the candidates of each query sorted by their scores, equal scores in gallery order.

        Args:
            query, gallery, candidates, weights: as of `score`; -1 stands for no image, as `nearest` gives it.

        Returns:
            Ranking of K ranks with their `scores`.

        Raises:
            TypeError, ValueError, ConvergenceWarning: as `score`; also where a row stands twice for one query.
        """
        rows = _rows(query, gallery, candidates, lowest=NOTHING)
        missing = rows == NOTHING
        found = self._scored(query, gallery, rows.clamp_min(0), weights)
        found.warn(stacklevel=3)
        scores = found.scores.masked_fill(missing, -torch.inf)
        order = Ranking._trusted(rows.long(), len(gallery)).reranked(scores).order
        return Ranking(order, len(gallery), scores.sort(dim=1, descending=True).values)

    @torch.no_grad()
    def score_unique_pairs(
        self,
        images: Images,
        queries: Tensor | Sequence[int] | Any,
        candidates: Candidates,
        *,
        originals: Regions | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> CandidateScores:
        """Scores of the candidates of many queries among the same images, each unordered pair compared once.

        Which image of a pair is the query depends on their contents only (see `pairs`): a pair has the same score
        whichever queries are evaluated with it, and copies of an image tie. Where it matters which image is the query
        (`symmetric`), both directions are compared, each as asked.

        Args:
            images: N images.
            queries: (Q,) integer rows of them; a tensor, numpy array or list.
            candidates: (Q, K) integer rows of them, or -1 for no image, whose score is -infinity; as of `score`.
            originals: the same N images as queries, where those of the gallery are codes: both directions of a pair are
                then compared, each as asked.
            progress: called with the fraction of the pairs scored since its last call.

        Returns:
            CandidateScores of shape (Q, K).
        """
        report = progress or (lambda _: None)
        if originals is not None:
            _check_originals(originals, images)
        queries = _integer_rows(queries, "queries", images.pooled.device).long()
        candidates = _integer_rows(candidates, "candidates", images.pooled.device).long()
        if queries.ndim != 1 or candidates.ndim != 2 or len(queries) != len(candidates):
            got = f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
            raise ValueError(f"queries, candidates: need shapes (Q,) and (Q, K), got {got}")
        _check_range(queries, "queries", 0, len(images))
        _check_range(candidates, "candidates", NOTHING, len(images))
        there = candidates != NOTHING
        converged = torch.ones_like(there)
        if not there.any():
            report(1)
            return unscored(candidates)
        chosen = slice(None) if there.all() else there.flatten()  # usually all, which need no copies
        left = queries.repeat_interleave(candidates.shape[1])[chosen]
        right = candidates.flatten()[chosen]
        if self.symmetric and originals is None:
            left, right = by_content(images, left, right)
        pairs, place = torch.unique(left * len(images) + right, return_inverse=True)
        parts = []
        for some in torch.split(pairs, PAIRS_AT_ONCE):
            left, right = some // len(images), some % len(images)
            parts.append(self._scored_pairs(images if originals is None else originals, images, left, right))
            report(len(some) / len(pairs))
        scores = torch.cat([part.scores for part in parts])
        every = torch.full((candidates.numel(),), -torch.inf, dtype=scores.dtype, device=candidates.device)
        every[chosen] = scores[place]
        converged.view(-1)[chosen] = torch.cat([part.converged for part in parts])[place]
        return CandidateScores(every.view(candidates.shape), converged)

    def combine(self, pooled: Number, structural: Number) -> Number:
        """The score of pooled and structural similarities: pooled + structural_weight * structural."""
        return combined(pooled, structural, self.structural_weight)

    @property
    def learned(self) -> bool:
        """Whether its plans are the votes of a trained scorer (`LearnedMatcher`)."""
        return False

    @property
    def symmetric(self) -> bool:
        """Whether exchanging two images does not change their score."""
        return self.matching != "maxsim_query"

    def plan(self, cosine: Tensor, weight_q: Tensor, weight_g: Tensor) -> TransportPlan:
        """The plans of B pairs with cosines (B, Rq, Rg) and weights (B, Rq), (B, Rg), whose rows sum to 1."""
        if self.matching != "transport":
            found = maxsim_plan(cosine, weight_q, weight_g, self.matching)
            done = torch.ones(len(found), dtype=torch.bool, device=found.device)
            return TransportPlan(found, found.new_zeros(len(found)), torch.zeros_like(done, dtype=torch.int64), done)
        if self.epsilon:
            return sinkhorn(1 - cosine, weight_q, weight_g, **self.solver)
        return exact_transport(1 - cosine, weight_q, weight_g, share=self.share)

    @property
    def solver(self) -> dict[str, Any]:
        """Keyword arguments of `sinkhorn`; with epsilon 0 `exact_transport` takes its place, with `share` alone."""
        return {name: getattr(self, name) for name in ("epsilon", "tolerance", "max_iterations", "share")}

    def changed(self, **settings: Any) -> Matcher:
        """The same with other settings, as `dataclasses.replace`; a learned matcher may lose its scorer by it."""
        return replace(self, **settings)

    def _compared(
        self,
        query: Regions,
        dense_g: Tensor,
        pooled_g: Tensor,
        grid_g: Grid | None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Match:
        """Q queries against dense_g (Q, K, Rg, D) and pooled_g (Q, K, D); a learned matcher has its own."""
        return _compare(self, query, dense_g, pooled_g, grid_g, weights)

    def _scored(
        self, query: Regions, gallery: Images, candidates: Tensor, weights: tuple[Tensor, Tensor] | None
    ) -> CandidateScores:
        """(Q, K) scores without plans; a learned matcher has its own."""
        return _score_candidates(self, query, gallery, candidates, weights)

    def _scored_pairs(self, queries: Images, images: Images, left: Tensor, right: Tensor) -> CandidateScores:
        """(P,) scores without plans of `queries` at `left`, ascending, against `images` at `right`; a learned matcher
        has its own."""
        return _score_pairs(self, queries, images, left, right)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; `from_dict` reads them back."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"structural_weight": plain_weight(self.structural_weight)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Matcher:
        """Build from plain values; missing settings take their defaults.

        Raises:
            ValueError: an unknown setting (the nearest known one is named), a value of another type or out of range.
        """
        if values.get("matching") in OTHER_KINDS:
            return OTHER_KINDS[values["matching"]](values)
        known: dict[str, Any] = {field.name: type(field.default) for field in fields(Matcher)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"matcher: unknown setting {name!r}; {hint}there are {', '.join(known)}")
            if name == "share" and value == "auto":
                given[name] = value
                continue
            try:
                given[name] = known[name](value)
            except (TypeError, ValueError, OverflowError) as error:
                kind = {int: "an integer", float: "a number", str: "a name"}[known[name]]
                kind += " or 'auto'" if name == "share" else ""
                raise ValueError(f"matcher: {name} needs {kind}, got {value!r}") from error
            if known[name] is int and given[name] != float(value):
                raise ValueError(f"matcher: {name} needs an integer, got {value!r}")
        return Matcher(**given)


#: Value of `matching` -> what builds the matcher from plain values; `learned` adds its own.
OTHER_KINDS: dict[Any, Callable[[Mapping[str, Any]], Matcher]] = {}


@dataclass(frozen=True, eq=False, repr=False)
class Match(TransportPlan):
    """B compared pairs: the plan of each (fields of `TransportPlan`) and the similarities it leads to.

    Args:
        cosine: (B, Rq, Rg) cosine of each pair of regions.
        structural: (B,) sum of plan * cosine, over the mass that is transported.
        pooled: (B,) cosine of the pooled vectors.
        weight_q, weight_g: (B, Rq) and (B, Rg) mass that each region sends or receives.
        matcher: the settings.
        grid_q, grid_g: (rows, columns) of the regions, or None where they form no known grid.
        pooled_parts: (B, Rq, Rg) float64 part of the pooled cosine that each pair of regions accounts for, without
            gradient: <share of the query's pooled vector, share of the gallery image's>; they sum to `pooled`. None
            where a side has no shares (see `Regions.shares`).
        undivided: why there are no `pooled_parts`; empty where there are.
        dense_q, dense_g: (B, Rq, D) and (B, Rg, D) the regions themselves, for similarities within an image, without
            gradient; views of those that were compared.
    """

    cosine: Tensor
    structural: Tensor
    pooled: Tensor
    weight_q: Tensor
    weight_g: Tensor
    matcher: Matcher
    grid_q: Grid | None = None
    grid_g: Grid | None = None
    pooled_parts: Tensor | None = None
    undivided: str = NOT_COMPUTED
    dense_q: Tensor | None = None
    dense_g: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """(B,) pooled + structural_weight * structural; with weight 1 the paper's similarity, in [-2, 2]."""
        return self.matcher.combine(self.pooled, self.structural)

    def __len__(self) -> int:
        return self.plan.shape[0]

    def __repr__(self) -> str:
        rows, columns = self.plan.shape[1:]
        score = self.score.detach()
        shown = f"{float(score[0]):.4f}" if len(self) == 1 else f"{len(self)} pairs"
        if len(self) > 1:
            shown += f", {float(score.min()):.4f} to {float(score.max()):.4f}"
        return f"{type(self).__name__}(score {shown}; {rows} x {columns} regions)"

    def ledger(self, pair: int = 0) -> Ledger:
        """The score of one pair as a sum of contributions of pairs of regions."""

        def of_pair(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[pair].detach()

        def within(regions: Tensor | None) -> Tensor | None:
            return None if regions is None else (of := regions[pair].detach().double()) @ of.mT

        return Ledger(
            self.plan[pair],
            self.cosine[pair].detach(),
            float(self.pooled[pair].detach()),
            self.grid_q,
            self.grid_g,
            self.matcher.structural_weight,
            of_pair(self.pooled_parts),
            self.undivided,
            within_q=within(self.dense_q),
            within_g=within(self.dense_g),
            unmatched_q=of_pair(self.unmatched_q),
            unmatched_g=of_pair(self.unmatched_g),
        )

    def contrast(self, other: Match, pair: int = 0, other_pair: int = 0) -> Contrast:
        """Why one of these pairs scores above a pair of `other`; both must be of the same query (see `Contrast`)."""
        return self.ledger(pair).contrast(other.ledger(other_pair))


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """Scores of candidates, and which of their plans converged; two tensors of one shape, (Q, K) or (P,)."""

    scores: Tensor
    converged: Tensor

    @property
    def unconverged(self) -> int:
        """Candidates whose plan stopped at max_iterations."""
        return int((~self.converged).sum())

    def warn(self, stacklevel: int) -> None:
        """Issue a ConvergenceWarning where plans stopped at max_iterations."""
        if self.unconverged:
            warnings.warn(ConvergenceWarning(self.unconverged), stacklevel=stacklevel)


def unscored(candidates: Tensor) -> CandidateScores:
    """Candidates (Q, K) that are no images, or none at all: -infinity."""
    nothing = torch.full(candidates.shape, -torch.inf, device=candidates.device)
    return CandidateScores(nothing, torch.ones_like(candidates, dtype=torch.bool))


def match(query: Regions, gallery: Regions, **settings: Any) -> Match:
    """Compare row by row: short for `Matcher(**settings).match(query, gallery)`.

    `weights` may also be a pair of tensors, as of `Matcher.match`.
    """
    given = settings.pop("weights") if isinstance(settings.get("weights"), tuple) else None
    return Matcher(**settings).match(query, gallery, weights=given)


def rerank(query: Regions, gallery: Images, candidates: Candidates, **settings: Any) -> Ranking:
    """Sort candidates by their scores: short for `Matcher(**settings).rerank(query, gallery, candidates)`."""
    return Matcher(**settings).rerank(query, gallery, candidates)


def _check_sides(query: Regions, gallery: Images, stored: Any = Regions) -> None:
    """Raise TypeError or ValueError where two sides do not fit; `stored` is what the gallery may be."""
    for side, kinds in ((query, Regions), (gallery, stored)):
        if not isinstance(side, kinds):
            raise TypeError(f"query, gallery: need Regions, got {type(side).__name__}; diml.match takes images")
    if query.dim != gallery.dim or query.pooled.device != gallery.pooled.device:
        got = f"D {query.dim} on {query.pooled.device} and D {gallery.dim} on {gallery.pooled.device}"
        raise ValueError(f"query, gallery: need one D and one device, got {got}; embed both with one model")


def _check_originals(originals: Regions, images: Images) -> None:
    """Raise TypeError or ValueError where the originals are not those of the images."""
    _check_sides(originals, images, Images)
    if len(originals) != len(images):
        raise ValueError(f"originals: need the {len(images)} images themselves, got {len(originals)}")


def _rows(query: Regions, gallery: Images, candidates: Candidates, lowest: int = 0) -> Tensor:
    """Checked candidates as an integer tensor (Q, K)."""
    _check_sides(query, gallery, Images)
    rows = _integer_rows(candidates, "candidates", query.pooled.device)
    if rows.ndim != 2 or len(rows) != len(query):
        raise ValueError(f"candidates: need shape ({len(query)}, K), got {tuple(rows.shape)}")
    _check_range(rows, "candidates", lowest, len(gallery))
    return rows


def _integer_rows(values: Any, name: str, device: torch.device) -> Tensor:
    """Row numbers as an integer tensor: of a tensor, an array of any integer type, or lists, also of arrays."""
    if not isinstance(values, Tensor):
        if hasattr(values, "astype") and getattr(values.dtype, "kind", "") == "u":
            values = values.astype("int64")  # torch has few operations for unsigned types
        elif isinstance(values, list | tuple):
            values = [row.tolist() if hasattr(row, "tolist") else row for row in values]
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            need = "need integer row numbers, as many of each query (-1 for no image)"
            raise TypeError(f"{name}: {need}, got {type(values).__name__} ({error})") from error
    rows: Tensor = values.to(device)
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        if rows.numel():
            is_mask = rows.dtype == torch.bool
            remedy = "a mask becomes row numbers with .nonzero()" if is_mask else "convert with .long()"
            raise TypeError(f"{name}: need integer row numbers, got {rows.dtype}; {remedy}")
        rows = rows.long()
    return rows.long() if rows.dtype in (torch.uint16, torch.uint32, torch.uint64) else rows


def _check_range(rows: Tensor, name: str, lowest: int, images: int) -> None:
    if rows.numel() and not lowest <= int(rows.min()) <= int(rows.max()) < images:
        got = f"{int(rows.min())}..{int(rows.max())}"
        raise ValueError(f"{name}: need rows 0..{images - 1} of the gallery, got {got}")


def _compare(
    matcher: Matcher,
    query: Regions,
    dense_g: Tensor,
    pooled_g: Tensor,
    grid_g: Grid | None,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Match:
    """The method: Q queries against dense_g (Q, K, Rg, D) and pooled_g (Q, K, D); pairs flattened to B = Q * K."""
    dtype = torch.promote_types(torch.promote_types(query.dense.dtype, dense_g.dtype), torch.float32)
    with torch.autocast(dense_g.device.type, enabled=False):
        dense_q, pooled_q, dense_g, pooled_g = (t.to(dtype) for t in (query.dense, query.pooled, dense_g, pooled_g))
        cosine = torch.einsum("qrd,qkgd->qkrg", dense_q, dense_g).flatten(0, 1)
        pooled = (pooled_q.unsqueeze(1) * pooled_g).sum(dim=2).flatten()
        with torch.no_grad():
            pairs, rows, columns = cosine.shape
            if weights is not None:
                weight_q, weight_g = given_weights(weights, cosine)
            elif matcher.weights == "uniform":
                weight_q = cosine.new_full((pairs, rows), 1 / rows)
                weight_g = cosine.new_full((pairs, columns), 1 / columns)
            else:
                both = cross_correlation_weights(dense_q, pooled_q, dense_g, pooled_g)
                weight_q, weight_g = (weight.flatten(0, 1) for weight in both)
            transport = matcher.plan(cosine.detach(), weight_q, weight_g)
        structural = (transport.plan * cosine).sum(dim=(1, 2))
    parts = {"cosine": cosine, "structural": structural, "pooled": pooled, "weight_q": weight_q, "weight_g": weight_g}
    found: dict[str, Any] = vars(transport) | parts
    return Match(**found, matcher=matcher, grid_q=query.grid, grid_g=grid_g)


@torch.no_grad()
def _with_pooled_parts(found: Match, query: Regions, gallery: Regions) -> Match:
    """The match with its pooled cosines divided among pairs of regions, or with the reason why they are not."""
    if query.shares is None or gallery.shares is None:
        return replace(found, undivided=query.undivided if query.shares is None else gallery.undivided)
    with torch.autocast(query.shares.device.type, enabled=False):
        parts = query.shares.double() @ gallery.shares.double().mT
    return replace(found, pooled_parts=parts, undivided="")


@torch.no_grad()
def _score_candidates(
    matcher: Matcher, query: Regions, gallery: Images, candidates: Tensor, weights: tuple[Tensor, Tensor] | None
) -> CandidateScores:
    """(Q, K) scores, by the kernel where it suits."""
    if weights is not None or not _compiled(matcher, query, gallery):
        return _score_torch(matcher, query, gallery, candidates, weights)
    rows = torch.arange(len(query)).repeat_interleave(candidates.shape[1])
    found = _score_native(matcher, query, gallery, rows, candidates.flatten())
    return CandidateScores(found.scores.reshape(candidates.shape), found.converged.reshape(candidates.shape))


def _score_pairs(matcher: Matcher, queries: Images, images: Images, left: Tensor, right: Tensor) -> CandidateScores:
    """Scores (P,) of image `left[p]` of `queries` against image `right[p]` of `images`."""
    rows, place = torch.unique_consecutive(left, return_inverse=True)
    score = _score_native if _compiled(matcher, queries[:1], images) else _score_pairs_torch
    return score(matcher, queries[rows], images, place, right)


def _compiled(matcher: Matcher, query: Regions, gallery: Images) -> bool:
    """Whether the kernel can score these."""
    stored = gallery.stored[0]
    by_name = matcher.weights != "rollout" and stored.dtype in native.STORED
    return by_name and native.suits(query.dense, stored, gallery.pooled)


def _score_native(matcher: Matcher, query: Regions, gallery: Images, rows: Tensor, images: Tensor) -> CandidateScores:
    """Scores (P,) of queries `rows` against gallery `images`, by the kernel; what float32 cannot hold is torch's."""
    values, scale, centroids = gallery.stored
    found = native.score(
        native.StoredRegions(query.dense, query.pooled),
        native.StoredRegions(values, gallery.pooled, scale, centroids),
        native.PairIndices(rows, images),
        native.SolverSettings(**matcher.solver, matching=matcher.matching),
        uniform=matcher.weights == "uniform",
    )
    scores, converged = matcher.combine(found.pooled, found.structural), found.converged
    wide = found.too_wide.nonzero().squeeze(1)
    if len(wide):
        others = _score_pairs_torch(matcher, query, gallery, rows[wide], images[wide])
        scores[wide], converged[wide] = others.scores, others.converged
    return CandidateScores(scores, converged)


def _score_pairs_torch(
    matcher: Matcher, query: Regions, gallery: Images, rows: Tensor, images: Tensor
) -> CandidateScores:
    """Scores (P,) of single pairs in torch, from copies of their queries."""
    at_once = max(1, BLOCK_BYTES // (query.num_regions * query.dim * query.dense.element_size()))
    parts = [
        _score_torch(matcher, query[rows[some]], gallery, images[some].unsqueeze(1))
        for some in torch.split(torch.arange(len(rows)), at_once)
    ]
    scores, converged = (torch.cat([getattr(part, name) for part in parts]) for name in ("scores", "converged"))
    return CandidateScores(scores.squeeze(1), converged.squeeze(1))


def _score_torch(
    matcher: Matcher,
    query: Regions,
    gallery: Images,
    candidates: Tensor,
    weights: tuple[Tensor, Tensor] | None = None,
) -> CandidateScores:
    """Scores (Q, K) in torch, block by block: the readable twin of the kernel."""
    integers = isinstance(gallery, QuantizedRegions) and gallery.rounds_queries
    compared = Regions._trusted(_steps(query.dense), _steps(query.pooled), query.grid) if integers else query
    masses = None
    if weights is None and matcher.weights == "rollout":
        masses = masses_of("query", query), masses_of("gallery", gallery)
    dtype = torch.promote_types(torch.promote_types(query.dense.dtype, gallery.pooled.dtype), torch.float32)
    scores = query.pooled.new_empty(candidates.shape, dtype=dtype)
    converged = torch.ones_like(candidates, dtype=torch.bool)
    for rows, columns in _blocks(query, gallery, candidates.shape[1]):
        chosen = candidates[rows, columns].long()
        dense, pooled = gallery.gather(chosen)
        weighing = _steps(pooled) if integers else pooled
        if masses is not None:  # one row of weights for each pair of the block
            own = masses[0][rows].unsqueeze(1).expand(-1, chosen.shape[1], -1)
            weights = own.flatten(0, 1), masses[1][chosen].flatten(0, 1)
        found = matcher._compared(compared[rows], dense, weighing, gallery.grid, weights)
        if integers:  # rounded pooled vectors weigh the regions; the pooled cosine is not rounded
            found = replace(found, pooled=(query.pooled[rows].unsqueeze(1) * pooled).sum(dim=2).flatten())
        scores[rows, columns] = found.score.reshape(chosen.shape)
        converged[rows, columns] = found.converged.reshape(chosen.shape)
    return CandidateScores(scores, converged)


def _steps(vectors: Tensor) -> Tensor:
    """Vectors rounded to the steps of 16-bit codes, float32 or better; in float64, whose products are exact."""
    codes = (vectors.double() * SHORTS_PER_UNIT).round_()
    return codes.to(torch.promote_types(vectors.dtype, torch.float32)).mul_(1 / SHORTS_PER_UNIT)


def _blocks(query: Regions, gallery: Images, candidates: int) -> Iterator[tuple[slice, slice]]:
    """Cut the (Q, K) table of pairs into rectangles of about `BLOCK_BYTES` (at least one pair each)."""
    gathered = gallery.num_regions * gallery.dim * 8  # as stored and as computed
    limit = max(1, BLOCK_BYTES // (gathered + 24 * query.num_regions * gallery.num_regions))
    rows, columns = max(1, limit // max(1, candidates)), max(1, min(candidates, limit))
    for top in range(0, len(query), rows):
        for left in range(0, candidates, columns):
            yield slice(top, top + rows), slice(left, left + columns)
