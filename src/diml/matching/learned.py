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
from diml.matching.readings import SHORTEST, Folded, Readings, exact_type, kept_readings
from diml.matching.regions import Regions
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
    def readings(self, images: Images) -> Readings:
        """What the scorer reads off N images once, for an index to keep: lengths (N, R + 1) and dustbins (N, R)."""
        kept = kept_readings(images, self.scorer_id)
        kept.complete(images, torch.arange(len(images), device=images.pooled.device), self._folded(kept.dustbin))
        return Readings(1 / kept.over_length, kept.dustbin)

    @torch.no_grad()
    def _scored(
        self, query: Regions, gallery: Images, candidates: Tensor, weights: tuple[Tensor, Tensor] | None
    ) -> CandidateScores:
        """(Q, K) scores: only queries are mapped."""
        if weights is not None:
            return super()._scored(query, gallery, candidates, weights)
        if not candidates.numel():
            return unscored(candidates)
        queries = torch.arange(len(query), device=candidates.device).repeat_interleave(candidates.shape[1])
        scores = self._pair_scores(query, gallery, queries, candidates.long().flatten())
        return CandidateScores(scores.view(candidates.shape), torch.ones_like(candidates, dtype=torch.bool))

    @torch.no_grad()
    def _scored_pairs(self, queries: Images, images: Images, left: Tensor, right: Tensor) -> CandidateScores:
        """(P,) scores of `queries` at `left`, ascending, against `images` at `right`."""
        scores = self._pair_scores(queries, images, left, right)
        return CandidateScores(scores, torch.ones_like(left, dtype=torch.bool))

    def _pair_scores(self, query: Images, gallery: Images, left: Tensor, right: Tensor) -> Tensor:
        """(P,) scores without plans, of images `left`, ascending, of `query` against images `right` of `gallery`."""
        like = gallery.pooled.new_empty(0, dtype=torch.promote_types(exact_type(query), exact_type(gallery)))
        folded, known = self._folded(like), kept_readings(gallery, self.scorer_id)
        with torch.autocast(like.device.type, enabled=False):
            known.complete(gallery, right, folded)
            values, scale, centroids = gallery.stored
            if values.dtype not in native.STORED or not native.suits(values, gallery.pooled, like):
                return self._pair_scores_torch(query, gallery, left, right, folded)
        queries, place = torch.unique_consecutive(left, return_inverse=True)
        found = native.score(
            native.StoredRegions(*query.gather(queries)),
            native.StoredRegions(values, gallery.pooled, scale, centroids),
            native.PairIndices(place, right),
            native.SolverSettings(epsilon=folded.temperature, tolerance=1, max_iterations=1, matching=VOTES),
            uniform=self.weights == "uniform",
            votes=native.VoteInputs(folded.weights, known.over_length, known.dustbin),
        )
        return self.combine(found.pooled, found.structural)

    def _pair_scores_torch(self, query: Images, gallery: Images, left: Tensor, right: Tensor, folded: Folded) -> Tensor:
        """The readable twin of the kernel, in blocks of bounded memory.

        Products of copies at other places of a batch may differ in the last bit, so that these are computed once.
        """
        known, count = kept_readings(gallery, self.scorer_id), len(gallery)
        wanted = without_copies(query, left) * count + without_copies(gallery, right)
        pairs, where = torch.unique(wanted, return_inverse=True)
        per_pair = 3 * (query.num_regions + gallery.num_regions) * gallery.dim * 8
        parts = []
        for some in torch.split(pairs, max(1, BLOCK_BYTES // per_pair)):
            queries, place = torch.unique_consecutive(some // count, return_inverse=True)
            images = some % count
            packed_q, packed_g = folded.packed(query, queries), folded.packed(gallery, images)
            read = folded.read(packed_q)
            mapped = folded.by_metric(packed_q) / read.length.clamp_min(SHORTEST).unsqueeze(2)
            cells = (mapped[place] @ packed_g.mT) * known.over_length[images].unsqueeze(1)
            cosine = cells[:, :-1, :-1]
            masses = self._masses(cells[:, :-1, -1]), self._masses(cells[:, -1, :-1])
            plan, *_ = self.votes(cosine, (read.dustbin[place], known.dustbin[images]), masses)
            plain = (packed_q[place, -1] * packed_g[:, -1]).sum(dim=1)
            parts.append(self.combine(plain, (plan * cosine).sum(dim=(1, 2))))
        return torch.cat(parts)[where]

    def _folded(self, like: Tensor) -> Folded:
        """The weights of the scorer as scoring needs them."""
        kept = _FOLDED.setdefault(scorer := self._network(None), {})
        key = self.scorer_id, like.dtype, str(like.device)
        if key not in kept:
            if any(other[0] != self.scorer_id for other in kept):  # it was trained further
                kept.clear()
            kept[key] = Folded.of(scorer, like, DUSTBIN_RANGE)
        return kept[key]

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


#: Scorers whose weights are at hand for scoring: (identity, type, device) -> weights.
_FOLDED: WeakKeyDictionary[VoteScorer, dict[tuple[str, torch.dtype, str], Folded]] = WeakKeyDictionary()


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
