"""Entropic optimal transport for B small problems (Rq x Rg regions) at once, each stopped on its own error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Largest range of cost / epsilon for the plain kernel exp(-cost / epsilon), beyond which logarithms take over: scaling
#: vectors reach the exponential of twice this range and must stay finite.
PLAIN_RANGE = {torch.float32: 41.0, torch.float64: 300.0}


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """Solutions of B transport problems and how good they are.

    Args:
        plan: (B, Rq, Rg) transported mass, rows = the query's regions; columns sum to their weights to rounding.
        marginal_error: (B,) sum over the rows of |row sum - weight|.
        iterations: (B,) int64, updates of both scaling vectors.
        converged: (B,) bool, marginal_error <= tolerance.
    """

    plan: Tensor
    marginal_error: Tensor
    iterations: Tensor
    converged: Tensor


@torch.no_grad()
def sinkhorn(
    cost: Tensor,
    weight_q: Tensor,
    weight_g: Tensor,
    *,
    epsilon: float = 0.05,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> TransportPlan:
    """Minimise <T, cost> - epsilon H(T) over plans T >= 0 with row sums weight_q and column sums weight_g.

    Each problem stops on its own marginal error: its solution does not depend on its companions in the batch.

    Args:
        cost: (B, Rq, Rg) finite float.
        weight_q, weight_g: (B, Rq) and (B, Rg), non-negative, rows summing to 1; single entries may be zero.
        epsilon: weight of the entropy, in units of cost, > 0.
        tolerance: marginal error at which a problem is done, > 0.
        max_iterations: cap; what has not converged by then is flagged.

    Returns a TransportPlan in float32 (float64 when `cost` is), without gradient; raises ValueError for a setting
    out of range or shapes that disagree. Source: Cuturi, NeurIPS 2013.
    """
    for name, value in (("epsilon", epsilon), ("tolerance", tolerance), ("max_iterations", max_iterations)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: need a positive, finite number, got {value}")
    batch, rows, columns = cost.shape
    if weight_q.shape != (batch, rows) or weight_g.shape != (batch, columns):
        got = f"{tuple(weight_q.shape)} and {tuple(weight_g.shape)}"
        raise ValueError(f"weight_q, weight_g: need ({batch}, {rows}) and ({batch}, {columns}) as cost, got {got}")
    dtype = torch.promote_types(cost.dtype, torch.float32)
    scaled = cost.to(dtype) / -epsilon
    scaled = scaled - scaled.amax(dim=(1, 2), keepdim=True)  # a constant shift of the cost leaves the plan alone
    counts = torch.zeros(batch, dtype=torch.int64, device=cost.device)
    solution = TransportPlan(torch.zeros_like(scaled), scaled.new_zeros(batch), counts, counts.bool())
    needs_log = scaled.amin(dim=(1, 2)) < -PLAIN_RANGE[dtype]
    for log in (False, True):
        index = (needs_log == log).nonzero().flatten()
        if len(index):
            problems = [part[index].to(torch.float64 if log else dtype) for part in (scaled, weight_q, weight_g)]
            _solve(solution, index, problems, log, tolerance, int(max_iterations))
    return solution


def _solve(
    solution: TransportPlan, index: Tensor, problems: list[Tensor], log: bool, tolerance: float, max_iterations: int
) -> None:
    """Alternate u = weight_q / (K v) and v = weight_g / (K' u) until every problem is written into `solution`.

    With `log`, kernel, weights and scaling vectors are logarithms, in float64: at epsilon 1e-3 they reach 2000,
    where float32 would stall. A weight of zero is then -infinity, which passes through without NaN.
    """
    kernel, target, weight_g = problems
    kernel, weight_q, weight_g = (kernel, target.log(), weight_g.log()) if log else (kernel.exp(), target, weight_g)
    row_mass = _row_mass(kernel, torch.full_like(weight_g, 0.0 if log else 1.0), log)
    waiting = torch.ones_like(index, dtype=torch.bool)
    for iteration in range(1, max_iterations + 1):
        u = weight_q - row_mass if log else weight_q / row_mass
        column_mass = _row_mass(kernel.mT, u, log)
        v = weight_g - column_mass if log else weight_g / column_mass
        row_mass = _row_mass(kernel, v, log)
        reached = (u + row_mass).exp() if log else u * row_mass
        error = (reached - target).abs().sum(dim=1)  # the columns hold by construction
        done = waiting if iteration == max_iterations else waiting & (error <= tolerance)
        if not done.any():
            continue
        at, left, right = index[done], u[done].unsqueeze(2), v[done].unsqueeze(1)
        plan = (left + kernel[done] + right).exp() if log else left * kernel[done] * right
        solution.plan[at] = plan.to(solution.plan.dtype)
        solution.marginal_error[at] = error[done].to(solution.marginal_error.dtype)
        solution.iterations[at] = iteration
        solution.converged[at] = error[done] <= tolerance
        waiting = waiting & ~done
        if not waiting.any():
            return
        if waiting.sum() <= 0.7 * len(index):  # finished problems leave the batch, not one by one: copying costs
            state = (index, kernel, weight_q, weight_g, target, row_mass, waiting)
            index, kernel, weight_q, weight_g, target, row_mass, waiting = (part[waiting] for part in state)


def _row_mass(kernel: Tensor, scaling: Tensor, log: bool) -> Tensor:
    """K v, (B, rows) from (B, rows, columns) and (B, columns); logarithms of it for logarithms."""
    if log:
        return torch.logsumexp(kernel + scaling.unsqueeze(1), dim=2)
    return torch.bmm(kernel, scaling.unsqueeze(2)).squeeze(2)
