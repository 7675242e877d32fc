"""Transport plans that are sharper than the one that scores, for benchmarks/sharpening.py: how to compute each.

Legend: B pairs, R regions.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diml.explain.sharpening import sharpened
from diml.matching import Match, Matcher, sinkhorn

#: Epsilon of the plan that scores, which all others are compared with.
EPSILON = Matcher().epsilon

#: Marginal error at which a plan has converged, and of the intermediate plans of an annealed one.
TOLERANCE, INTERMEDIATE_TOLERANCE = 5e-6, 1e-2

#: Limit of the iterations of one plan.
MOST_ITERATIONS = 20_000


@dataclass(frozen=True)
class Way:
    """A way to compute a plan.

    Attributes:
        make: computes plans (B, R, R) of compared pairs; their own plan is ignored.
        package: the package to import; None where none is needed.
        keeps_score: whether it is for display only, so that pairs keep the score at `EPSILON`.
        most_queries: largest number of queries of its retrieval, as more would take too long; 0 where another way
            gives the same plan.
    """

    make: Callable[[Match], Tensor]
    package: str | None = None
    keeps_score: bool = False
    most_queries: int = 10**9

    def missing(self) -> str | None:
        """Why it cannot be measured on this machine, or None."""
        if self.package is None:
            return None
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        importlib.import_module(f"{self.package}.smooth")  # now, so that it is not timed
        return None


def entropic(compared: Match, epsilon: float) -> Tensor:
    """The plan of `diml.match` at this epsilon."""
    problem = (1 - compared.cosine, compared.weight_q, compared.weight_g)
    return sinkhorn(*problem, epsilon=epsilon, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS).plan


def sharpened_plan(compared: Match, factor: float) -> Tensor:
    """The plan of `diml explain --sharpen`."""
    return sharpened(dataclasses.replace(compared, plan=entropic(compared, EPSILON)), factor).plan


def annealed(compared: Match, epsilons: tuple[float, ...]) -> Tensor:
    """The plan at the last epsilon; each epsilon starts from the dual potentials of the one before.

    With one epsilon the plan is not annealed. In float64, which can represent exp(-cost / epsilon) down to an epsilon
    of 0.005, and by plain Sinkhorn, so that annealed and direct solutions can be compared.
    """
    cost, weight_q, weight_g = (part.double() for part in (1 - compared.cosine, compared.weight_q, compared.weight_g))
    f, g = torch.zeros_like(weight_q), torch.zeros_like(weight_g)
    for epsilon in epsilons:
        tolerance = TOLERANCE if epsilon == epsilons[-1] else INTERMEDIATE_TOLERANCE
        kernel = ((f.unsqueeze(2) + g.unsqueeze(1) - cost) / epsilon).exp()
        u, v = scaled(kernel, weight_q, weight_g, tolerance)
        f, g = f + epsilon * u.log(), g + epsilon * v.log()
    return u.unsqueeze(2) * kernel * v.unsqueeze(1)


def scaled(kernel: Tensor, weight_q: Tensor, weight_g: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Sinkhorn's scaling vectors (B, R) of kernels (B, R, R), each pair stopped by its own marginal error."""
    u, v = torch.ones_like(weight_q), torch.ones_like(weight_g)
    left = torch.arange(len(kernel))
    for iteration in range(MOST_ITERATIONS):
        mass = (kernel @ v[left].unsqueeze(2)).squeeze(2)
        waiting = (u[left] * mass - weight_q).abs().sum(dim=1) > tolerance
        if iteration and not waiting.any():
            break
        if iteration and waiting.sum() <= 0.7 * len(left):
            rows = (left, kernel, weight_q, weight_g, mass)
            left, kernel, weight_q, weight_g, mass = (part[waiting] for part in rows)
        u[left] = torch.where(mass > 0, weight_q / mass, 0)
        mass = (kernel.mT @ u[left].unsqueeze(2)).squeeze(2)
        v[left] = torch.where(mass > 0, weight_g / mass, 0)
    return u, v


def by_pot(solve: Callable[..., Any], compared: Match) -> Tensor:
    """Plans of a solver of POT, pair by pair in float64; weights are normalised as exactly as POT requires."""
    parts = (1 - compared.cosine, compared.weight_q, compared.weight_g)
    plans = []
    for cost, *weights in zip(*(part.double().numpy() for part in parts), strict=True):
        weight_q, weight_g = (weight / weight.sum() for weight in weights)
        plans.append(solve(weight_q, weight_g, cost))
    return torch.from_numpy(np.stack(plans))


def exact(weight_q: Any, weight_g: Any, cost: Any) -> Any:
    """No regularisation: a vertex of the polytope of plans, with at most 2 R - 1 entries."""
    import ot

    return ot.emd(weight_q, weight_g, cost)


def smooth(weight_q: Any, weight_g: Any, cost: Any, *, strength: float, most: int | None = None) -> Any:
    """Quadratic regularisation, strength / 2 times the sum of squares; at most `most` entries per column."""
    from ot.smooth import smooth_ot_dual

    kind = {"reg_type": "l2"} if most is None else {"reg_type": "sparsity_constrained", "max_nz": most}
    return smooth_ot_dual(weight_q, weight_g, cost, strength, numItermax=2000, **kind)


def _pot(solve: Callable[..., Any], most_queries: int) -> Way:
    return Way(partial(by_pot, solve), "ot", most_queries=most_queries)


def halved(last: float) -> tuple[float, ...]:
    """Epsilons from that of the score, halved repeatedly, down to the last."""
    epsilons = [EPSILON]
    while epsilons[-1] / 2 > last:
        epsilons.append(epsilons[-1] / 2)
    return (*epsilons, last)


WAYS = {
    "plan that scores": Way(partial(entropic, epsilon=EPSILON)),
    "sharpened 10": Way(partial(sharpened_plan, factor=10), keeps_score=True),
    "sharpened 30": Way(partial(sharpened_plan, factor=30), keeps_score=True),
    "epsilon 0.02": Way(partial(entropic, epsilon=0.02)),
    "epsilon 0.0125": Way(partial(entropic, epsilon=0.0125)),
    "epsilon 0.005": Way(partial(entropic, epsilon=0.005), most_queries=50),
    "straight to 0.0125": Way(partial(annealed, epsilons=(0.0125,)), most_queries=0),
    "annealed to 0.0125": Way(partial(annealed, epsilons=halved(0.0125)), most_queries=0),
    "straight to 0.005": Way(partial(annealed, epsilons=(0.005,)), most_queries=0),
    "annealed to 0.005": Way(partial(annealed, epsilons=halved(0.005)), most_queries=0),
    "quadratic 5": _pot(partial(smooth, strength=5.0), 20),
    "quadratic 1": _pot(partial(smooth, strength=1.0), 20),
    "quadratic 0.2": _pot(partial(smooth, strength=0.2), 10),
    "sparse 4, 1": _pot(partial(smooth, strength=1.0, most=4), 10),
    "sparse 2, 1": _pot(partial(smooth, strength=1.0, most=2), 10),
    "exact": _pot(exact, 10**9),
}
