"""The compiled CPU kernel: scores of embedded pairs, transport plans, gradients, nearest images.

It is optional: `diml.matching` asks `suits` and computes the same in torch where the answer is no. DIML_NATIVE=0 in the
environment turns the kernel off. Legend: Q queries, N images, B pairs or problems, R regions, D channels.
"""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from diml.matching.maxsim import Matching
from diml.matching.partial import Share

#: Storage types of gallery regions that the kernel reads without a copy.
STORED = (torch.float32, torch.float16, torch.int16, torch.int8, torch.uint8)

#: Kinds of plan that the kernel makes.
PlanKind = Literal["entropic", "exact", "maxsim", "maxsim_query", "votes"]


class KernelMissingWarning(UserWarning):
    """The package was installed without its compiled kernel: results are the same, computed in torch, and slower."""


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("DIML_NATIVE", "1") == "0":
        return None, "turned off by DIML_NATIVE=0"
    try:
        _kernel = importlib.import_module("diml.matching._kernel")
    except ImportError as error:
        return None, f"not built: {error}"
    if chosen := os.environ.get("DIML_NATIVE_DISPATCH"):
        if chosen not in _kernel.usable():
            raise ValueError(f"DIML_NATIVE_DISPATCH: need one of {_kernel.usable()} on this machine, got {chosen!r}")
        _kernel.choose(chosen)
    return _kernel, "in use"


_KERNEL, _REASON = _load()
#: Iterations of a pair that the kernel leaves to torch.
_TOO_WIDE = -1
_warned = False


def info() -> dict[str, Any]:
    """What is in use: available, reason, dispatch, usable (instruction sets, fastest first), threads."""
    usable = _KERNEL.usable() if _KERNEL else []
    dispatch = _KERNEL.dispatch() if _KERNEL else None
    found = {"available": _KERNEL is not None, "reason": _REASON, "dispatch": dispatch, "usable": usable}
    return found | {"threads": torch.get_num_threads()}


def suits(*tensors: Tensor) -> bool:
    """Whether the kernel can work on these: it is installed, and they are on the CPU and not in float64.

    Without tensors: whether it is installed. Warns once (KernelMissingWarning) where the package was installed without
    a kernel.
    """
    global _warned
    if _KERNEL is None:
        if not _warned and _REASON.startswith("not built"):
            _warned = True
            warnings.warn(
                KernelMissingWarning(
                    "diml: the compiled kernel is missing, so that matching runs in torch, 10 to 100 times slower; "
                    "install a C++ compiler and reinstall diml, or set DIML_NATIVE=0 to silence this"
                ),
                stacklevel=4,
            )
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype != torch.float64 for tensor in tensors)


@dataclass(frozen=True)
class SolverSettings:
    """How the plan of a pair is made: settings of the solver as in `diml.matching.Matcher`; the epsilon of votes is
    their temperature."""

    epsilon: float
    tolerance: float
    max_iterations: int
    share: Share = 1.0
    matching: Matching | Literal["votes"] = "transport"

    @property
    def plan(self) -> PlanKind:
        """The kind of plan: with transport, exact where epsilon is 0."""
        if self.matching != "transport":
            return self.matching
        return "entropic" if self.epsilon else "exact"

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        return _KERNEL.SolverSettings(
            plan=_KERNEL.PlanKind[self.plan],
            epsilon=self.epsilon,
            tolerance=self.tolerance,
            max_iterations=min(int(self.max_iterations), 2**30),
            dustbin=1.0 if self.share == "auto" else 1.0 - self.share,
            open=self.share == "auto",
        )


@dataclass(frozen=True, eq=False)
class StoredRegions:
    """Images of one side: values (N, R, D) in one of `STORED`, pooled (N, D).

    For int8 and int16 there is a scale (N, R); for uint8 values are codes (N, R, S) of centroids (S, 256, w), int8.
    """

    values: Tensor
    pooled: Tensor
    scale: Tensor | None = None
    centroids: Tensor | None = None

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        scale, centroids = None if self.scale is None else _floats(self.scale), self.centroids
        values, pooled = self.values.detach().contiguous(), _floats(self.pooled)
        return _KERNEL.StoredRegions(values=values, pooled=pooled, scale=scale, centroids=centroids)


@dataclass(frozen=True, eq=False)
class PairIndices:
    """Pair b is query `query_rows[b]` and gallery image `gallery_rows[b]`, both (B,) integers."""

    query_rows: Tensor
    gallery_rows: Tensor

    def __len__(self) -> int:
        return len(self.query_rows)

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        query_rows, gallery_rows = (rows.long().contiguous() for rows in (self.query_rows, self.gallery_rows))
        return _KERNEL.PairIndices(query_rows=query_rows, gallery_rows=gallery_rows)


@dataclass(frozen=True, eq=False)
class ScorerWeights:
    """The weights of a learned scorer, float32 for the kernel; `diml.matching.readings.Folded` makes them.

    Args:
        upper: (min(d, D), D) triangular factor of the map, under which lengths and cosines are the same.
        inward: (h, D) first layer of the network that reads dustbins, after the map.
        inward_bias, outward: (h,) its bias, and the second layer.
        outward_bias: of the second layer.
        height, spread: a dustbin is height + spread * tanh(what was read).
    """

    upper: Tensor
    inward: Tensor
    inward_bias: Tensor
    outward: Tensor
    outward_bias: float
    height: float
    spread: float

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        return _KERNEL.ScorerWeights(**vars(self))


@dataclass(frozen=True, eq=False)
class VoteInputs:
    """What votes need beside the two sides: the scorer, and what it reads off the gallery images.

    Args:
        weights: of the scorer.
        over_length: (N, R + 1) 1 / length under the map of the regions, then of the pooled vector.
        dustbin: (N, R) heights.
    """

    weights: ScorerWeights
    over_length: Tensor
    dustbin: Tensor

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        weights, over_length, dustbin = self.weights._to_kernel(), _floats(self.over_length), _floats(self.dustbin)
        return _KERNEL.VoteInputs(weights=weights, over_length=over_length, dustbin=dustbin)


@dataclass(frozen=True, eq=False)
class PairScores:
    """Of each pair: structural and pooled similarity, marginal error, iterations, whether the error is small enough.

    Pairs that are `too_wide`, their costs spanning more than float32 can hold, were not solved.
    """

    structural: Tensor
    pooled: Tensor
    marginal_error: Tensor
    iterations: Tensor
    converged: Tensor
    too_wide: Tensor


def score(
    query: StoredRegions,
    gallery: StoredRegions,
    pairs: PairIndices,
    settings: SolverSettings,
    *,
    uniform: bool,
    votes: VoteInputs | None = None,
    plan: Tensor | None = None,
) -> PairScores:
    """Score pairs of a query and a gallery image; adjacent pairs of one query share its packing.

    Args:
        query: Q images, in any float type.
        gallery: N images as they are stored.
        pairs: B pairs of them.
        settings: of the solver.
        uniform: regions weigh 1 / R each, instead of by cross-correlation.
        votes: for that plan.
        plan: (B, Rq, Rg) float32 that the plans are written to, if it is given.

    Returns PairScores of (B,) float32, iterations int32.
    """
    assert _KERNEL is not None
    results = _empty_results(len(pairs), similarities=True)
    _KERNEL.score(
        query=_KERNEL.StoredRegions(values=_floats(query.values), pooled=_floats(query.pooled)),
        gallery=gallery._to_kernel(),
        pairs=pairs._to_kernel(),
        uniform=uniform,
        settings=settings._to_kernel(),
        threads=torch.get_num_threads(),
        results=_KERNEL.PairResults(**results, plan=plan),
        **({} if votes is None else {"votes": votes._to_kernel()}),
    )
    return _scores_of(results, settings)


def read(images: StoredRegions, rows: Tensor, weights: ScorerWeights, *, over_length: Tensor, dustbin: Tensor) -> None:
    """Read off N images at `rows` (n,) int64 what `VoteInputs` has of a gallery, and write it there: float32."""
    assert _KERNEL is not None
    _KERNEL.read(
        images=images._to_kernel(),
        rows=rows.contiguous(),
        weights=weights._to_kernel(),
        threads=torch.get_num_threads(),
        over_length=over_length,
        dustbin=dustbin,
    )


def solve(
    cost: Tensor, weight_q: Tensor, weight_g: Tensor, settings: SolverSettings, *, plan: Tensor | None = None
) -> PairScores:
    """Solve B problems of costs (B, Rq, Rg) and non-negative weights (B, Rq), (B, Rg).

    Plans are written to `plan` (B, Rq, Rg) float32, if it is given. With share "auto" a cost has to be 1 - cosine.
    Returns PairScores of (B,), without similarities.
    """
    assert _KERNEL is not None
    results = _empty_results(len(cost), similarities=False)
    _KERNEL.solve(
        cost=_floats(cost),
        mass_q=_floats(weight_q),
        mass_g=_floats(weight_g),
        settings=settings._to_kernel(),
        threads=torch.get_num_threads(),
        results=_KERNEL.PairResults(**results, plan=plan),
    )
    return _scores_of(results, settings)


@dataclass(frozen=True, eq=False)
class ExactPlans:
    """Exact plans (B, Rq, Rg), their dual prices (B, Rq) and (B, Rg), all float64, and iterations (B,) int32."""

    plan: Tensor
    potential_q: Tensor
    potential_g: Tensor
    iterations: Tensor


def solve_exact(cost: Tensor, weight_q: Tensor, weight_g: Tensor) -> ExactPlans:
    """Solve B problems of costs (B, Rq, Rg) and weights (B, Rq), (B, Rg) exactly; all float64, on the CPU."""
    assert _KERNEL is not None
    iterations = torch.empty(len(cost), dtype=torch.int32)
    found = ExactPlans(torch.empty_like(cost), torch.empty_like(weight_q), torch.empty_like(weight_g), iterations)
    _KERNEL.solve_exact(
        cost=cost,
        mass_q=weight_q,
        mass_g=weight_g,
        threads=torch.get_num_threads(),
        results=_KERNEL.ExactResults(**vars(found)),
    )
    return found


@dataclass(frozen=True, eq=False)
class ComparedPairs:
    """Pairs of packed images: their scores, plans (B, Rq, Rg) and, if wanted, cosines (B, Rq, Rg)."""

    scores: PairScores
    plan: Tensor
    cosine: Tensor | None


def compare(
    query: Tensor,
    gallery: Tensor,
    pairs: PairIndices,
    settings: SolverSettings,
    *,
    uniform: bool,
    keep_cosine: bool,
) -> ComparedPairs:
    """Score pairs as `score` does, of images packed as R + 1 vectors, the pooled one last, and keep their plans.

    Takes (Q, Rq + 1, D) and (N, Rg + 1, D) float32. Plans of pairs that are too wide are undefined.
    """
    assert _KERNEL is not None
    results = _empty_results(len(pairs), similarities=True)
    shape = (len(pairs), query.shape[1] - 1, gallery.shape[1] - 1)
    plan, cosine = torch.empty(shape), torch.empty(shape) if keep_cosine else None
    _KERNEL.compare(
        query=_floats(query),
        gallery=_floats(gallery),
        pairs=pairs._to_kernel(),
        uniform=uniform,
        settings=settings._to_kernel(),
        threads=torch.get_num_threads(),
        results=_KERNEL.PairResults(**results, plan=plan, cosine=cosine),
    )
    return ComparedPairs(_scores_of(results, settings), plan, cosine)


@dataclass(frozen=True, eq=False)
class PairSlopes:
    """Derivatives of a loss by the cosines of its pairs, in factors.

    Args:
        slope: (B, Rq, Rg) derivative of a pair's value by the cosine of each two regions.
        weight: (B,) derivative of the loss by the value.
        pooled_weight: (B,) derivative of the loss by the cosine of the pooled vectors.
    """

    slope: Tensor
    weight: Tensor
    pooled_weight: Tensor

    def _to_kernel(self) -> Any:
        assert _KERNEL is not None
        slope, weight, pooled_weight = (_floats(part) for part in (self.slope, self.weight, self.pooled_weight))
        return _KERNEL.PairSlopes(slope=slope, weight=weight, pooled_weight=pooled_weight)


def accumulate_gradients(
    slopes: PairSlopes,
    pairs: PairIndices,
    partners: Tensor,
    shape: tuple[int, ...],
    *,
    side: Literal["query", "gallery", "both"],
) -> Tensor:
    """Gradient (N, R + 1, D), of that `shape`, of the packed images on one side of B pairs, or on both.

    The gradient of a region is the sum, over the pairs of its image, of weight * slope times the regions of the
    partner; that of the pooled vector, of the pooled weight times the pooled vector of the partner. `partners`
    (M, R' + 1, D) are the images of the other side, or of the same one with "both". Pairs of weight 0 cost little.
    """
    assert _KERNEL is not None
    gradient = torch.empty(shape)
    _KERNEL.accumulate_gradients(
        slopes=slopes._to_kernel(),
        pairs=pairs._to_kernel(),
        partners=_floats(partners),
        as_query=side != "gallery",
        as_gallery=side != "query",
        threads=torch.get_num_threads(),
        gradient=gradient,
    )
    return gradient


def nearest(queries: Tensor, gallery: Tensor, excluded: Tensor, depth: int) -> Tensor:
    """(Q, depth) int64 rows of `gallery` (N, D) by falling dot product with `queries` (Q, D), unit vectors both.

    Exact: scores are summed in float64 and rounded to float32, and equal ones ordered by rising row. `excluded` (Q,) is
    a row that each query must not find, or -1; where no row is left, the result is -1.
    """
    assert _KERNEL is not None
    order = torch.empty(len(queries), min(depth, len(gallery)), dtype=torch.int64)
    if order.numel():
        _KERNEL.nearest(
            queries=_floats(queries),
            gallery=_floats(gallery),
            excluded=excluded.contiguous(),
            threads=torch.get_num_threads(),
            order=order,
        )
    return order


def _empty_results(pairs: int, *, similarities: bool) -> dict[str, Tensor]:
    """Tensors (B,) for the kernel to write to."""
    names = ("structural", "pooled", "error") if similarities else ("error",)
    return {name: torch.empty(pairs) for name in names} | {"iterations": torch.empty(pairs, dtype=torch.int32)}


def _scores_of(results: dict[str, Tensor], settings: SolverSettings) -> PairScores:
    """What the kernel wrote, and which pairs have converged."""
    error, iterations = results["error"], results["iterations"]
    structural, pooled = results.get("structural", error[:0]), results.get("pooled", error[:0])
    too_wide = iterations == _TOO_WIDE
    converged = (error <= settings.tolerance) & ~too_wide if settings.plan == "entropic" else torch.ones_like(too_wide)
    return PairScores(structural, pooled, error, iterations, converged, too_wide)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()
