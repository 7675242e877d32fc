"""The compiled CPU kernel: scores of embedded pairs, transport plans, nearest images. Same results as the torch path.

Nothing here is needed: `diml.matching` asks `suits` and goes by way of torch where the answer is no. DIML_NATIVE=0
in the environment turns the kernel off. Legend: Q queries, N images, B pairs or problems, R regions, D channels.
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

#: Storage types of regions that the kernel reads as they are.
STORED = (torch.float32, torch.float16, torch.int16, torch.int8)


class KernelMissingWarning(UserWarning):
    """The package was installed without its compiled kernel: everything works, by way of torch, and slower."""


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
_warned = False


def info() -> dict[str, Any]:
    """What is in use: available, reason, dispatch, usable (instruction sets, fastest first), threads."""
    usable = _KERNEL.usable() if _KERNEL else []
    dispatch = _KERNEL.dispatch() if _KERNEL else None
    found = {"available": _KERNEL is not None, "reason": _REASON, "dispatch": dispatch, "usable": usable}
    return found | {"threads": torch.get_num_threads()}


def suits(*tensors: Tensor) -> bool:
    """Whether the kernel can work on these: it is there, and they are on the CPU and not in float64.

    Warns once (KernelMissingWarning) where the package was installed without a kernel.
    """
    global _warned
    if _KERNEL is None:
        if not _warned and _REASON.startswith("not built"):
            _warned = True
            warnings.warn(
                KernelMissingWarning(
                    "diml: the compiled kernel is not there, matching goes by way of torch (10 to 100 times slower); "
                    "install a C++ compiler and reinstall diml, or set DIML_NATIVE=0 to silence this"
                ),
                stacklevel=4,
            )
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype != torch.float64 for tensor in tensors)


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

    @classmethod
    def of(cls, structural: Tensor, pooled: Tensor, error: Tensor, iterations: Tensor, tolerance: float) -> PairScores:
        """From what the kernel wrote."""
        assert _KERNEL is not None
        too_wide = iterations == _KERNEL.TOO_WIDE
        return cls(structural, pooled, error, iterations, (error <= tolerance) & ~too_wide, too_wide)


def score(
    dense_q: Tensor,
    pooled_q: Tensor,
    dense_g: Tensor,
    scale_g: Tensor | None,
    pooled_g: Tensor,
    rows: Tensor,
    images: Tensor,
    uniform: bool,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
) -> PairScores:
    """Score query `rows[b]` against gallery image `images[b]`; pairs of one query side by side share its packing.

    Takes (Q, Rq, D), (Q, D) of any float type; dense_g (N, Rg, D) as stored in one of `STORED`, with scale_g (N, Rg)
    for int8 and int16; pooled_g (N, D); rows, images (B,). Returns PairScores of (B,) float32, iterations int32.
    """
    assert _KERNEL is not None
    structural, pooled, error, iterations = _numbers(len(rows), 3)
    scale = None if scale_g is None else _floats(scale_g)
    stored = (dense_g.detach().contiguous(), scale, _floats(pooled_g))
    pairs = _longs(rows, images)
    solver = _solver(epsilon, tolerance, max_iterations)
    results = (structural, pooled, error, iterations)
    _KERNEL.score(_floats(dense_q), _floats(pooled_q), *stored, *pairs, uniform, *solver, *results)
    return PairScores.of(structural, pooled, error, iterations, tolerance)


def solve(
    cost: Tensor,
    mass_q: Tensor,
    mass_g: Tensor,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    *,
    plan: Tensor | None = None,
) -> PairScores:
    """Solve B problems of costs (B, Rq, Rg) and non-negative weights (B, Rq), (B, Rg).

    Plans are written to `plan` (B, Rq, Rg) float32, if it is given. Returns PairScores of (B,), without similarities.
    """
    assert _KERNEL is not None
    error, iterations = _numbers(len(cost), 1)
    solver = _solver(epsilon, tolerance, max_iterations)
    given = (_floats(part) for part in (cost, mass_q, mass_g))
    _KERNEL.solve(*given, *solver, plan, error, iterations)
    return PairScores.of(torch.empty(0), torch.empty(0), error, iterations, tolerance)


@dataclass(frozen=True, eq=False)
class Compared:
    """Pairs of packed images: their numbers, plans (B, Rq, Rg) and, if wanted, cosines (B, Rq, Rg)."""

    scores: PairScores
    plan: Tensor
    cosine: Tensor | None


def compare(
    query: Tensor,
    gallery: Tensor,
    rows: Tensor,
    images: Tensor,
    uniform: bool,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    *,
    cosine: bool,
) -> Compared:
    """Score pairs as `score` does, of images packed as R + 1 vectors, the pooled one last; and keep their plans.

    Takes (Q, Rq + 1, D) and (N, Rg + 1, D) float32; rows, images (B,). Plans of pairs that are too wide are undefined.
    """
    assert _KERNEL is not None
    structural, pooled, error, iterations = _numbers(len(rows), 3)
    shape = (len(rows), query.shape[1] - 1, gallery.shape[1] - 1)
    plan, cosines = torch.empty(shape), torch.empty(shape) if cosine else None
    solver = _solver(epsilon, tolerance, max_iterations)
    pairs = _longs(rows, images)
    results = (structural, pooled, error, iterations, plan, cosines)
    _KERNEL.compare(_floats(query), _floats(gallery), *pairs, uniform, *solver, *results)
    return Compared(PairScores.of(structural, pooled, error, iterations, tolerance), plan, cosines)


def accumulate_gradients(
    slope: Tensor,
    weight: Tensor,
    pooled_weight: Tensor,
    rows: Tensor,
    images: Tensor,
    partners: Tensor,
    shape: tuple[int, ...],
    *,
    side: Literal["query", "gallery", "both"],
) -> Tensor:
    """Gradient (N, R + 1, D), of that `shape`, of packed images on one side of B pairs, or on both.

    A region gets, of each pair, `weight` (B,) times its `slope` (B, Rq, Rg) times the regions of the partner; the
    pooled vector `pooled_weight` (B,) times that of the partner. `partners` (M, R' + 1, D) are the images of the other
    side, or of the same with "both". Pairs without weight cost next to nothing.
    """
    assert _KERNEL is not None
    gradient = torch.empty(shape)
    pairs = _longs(rows, images)
    given = (_floats(part) for part in (slope, weight, pooled_weight))
    threads = torch.get_num_threads()
    _KERNEL.pull(*given, *pairs, side != "gallery", side != "query", _floats(partners), threads, gradient)
    return gradient


def nearest(queries: Tensor, gallery: Tensor, excluded: Tensor, depth: int) -> Tensor:
    """(Q, depth) int64 rows of `gallery` (N, D) by falling dot product with `queries` (Q, D), unit vectors both.

    Exact: scores count as summed in float64 and rounded to float32, equal ones stand by rising row. `excluded` (Q,) is
    a row that each query may not find, or -1; where nothing is left, -1 stands.
    """
    assert _KERNEL is not None
    order = torch.empty(len(queries), min(depth, len(gallery)), dtype=torch.int64)
    if order.numel():
        _KERNEL.nearest(_floats(queries), _floats(gallery), excluded.contiguous(), torch.get_num_threads(), order)
    return order


def _numbers(count: int, floats: int) -> list[Tensor]:
    """Room for so many float32 numbers of each pair, and for its iterations."""
    return [torch.empty(count) for _ in range(floats)] + [torch.empty(count, dtype=torch.int32)]


def _solver(epsilon: float, tolerance: float, max_iterations: int) -> tuple[float, float, int, int]:
    """Settings of the solver as the kernel takes them, with the threads that it may use."""
    return epsilon, tolerance, min(max_iterations, 2**30), torch.get_num_threads()


def _longs(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.long().contiguous() for tensor in tensors)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()
