"""A matcher with a learned scorer: soft votes of the regions, with a dustbin for each.

A region votes for the regions of the other image that resemble it under a learned linear map. Its votes are a softmax
over their cosines and over its own dustbin, whose height a small network reads off the region: a region that resembles
nothing, or that says nothing about the class, gives its mass to the dustbin and counts for nothing. The plan is the
mean of the votes of both sides, as with MaxSim, which is the limit of temperature 0 without dustbins. It needs no
iterations.

As `structural` is the sum over pairs of regions of votes * cosine, and what is unmatched contributes 0, ledgers, parts,
contrasts and figures are those of any other plan. The pooled cosine stays that of the embedder, so that stage 1 of a
search and its division among regions stay as they are.

Sources: Sarlin et al., "SuperGlue", CVPR 2020 (a learned dustbin); Suma et al., "ELViS", ICLR 2026 (a dustbin for each
descriptor, votes from the best of rows and columns). Softmax votes take the place of their Sinkhorn iterations and of
the sigmoid of maxima, which was worse outside the domain of training (docs/experiments/scorer.md).

Legend: B pairs, Q queries, K candidates of each, N images, P pairs of rows, Rq and Rg regions of the two sides, D
channels of the embedder, d channels of the map.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diml.matching import native
from diml.matching.ledger import plain_weight
from diml.matching.matcher import (
    BLOCK_BYTES,
    OTHER_KINDS,
    CandidateScores,
    Grid,
    Images,
    Match,
    Matcher,
    unscored,
)
from diml.matching.pairs import without_copies
from diml.matching.regions import Regions
from diml.matching.transport import EPSILON
from diml.matching.weights import given_weights

#: How regions are matched, in the place of `Matching`.
VOTES: Final = "votes"

#: Most parameters that a scorer may have.
MOST_PARAMETERS: Final = 200_000

#: Bounds of the temperature; below, exponentials of cosines leave the range of float32.
COLDEST, HOTTEST = 0.025, 1.0

#: Dustbins are this far from their common height at most, in units of cosine.
DUSTBIN_RANGE: Final = 0.3

#: Weight of a region that disagrees with the other image as a whole, so that no image is without mass.
LEAST_WEIGHT: Final = 1e-6

#: Pairs whose cosines are held together.
PAIRS_PER_BLOCK: Final = 1024

#: Images that are mapped together.
MAPPED_AT_ONCE: Final = 512


class MappedImages(NamedTuple):
    """What votes need of N images: mapped unit vectors (N, R, d) and (N, d), and the dustbins (N, R)."""

    dense: Tensor
    pooled: Tensor
    dustbin: Tensor


class VoteScorer(nn.Module):
    """The network: a linear map, a dustbin for each region, a temperature, and the weight of the votes.

    Args:
        dim: D, channels of the embedder.
        mapped: d, channels of the map; D when omitted, where the map begins as the identity.
        hidden: hidden units of the network that gives the dustbins.

    Raises:
        ValueError: sizes below 1, or more than 200,000 parameters.
    """

    def __init__(self, dim: int, mapped: int | None = None, hidden: int = 32) -> None:
        super().__init__()
        mapped = dim if mapped is None else mapped
        if min(dim, mapped, hidden) < 1:
            raise ValueError(f"dim, mapped, hidden: need at least 1, got {dim}, {mapped} and {hidden}")
        self.map = nn.Linear(dim, mapped, bias=False)
        self.reader = nn.Sequential(nn.Linear(mapped, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.height = nn.Parameter(torch.tensor(0.3))
        self.log_temperature = nn.Parameter(torch.tensor(0.05).log())
        self.log_weight = nn.Parameter(torch.tensor(4.0).log())
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(mapped, dim))
            for part in (self.reader[2].weight, self.reader[2].bias):
                part.zero_()  # type: ignore[operator]
        if self.parameters_used > MOST_PARAMETERS:
            need = f"at most {MOST_PARAMETERS:,} parameters"
            raise ValueError(f"dim, mapped: need {need}, got {self.parameters_used:,} of {dim} to {mapped} channels")

    @property
    def parameters_used(self) -> int:
        """How many numbers are learned."""
        return sum(part.numel() for part in self.parameters())

    @property
    def dim(self) -> int:
        """D, channels of the regions that it compares."""
        return self.map.in_features

    @property
    def temperature(self) -> Tensor:
        """Of the softmax, in units of cosine."""
        return self.log_temperature.exp().clamp(COLDEST, HOTTEST)

    def forward(self, dense: Tensor, pooled: Tensor) -> MappedImages:
        """Map regions (..., R, D) and pooled vectors (..., D) and read their dustbins; differentiable."""
        regions, whole = (F.normalize(self.map(side), dim=-1) for side in (dense, pooled))
        read = self.reader(regions * math.sqrt(regions.shape[-1])).squeeze(-1)
        return MappedImages(regions, whole, self.height + DUSTBIN_RANGE * torch.tanh(read))

    def likeness(self, cosine: Tensor) -> Tensor:
        """exp((cosine - 1) / temperature), also of the height of a dustbin."""
        return ((cosine - 1) / self.temperature).exp()

    def content_id(self) -> str:
        """Identify the weights: 64 hexadecimal digits (sha256)."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            plain = value.detach().cpu().float().contiguous().reshape(-1)
            digest.update(f"{name} {tuple(value.shape)}".encode() + plain.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> VoteScorer:
        """Build from saved weights.

        Raises:
            ValueError: they are not those of a scorer.
        """
        try:
            mapped, dim = state["map.weight"].shape
            scorer = cls(dim, mapped, len(state["reader.0.weight"]))
            scorer.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"scorer: not the weights of a scorer: {error}") from error
        return scorer.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class LearnedMatcher(Matcher):
    """A matcher whose plan is the votes of a trained `VoteScorer`; made by `LearnedMatcher.of(scorer)`.

    Everything that takes a `Matcher` takes it. It is saved with an embedder (`scorer.safetensors`); an index records
    which scorer it was built for. epsilon, tolerance and max_iterations are not used.

    Raises:
        ValueError: a setting that votes do not have.

    Example:
        >>> matcher = load_embedder("models/grocery").matcher  # doctest: +SKIP
        >>> matcher.match(query, gallery).ledger().to_dict()["unmatched"]  # doctest: +SKIP
    """

    matching: Any = VOTES
    """Always "votes"."""

    scorer_id: str = ""
    """Identifies the weights of the scorer (sha256)."""

    scorer: VoteScorer | None = field(default=None, compare=False, repr=False)
    """The network; None where only its identity is known, as of an index."""

    def __post_init__(self) -> None:
        if self.matching != VOTES or self.share != 1 or self.weights == "rollout":
            raise ValueError(
                f"matching, share, weights: a learned matcher has matching 'votes', share 1, and weights other than "
                f"'rollout', got {self.matching!r}, {self.share!r} and {self.weights!r}; "
                "use Matcher(...) to compare without the scorer"
            )
        replace(_PLAIN, weights=self.weights, structural_weight=self.structural_weight)  # checks the others

    @classmethod
    def of(cls, scorer: VoteScorer) -> LearnedMatcher:
        """The matcher of a trained scorer, with the structural weight that it learned."""
        scorer = scorer.eval().requires_grad_(False)
        weight = round(float(scorer.log_weight.exp()), 6)
        return cls(scorer_id=scorer.content_id(), scorer=scorer, structural_weight=weight)

    def with_scorer(self, scorer: VoteScorer) -> LearnedMatcher:
        """The same settings with the network itself.

        Raises:
            ValueError: it is another network.
        """
        found = scorer.content_id()
        if found != self.scorer_id:
            raise ValueError(f"scorer: need the weights {self.scorer_id[:12]}..., got {found[:12]}...")
        return replace(self, scorer=scorer)

    def changed(self, **settings: Any) -> Matcher:
        """With other settings: the same scorer under another structural weight or other weights, else no scorer."""
        if settings.keys() <= {"structural_weight", "weights"} and settings.get("weights") != "rollout":
            return replace(self, **settings)
        return Matcher(**settings)

    @property
    def learned(self) -> bool:
        """True."""
        return True

    @property
    def symmetric(self) -> bool:
        """True: votes of both sides count alike."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values: matching, weights, structural_weight and the identity of the scorer."""
        plain = {name: getattr(self, name) for name in ("matching", "weights", "scorer_id")}
        return plain | {"structural_weight": plain_weight(self.structural_weight)}

    def mapped(self, dense: Tensor, pooled: Tensor) -> MappedImages:
        """Regions (..., R, D) and pooled vectors (..., D) under the map of the scorer.

        Raises:
            ValueError: there is no network, or it is for other channels.
        """
        scorer = self._network(dense)
        return MappedImages(*scorer(dense, pooled))

    def votes(
        self, cosine: Tensor, dustbins: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """The votes of B pairs.

        Args:
            cosine: (B, Rq, Rg) under the map.
            dustbins: heights (B, Rq) and (B, Rg).
            weights: (B, Rq) and (B, Rg), rows summing to 1.

        Returns:
            plan (B, Rq, Rg), and the unmatched mass of both sides, (B, Rq) and (B, Rg), each out of 1: the plan sums
            to 1 minus the mean of both.
        """
        scorer = self._network(None)
        like = scorer.likeness(cosine)
        plan, left = torch.zeros_like(like), []
        for dim, dustbin, weight in ((2, dustbins[0], weights[0]), (1, dustbins[1], weights[1])):
            own = scorer.likeness(dustbin)
            per_unit = weight / (own + like.sum(dim=dim))
            plan = plan + 0.5 * like * per_unit.unsqueeze(dim)
            left.append(own * per_unit)
        return plan, *left

    def _compared(
        self,
        query: Regions,
        dense_g: Tensor,
        pooled_g: Tensor,
        grid_g: Grid | None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Match:
        dtype = torch.promote_types(torch.promote_types(query.dense.dtype, dense_g.dtype), torch.float32)
        with torch.autocast(dense_g.device.type, enabled=False):
            dense_q, pooled_q, dense_g, pooled_g = (t.to(dtype) for t in (query.dense, query.pooled, dense_g, pooled_g))
            pooled = (pooled_q.unsqueeze(1) * pooled_g).sum(dim=2).flatten()
            one, other = self.mapped(dense_q, pooled_q), self.mapped(dense_g, pooled_g)
            cosine = torch.einsum("qrd,qkgd->qkrg", one.dense, other.dense).flatten(0, 1)
            if weights is not None:
                weight_q, weight_g = given_weights(weights, cosine)
            else:
                agree_q = torch.einsum("qrd,qkd->qkr", one.dense, other.pooled.expand(len(query), -1, -1))
                agree_g = torch.einsum("qkgd,qd->qkg", other.dense.expand(len(query), -1, -1, -1), one.pooled)
                weight_q, weight_g = (self._masses(agree).flatten(0, 1) for agree in (agree_q, agree_g))
            dust_q = one.dustbin.unsqueeze(1).expand(-1, dense_g.shape[1], -1).flatten(0, 1)
            dust_g = other.dustbin.expand(len(query), -1, -1).flatten(0, 1)
            plan, left_q, left_g = self.votes(cosine, (dust_q, dust_g), (weight_q, weight_g))
            structural = (plan * cosine).sum(dim=(1, 2))
        nothing = cosine.detach().new_zeros(len(cosine))
        return Match(
            plan=plan.detach(),
            marginal_error=nothing,
            iterations=torch.zeros_like(nothing, dtype=torch.int64),
            converged=torch.ones_like(nothing, dtype=torch.bool),
            unmatched_q=left_q.detach(),
            unmatched_g=left_g.detach(),
            cosine=cosine,
            structural=structural,
            pooled=pooled,
            weight_q=weight_q.detach(),
            weight_g=weight_g.detach(),
            matcher=self,
            grid_q=query.grid,
            grid_g=grid_g,
        )

    @torch.no_grad()
    def _scored(
        self, query: Regions, gallery: Images, candidates: Tensor, weights: tuple[Tensor, Tensor] | None
    ) -> CandidateScores:
        """(Q, K) scores: every image is mapped once."""
        if weights is not None:
            return super()._scored(query, gallery, candidates, weights)
        if not candidates.numel():
            return unscored(candidates)
        rows = without_copies(gallery, candidates.long())
        ours = self._prepared(query, torch.arange(len(query), device=rows.device))
        theirs = self._prepared(gallery, rows.flatten())
        asked = torch.arange(len(query), device=rows.device).unsqueeze(1) * len(gallery) + rows
        pairs, place = torch.unique(asked, return_inverse=True)  # copies are scored once, so that they tie in every bit
        scores = self._pair_scores(ours, theirs, pairs // len(gallery), pairs % len(gallery))[place]
        return CandidateScores(scores, torch.ones_like(candidates, dtype=torch.bool))

    def _without_copies(self, images: Images, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Copies are scored once: by torch, equal pairs at other places of a batch may differ in the last bit."""
        plain = without_copies(images, torch.cat([left, right]))
        return plain[: len(left)], plain[len(left) :]

    @torch.no_grad()
    def _scored_pairs(self, images: Images, left: Tensor, right: Tensor) -> CandidateScores:
        """(P,) scores of images `left`, ascending, against images `right`."""
        known = self._prepared(images, torch.cat([left, right]))
        return CandidateScores(self._pair_scores(known, known, left, right), torch.ones_like(left, dtype=torch.bool))

    def _prepared(self, images: Images, rows: Tensor) -> _Prepared:
        """Images mapped at `rows` at least; what was mapped of the same images before is kept as long as they are."""
        scorer = self._network(None)
        kept = _MAPPED.get(images)
        if kept is None or kept.scorer_id != self.scorer_id:
            kept = _Prepared.empty(images, self.scorer_id, scorer.map.out_features)
        used = torch.zeros(len(images), dtype=torch.bool, device=rows.device)
        used[rows] = True
        missing = (used & ~kept.known).nonzero().squeeze(1)
        per_image = images.num_regions * images.dim * 8
        for some in torch.split(missing, max(1, min(MAPPED_AT_ONCE, BLOCK_BYTES // per_image))):
            dense, pooled = (part.to(kept.plain.dtype) for part in images.gather(some))
            mapped = self.mapped(dense, pooled)
            kept.vectors[some, :-2], kept.vectors[some, -2:] = mapped.dense, mapped.pooled.unsqueeze(1)
            kept.plain[some] = pooled
            kept.dustbin[some] = scorer.likeness(mapped.dustbin)
            kept.known[some] = True
        _MAPPED[images] = kept
        return kept

    def _pair_scores(self, ours: _Prepared, theirs: _Prepared, left: Tensor, right: Tensor) -> Tensor:
        """(P,) scores of images `left` against `right`, in blocks; the short form of `_compared`, without plans."""
        scorer = self._network(None)
        rows, columns = ours.dustbin.shape[1], theirs.dustbin.shape[1]
        sums = _sums(rows, columns).to(ours.plain)
        found = ours.plain.new_empty(len(left))
        for start in range(0, len(left), PAIRS_PER_BLOCK):
            some = slice(start, start + PAIRS_PER_BLOCK)
            i, j = left[some], right[some]
            cosine = _cosines(ours.vectors, theirs.vectors, i, j)
            masses = torch.cat([self._masses(cosine[:, :-1, -1]), self._masses(cosine[:, -1, :-1])], dim=1)
            cells = cosine.flatten(1)
            like = scorer.likeness(cells)
            # one product gives the sums of rows and of columns, which is faster than sums over short axes
            totals, values = like @ sums, like.mul_(cells) @ sums
            dustbins = torch.cat([ours.dustbin.index_select(0, i), theirs.dustbin.index_select(0, j)], dim=1)
            structural = 0.5 * (masses * (values / (dustbins + totals))).sum(dim=1)
            plain = (ours.plain.index_select(0, i) * theirs.plain.index_select(0, j)).sum(dim=1)
            found[some] = self.combine(plain, structural)
        return found

    def _masses(self, agreement: Tensor) -> Tensor:
        """Weights (..., R) of regions whose agreement with the other image as a whole is given."""
        if self.weights == "uniform":
            return torch.full_like(agreement, 1 / agreement.shape[-1])
        positive = agreement.relu() + LEAST_WEIGHT
        return positive / positive.sum(dim=-1, keepdim=True)

    def _network(self, vectors: Tensor | None) -> VoteScorer:
        """The network, on the device and of the type of `vectors`."""
        if self.scorer is None:
            raise ValueError(
                f"matcher: the learned scorer {self.scorer_id[:12]}... is not here; open the embedder that it was "
                "saved with (load_embedder(FOLDER).matcher), or compare with Matcher()"
            )
        if vectors is not None:
            if vectors.shape[-1] != self.scorer.dim:
                raise ValueError(
                    f"matcher: the learned scorer is for regions of {self.scorer.dim} channels, got "
                    f"{vectors.shape[-1]}; embed with the model that it was saved with"
                )
            self.scorer.to(vectors.device, vectors.dtype)
        return self.scorer


@dataclass(frozen=True, eq=False)
class _Prepared:
    """N images ready for scoring.

    Args:
        scorer_id: which scorer mapped them.
        vectors: (N, R + 2, d) mapped regions, then twice the mapped pooled vector, as the kernel takes them.
        dustbin: (N, R) likeness of the dustbins.
        plain: (N, D) pooled vectors that were not mapped.
        known: (N,) which rows are valid; memory is allocated for all, and taken by the system where it is written.
    """

    scorer_id: str
    vectors: Tensor
    dustbin: Tensor
    plain: Tensor
    known: Tensor

    @classmethod
    def empty(cls, images: Images, scorer_id: str, mapped: int) -> _Prepared:
        stored = images.dense.dtype if isinstance(images, Regions) else images.pooled.dtype
        dtype = torch.promote_types(torch.promote_types(stored, images.pooled.dtype), torch.float32)
        made = partial(torch.empty, dtype=dtype, device=images.pooled.device)
        count, regions = len(images), images.num_regions
        known = torch.zeros(count, dtype=torch.bool, device=images.pooled.device)
        return cls(scorer_id, made(count, regions + 2, mapped), made(count, regions), made(count, images.dim), known)


#: What was mapped of images that are still in use, so that a gallery is mapped once for many queries.
_MAPPED: WeakKeyDictionary[Images, _Prepared] = WeakKeyDictionary()


def _cosines(query: Tensor, gallery: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(P, Rq + 1, Rg + 1) cosines of regions, and last of pooled vectors, of packed images `left` and `right`."""
    if query.dtype == torch.float32 and native.suits(query, gallery):
        settings = native.SolverSettings(epsilon=EPSILON, tolerance=1, max_iterations=1, matching="maxsim")
        pairs = native.PairIndices(left, right)
        found = native.compare(query, gallery, pairs, settings, uniform=True, keep_cosine=True).cosine
        assert found is not None
        return found
    sides = query.index_select(0, left)[:, :-1], gallery.index_select(0, right)[:, :-1]
    return sides[0] @ sides[1].mT


@lru_cache(maxsize=8)
def _sums(rows: int, columns: int) -> Tensor:
    """((rows + 1) * (columns + 1), rows + columns) of ones and zeros: (P, (rows + 1) * (columns + 1)) times it has the
    sums of rows, then of columns, of the regions alone."""
    cells = torch.arange((rows + 1) * (columns + 1))
    row, column = cells // (columns + 1), cells % (columns + 1)
    of_rows, of_columns = F.one_hot(row, rows + 1)[:, :-1], F.one_hot(column, columns + 1)[:, :-1]
    return torch.cat([of_rows * (column < columns).unsqueeze(1), of_columns * (row < rows).unsqueeze(1)], dim=1)


def _from_plain(values: Mapping[str, Any]) -> LearnedMatcher:
    """A learned matcher without its network, from `to_dict`."""
    known = {"matching", "weights", "scorer_id", "structural_weight"}
    unknown = sorted(map(str, values.keys() - known))
    identity = values.get("scorer_id")
    if unknown or not (isinstance(identity, str) and len(identity) == 64):
        got = f"unknown {', '.join(unknown)}" if unknown else f"scorer_id {identity!r}"
        raise ValueError(
            f"matcher: matching 'votes' is that of a trained scorer, with settings {', '.join(sorted(known))}; got "
            f"{got}. `diml train-matcher` trains one and saves it with the model"
        )
    plain = Matcher.from_dict({name: values[name] for name in ("weights", "structural_weight") if name in values})
    return LearnedMatcher(weights=plain.weights, structural_weight=plain.structural_weight, scorer_id=identity)


OTHER_KINDS[VOTES] = _from_plain
_PLAIN: Final = Matcher()
