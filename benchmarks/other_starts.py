"""Two ways to fewer iterations that are not in use: starting from other candidates' potentials, finishing by Newton.

Plain Sinkhorn in float64, for `iterations.py`. Legend: B candidates of a query, R regions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Number of candidates whose potentials the later ones start from: one block of the kernel.
FIRST = 8
#: Sweeps before Newton's method starts; after fewer, its steps often diverge.
SWEEPS_BEFORE_NEWTON = 6
#: Smallest weight of a region: Newton's system is singular at zero.
LEAST = 1e-9


class Problem(NamedTuple):
    """exp((cosine - largest) / epsilon) (B, R, R), and weights (B, R) of both sides."""

    kernel: Tensor
    weight_q: Tensor
    weight_g: Tensor

    @classmethod
    def of(cls, cosine: Tensor, weight_q: Tensor, weight_g: Tensor, epsilon: float) -> Problem:
        """Build it from the cosines and weights of pairs, in float64."""
        kernel = ((cosine - cosine.amax(dim=(1, 2), keepdim=True)) / epsilon).exp()
        weights = (weight.clamp(min=LEAST) for weight in (weight_q, weight_g))
        return cls(kernel, *(weight / weight.sum(dim=1, keepdim=True) for weight in weights))

    def sweep(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The scaling vectors u and v after one Sinkhorn iteration."""
        u = self.weight_q / (self.kernel @ v.unsqueeze(2)).squeeze(2)
        return u, self.weight_g / (self.kernel.mT @ u.unsqueeze(2)).squeeze(2)

    def error(self, u: Tensor, v: Tensor) -> Tensor:
        """(B,) L1 distance of row sums and column sums from the weights, together."""
        plan = u.unsqueeze(2) * self.kernel * v.unsqueeze(1)
        rows = (plan.sum(dim=2) - self.weight_q).abs().sum(dim=1)
        return rows + (plan.sum(dim=1) - self.weight_g).abs().sum(dim=1)


def sweeps(problem: Problem, v: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor]:
    """Iterations (B,) that Sinkhorn needs from `v`, and its final u."""
    counts, active = torch.zeros(len(v)), torch.ones(len(v), dtype=torch.bool)
    u = torch.ones_like(problem.weight_q)
    for _ in range(most):
        u, v = problem.sweep(v)
        counts += active
        active &= problem.error(u, v) > tolerance
        if not active.any():
            break
    return counts, u


def warm_start(problem: Problem, tolerance: float, most: int) -> Tensor:
    """Iterations (B - FIRST,) of the later candidates, started from the query's mean potentials of the first ones."""
    first = Problem(*(part[:FIRST] for part in problem))
    rest = Problem(*(part[FIRST:] for part in problem))
    _, u = sweeps(first, torch.ones_like(first.weight_g), tolerance, most)
    potential = (u / first.weight_q).log()
    start = rest.weight_q * (potential - potential.mean(dim=1, keepdim=True)).mean(dim=0).exp()
    v = rest.weight_g / (rest.kernel.mT @ start.unsqueeze(2)).squeeze(2)
    return sweeps(rest, v, tolerance, most)[0]


def newton_finish(problem: Problem, tolerance: float, most: int) -> Tensor:
    """Steps (B,) of Newton's method on the potentials after a few sweeps, with step halving."""
    v = torch.ones_like(problem.weight_g)
    for _ in range(SWEEPS_BEFORE_NEWTON):
        u, v = problem.sweep(v)
    counts = torch.zeros(len(v))
    for _ in range(most):
        error = problem.error(u, v)
        active = error > tolerance
        if not active.any():
            break
        counts += active
        step = newton_step(problem, u, v)
        best, (new_u, new_v) = error, problem.sweep(v)  # where no step reduces the error, take a sweep
        for scale in (1.0, 0.5, 0.25, 0.125):
            ahead = (u * (scale * step[0]).exp(), v * (scale * step[1]).exp())
            reached = problem.error(*ahead)
            take = (reached < best).unsqueeze(1)
            new_u, new_v = torch.where(take, ahead[0], new_u), torch.where(take, ahead[1], new_v)
            best = torch.minimum(best, reached)
        u, v = torch.where(active.unsqueeze(1), new_u, u), torch.where(active.unsqueeze(1), new_v, v)
    return counts


def newton_step(problem: Problem, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The step of log u and log v; the last entry of log v is fixed, as only sums of the two are determined."""
    plan = u.unsqueeze(2) * problem.kernel * v.unsqueeze(1)
    rows, columns = plan.sum(dim=2), plan.sum(dim=1)
    upper = torch.cat([torch.diag_embed(rows), plan], dim=2)
    system = torch.cat([upper, torch.cat([plan.mT, torch.diag_embed(columns)], dim=2)], dim=1)[:, :-1, :-1]
    wanted = torch.cat([problem.weight_q - rows, problem.weight_g - columns], dim=1)[:, :-1]
    found = torch.linalg.solve(system, wanted)
    size = rows.shape[1]
    return found[:, :size], torch.cat([found[:, size:], torch.zeros_like(found[:, :1])], dim=1)
