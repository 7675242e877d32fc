"""Optimal transport of B small problems (Rq x Rg regions) at a time: entropic, each stopped on its own error, or exact.

On the CPU the compiled kernel does the same, step for step (`csrc/transport.hpp`, `csrc/exact.hpp`); this file and
`exact.py` are its readable twins.

Legend: B problems, Rq rows (regions of the query) and Rg columns (regions of the gallery image) of each.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diml.matching import exact, native
from diml.matching.partial import Dustbins, Share, check_share, unmatched

#: Defaults of the solver, which `Matcher` takes over: epsilon in units of cosine, marginal error, iterations.
EPSILON, TOLERANCE, MAX_ITERATIONS = 0.05, 4e-6, 1000
#: Below, no number of iterations converges in practice, and from 1e-20 on rounding makes the plan meaningless (1e-39:
#: NaN in float32). 0 stands for the limit, which is computed exactly.
SMALLEST_EPSILON = 1e-6

#: Largest range of cost / epsilon for the plain kernel exp(-cost / epsilon), beyond which logarithms take over: scaling
#: vectors reach the exponential of twice this range and must stay finite.
PLAIN_RANGE = {torch.float32: 41.0, torch.float64: 300.0}

#: The first MIXING iterations are mixed (see `_Mixture`), the later ones over-relaxed: slower, but certain to converge.
MIXING = 100
#: Mixing: every MIX_EVERY-th iteration; changes kept, which are dropped where the error grew by more than GROWN; the
#: share of the trace that is added to the diagonal; bounds of a residual; the largest step back of log v.
MIX_EVERY, MIXED, GROWN, RIDGE, LEAST, MOST, FURTHEST = 2, 4, 1.5, 1e-6, -0.75, 2.0, 1.0

#: Over-relaxation: iterations before the first estimate of the rate of convergence, and between further ones; bound of
#: a relative step; damping where the error grew; the slowest rate that it is tuned for.
FIRST_ESTIMATE, ESTIMATE_EVERY, STEP, DAMPING, SLOWEST = 4, 4, 0.5, 0.7, 0.9999

#: Device types where torch.compile fuses the element-wise part of an iteration; the CPU has the compiled kernel.
COMPILED_ON = {"cuda"}
_compiled: Callable[..., tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """Solutions of B transport problems, and how far each has converged.

    Args:
        plan: (B, Rq, Rg) transported mass, rows = the query's regions; row sums equal the weights up to rounding; where
            not all mass is transported, they are at most the weights. Of MaxSim (see `maxsim`) the whole sums to 1, and
            rows and columns do not sum to the weights.
        marginal_error: (B,) sum over the columns of |column sum - weight|; a dustbin is a column as well. 0 of MaxSim.
        iterations: (B,) int64, updates of both scaling vectors; of an exact plan the shortest paths that led to it; 0
            of MaxSim.
        converged: (B,) bool, marginal_error <= tolerance; true of every exact plan and of MaxSim.
        potential_q, potential_g: (B, Rq) and (B, Rg) float64 dual prices of an exact plan, else None. The reduced cost
            of two regions, cost - potential_q - potential_g, is at least -1e-10 of the range of the costs and zero to
            that precision where mass flows. It is the amount of cosine by which two regions would have to be more
            alike before they were matched. The prices of a side, weighted by its masses, sum to half of the cost.
            Where not all mass is transported, every region that keeps some has the same price, the highest of its side
            and the same on both: half of the cost from which on two regions are not matched. The prices of both sides,
            weighted by the mass that is transported, then sum to the cost.
        unmatched_q, unmatched_g: (B, Rq) and (B, Rg) mass that is not transported; None where all of it is (share 1).
    """

    plan: Tensor
    marginal_error: Tensor
    iterations: Tensor
    converged: Tensor
    potential_q: Tensor | None = field(default=None, kw_only=True)
    potential_g: Tensor | None = field(default=None, kw_only=True)
    unmatched_q: Tensor | None = field(default=None, kw_only=True)
    unmatched_g: Tensor | None = field(default=None, kw_only=True)


@torch.no_grad()
def exact_transport(cost: Tensor, weight_q: Tensor, weight_g: Tensor, *, share: Share = 1.0) -> TransportPlan:
    """Minimise <T, cost> over plans T >= 0 with row sums weight_q and column sums weight_g: the limit epsilon -> 0.

    With a share below 1, the sums are at most these and the mass of the plan is the share. With "auto", they are at
    most these, and <T, cost - level> is minimised, where level is 1 - `partial.auto_threshold` of the pair.

    A plan has at most Rq + Rg - 1 entries. Ties are settled in one way: exchanging the two sides transposes the plan,
    unless the problem is its own transpose. The work is done in float64 on the CPU: by the compiled kernel, or in plain
    Python, which is some hundred times slower.

    Args:
        cost: (B, Rq, Rg) finite float, on any device.
        weight_q, weight_g: (B, Rq) and (B, Rg), non-negative, rows summing to 1; single entries may be zero.
        share: of the mass that is transported, in (0, 1], or "auto", for which a cost has to be 1 - cosine.

    Returns:
        TransportPlan in float32 (float64 when `cost` is), without gradient, with potentials; sums hold to rounding.

    Raises:
        ValueError: shapes that disagree, or a share out of range.

    Source: successive shortest paths as of Jonker and Volgenant, Computing 1987, for masses.

    Example:
        >>> found = exact_transport(1 - cosine, weight_q, weight_g)
        >>> reduced = 1 - cosine - found.potential_q.unsqueeze(2) - found.potential_g.unsqueeze(1)
    """
    check_share(share)
    _check_weights(cost, weight_q, weight_g)
    dtype = torch.promote_types(cost.dtype, torch.float32)
    problem = [part.detach().to("cpu", torch.float64).contiguous() for part in (cost, weight_q, weight_g)]
    bins = None if share == 1 else Dustbins.of(problem[0], problem[1], problem[2], share)
    if bins is not None:
        problem = [bins.exact_costs(problem[0]), bins.with_mass(problem[1]), bins.with_mass(problem[2])]
    found = native.solve_exact(*problem) if native.suits() else _solve_exactly(*problem)
    plan = found.plan.to(dtype)
    error = (plan.sum(dim=1, dtype=torch.float64) - problem[2]).abs().sum(dim=1).to(dtype)
    iterations = found.iterations.long()
    results = (plan, error, iterations, torch.ones_like(iterations, dtype=torch.bool))
    potential_q, potential_g = (side.to(cost.device) for side in (found.potential_q, found.potential_g))
    on_device = (result.to(cost.device) for result in results)
    solution = TransportPlan(*on_device, potential_q=potential_q, potential_g=potential_g)
    return solution if bins is None else _without_dustbins(solution, bins, weight_q, weight_g)


def _solve_exactly(cost: Tensor, weight_q: Tensor, weight_g: Tensor) -> native.ExactPlans:
    """The twin of `native.solve_exact`, problem by problem."""
    parts = (cost, weight_q, weight_g)
    solved = [exact.solve(*problem) for problem in zip(*(part.tolist() for part in parts), strict=True)]
    plans, *potentials = (
        torch.tensor([getattr(each, name) for each in solved], dtype=torch.float64).view(like.shape)
        for name, like in zip(("plan", "potential_q", "potential_g"), parts, strict=True)
    )
    paths = torch.tensor([each.paths for each in solved], dtype=torch.int32)
    return native.ExactPlans(plans, potentials[0], potentials[1], paths)


def _without_dustbins(found: TransportPlan, bins: Dustbins, weight_q: Tensor, weight_g: Tensor) -> TransportPlan:
    """The regions' part of the solutions of problems with dustbins, whose masses summed to 1 there."""
    plan = found.plan[:, :-1, :-1] * bins.total
    left_q, left_g = unmatched(plan, weight_q.to(plan), weight_g.to(plan))
    prices: dict[str, Tensor] = {}
    if found.potential_q is not None and found.potential_g is not None:
        shift = (found.potential_q[:, -1:] - found.potential_g[:, -1:]) / 2  # both dustbins get the same price
        prices = {"potential_q": found.potential_q[:, :-1] - shift, "potential_g": found.potential_g[:, :-1] + shift}
    error = found.marginal_error * bins.total
    return replace(found, plan=plan, marginal_error=error, unmatched_q=left_q, unmatched_g=left_g, **prices)


@torch.no_grad()
def sinkhorn(
    cost: Tensor,
    weight_q: Tensor,
    weight_g: Tensor,
    *,
    epsilon: float = EPSILON,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    share: Share = 1.0,
) -> TransportPlan:
    """Minimise <T, cost> - epsilon H(T) over plans T >= 0 with row sums weight_q and column sums weight_g.

    Each problem stops on its own marginal error: its solution does not depend on its companions in the batch. With a
    share, T is extended by dustbins (see `partial`), and its entropy is that of all its entries.

    Args:
        cost: (B, Rq, Rg) finite float.
        weight_q, weight_g: (B, Rq) and (B, Rg), non-negative, rows summing to 1; single entries may be zero.
        epsilon: weight of the entropy, in units of cost, at least `SMALLEST_EPSILON`.
        tolerance: marginal error at which a problem has converged, > 0.
        max_iterations: limit; problems that have not converged by then are flagged.
        share: of the mass that is transported, in (0, 1], or "auto", for which a cost has to be 1 - cosine.

    Returns a TransportPlan in float32 (float64 when `cost` is), without gradient; raises ValueError for a setting
    out of range or shapes that disagree. Source: Cuturi, NeurIPS 2013; mixing: Anderson, J. ACM 1965;
    over-relaxation: Thibault et al., 2021.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon: need a positive, finite number, got {epsilon}; exact_transport needs none")
    check_solver(epsilon, tolerance, max_iterations)
    check_share(share)
    _check_weights(cost, weight_q, weight_g)
    if not native.suits(cost, weight_q, weight_g):
        return _sinkhorn_torch(cost, weight_q, weight_g, epsilon, tolerance, max_iterations, share)
    plan = torch.empty(cost.shape)
    settings = native.SolverSettings(epsilon, tolerance, max_iterations, share)
    found = native.solve(cost, weight_q, weight_g, settings, plan=plan)
    solution = TransportPlan(plan, found.marginal_error, found.iterations.long(), found.converged)
    if found.too_wide.any():
        left = found.too_wide
        others = _sinkhorn_torch(cost[left], weight_q[left], weight_g[left], epsilon, tolerance, max_iterations, share)
        for name in ("plan", "marginal_error", "iterations", "converged"):
            getattr(solution, name)[left] = getattr(others, name)
    if share == 1:
        return solution
    left_q, left_g = unmatched(plan, weight_q, weight_g)
    return replace(solution, unmatched_q=left_q, unmatched_g=left_g)


def _sinkhorn_torch(
    cost: Tensor,
    weight_q: Tensor,
    weight_g: Tensor,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
    share: Share,
) -> TransportPlan:
    """`sinkhorn` in torch: the twin of `native.solve`, and what its float32 cannot hold."""
    dtype = torch.promote_types(cost.dtype, torch.float32)
    problem, bins = [cost.to(dtype), weight_q, weight_g], None
    if share != 1:
        bins = Dustbins.of(problem[0], weight_q.to(dtype), weight_g.to(dtype), share)
        problem = [bins.extended(problem[0], torch.inf), bins.with_mass(weight_q), bins.with_mass(weight_g)]
        tolerance = tolerance / bins.total
    plan, index = problem[0].new_empty(problem[0].shape), torch.arange(len(cost), device=cost.device)
    found = TransportPlan(plan, plan.new_empty(len(cost)), torch.empty_like(index), torch.empty_like(index).bool())
    scaled = problem[0] / -epsilon
    scaled = scaled - scaled.amax(dim=(1, 2), keepdim=True)  # a constant shift of the cost leaves the plan alone
    needs_log = scaled.masked_fill(scaled.isinf(), 0).amin(dim=(1, 2)) < -PLAIN_RANGE[dtype]
    for log in (False, True):
        chosen = needs_log == log
        if chosen.any():
            parts = [part[chosen].to(torch.float64 if log else dtype) for part in (scaled, *problem[1:])]
            _solve(found, index[chosen], parts, log, tolerance, max_iterations)
    return found if bins is None else _without_dustbins(found, bins, weight_q, weight_g)


def check_solver(epsilon: float, tolerance: float, max_iterations: int) -> None:
    """Raise ValueError for a setting of the solver that is out of range; epsilon 0 stands for the exact plan."""
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon: need a finite number of at least 0, got {epsilon}; 0 stands for exact plans")
    if 0 < epsilon < SMALLEST_EPSILON:
        raise ValueError(f"epsilon: need 0, for exact plans, or at least {SMALLEST_EPSILON:g}, got {epsilon}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance: need a positive, finite number, got {tolerance}")
    if not isinstance(max_iterations, numbers.Integral) or max_iterations < 1:
        raise ValueError(f"max_iterations: need an integer of at least 1, got {max_iterations}")


def _check_weights(cost: Tensor, weight_q: Tensor, weight_g: Tensor) -> None:
    """Raise ValueError where the weights do not fit costs (B, Rq, Rg)."""
    batch, rows, columns = cost.shape
    if weight_q.shape != (batch, rows) or weight_g.shape != (batch, columns):
        got = f"{tuple(weight_q.shape)} and {tuple(weight_g.shape)}"
        raise ValueError(f"weight_q, weight_g: need ({batch}, {rows}) and ({batch}, {columns}) as cost, got {got}")


def _solve(
    solution: TransportPlan, index: Tensor, problems: list[Tensor], log: bool, tolerance: float, max_iterations: int
) -> None:
    """Alternate u = weight_q / (K v) and v = weight_g / (K' u), in fewer steps, until all is written into `solution`.

    The last update of u is plain, so that the rows hold. With `log`, kernel, weights and scaling vectors are
    logarithms, in float64: at epsilon 1e-3 they reach 2000, where float32 would stall.
    """
    kernel, weight_q, target = problems
    kernel, weight_q, weight_g = (kernel, weight_q.log(), target.log()) if log else (kernel.exp(), weight_q, target)
    u, v = (torch.full_like(weight, 0.0 if log else 1.0) for weight in (weight_q, weight_g))
    relaxation = last = torch.ones_like(target[:, 0])
    over, waiting = relaxation - 1, torch.ones_like(index, dtype=torch.bool)
    mixture, updated = _Mixture.start(target), _updater(kernel.device)
    for iteration in range(max_iterations + 1):  # iterations that are done
        u, _ = updated(u, _row_mass(kernel, v, log), weight_q, over, log)
        mass_g = _row_mass(kernel.mT, u, log)
        plain_v, reached = updated(v, mass_g, weight_g, torch.zeros_like(over), log)
        error = (reached - target).abs().sum(dim=1)
        good = error <= tolerance if iteration else torch.zeros_like(waiting)
        done = waiting if iteration == max_iterations else waiting & good & (over == 0)
        if done.any():
            at, left, right = index[done], u[done].unsqueeze(2), v[done].unsqueeze(1)
            plan = (left + kernel[done] + right).exp() if log else left * kernel[done] * right
            solution.plan[at] = plan.to(solution.plan.dtype)
            solution.marginal_error[at] = error[done].to(solution.marginal_error.dtype)
            solution.iterations[at] = iteration
            solution.converged[at] = good[done]
            waiting = waiting & ~done
            if not waiting.any():
                return
        if iteration < MIXING:
            back = mixture.back(reached, target, error)
            v = plain_v - back if log else plain_v * back.neg().exp()
        else:
            relaxation, last = _paced(relaxation, last, error, iteration - MIXING)
            over = (relaxation - 1).masked_fill(good | (iteration + 1 == max_iterations), 0)
            v, _ = updated(v, mass_g, weight_g, over, log)
        if waiting.sum() <= 0.7 * len(index):  # finished problems leave the batch, not one by one: copying costs
            state = (index, kernel, weight_q, weight_g, target, u, v, relaxation, last, over, waiting)
            kept = (part[waiting] for part in state)
            mixture = mixture.keep(waiting)
            index, kernel, weight_q, weight_g, target, u, v, relaxation, last, over, waiting = kept


@dataclass(eq=False)
class _Mixture:
    """Anderson's acceleration of the steps of v, or log v: the last `MIXED` changes that cancel a residual best.

    Every second step stays plain: hardly more iterations are needed, and these cost less.

    Attributes:
        residual, step: (B, Rg) target / reached - 1 within bounds, and how far log v went with it.
        change, motion: (B, MIXED, Rg) of the residual and of log v, from iteration to iteration.
        before: (B,) error of the iteration before; where it grew by more than `GROWN`, what was seen is forgotten.
    """

    residual: Tensor
    step: Tensor
    change: Tensor
    motion: Tensor
    before: Tensor
    seen: int = 0

    @classmethod
    def start(cls, target: Tensor) -> _Mixture:
        """Nothing seen yet of problems with weights `target` (B, Rg)."""
        history = target.new_zeros(len(target), MIXED, target.shape[1])
        nothing, before = torch.zeros_like(target), torch.full_like(target[:, 0], torch.inf)
        return cls(nothing, nothing, history, history.clone(), before)

    def keep(self, which: Tensor) -> _Mixture:
        """Of some of the problems."""
        parts: dict[str, Any] = {name: part[which] for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **parts)

    def back(self, reached: Tensor, target: Tensor, error: Tensor) -> Tensor:
        """(B, Rg): log v has to go back by so much from its plain step."""
        residual = (torch.where(reached > 0, target / reached, 0) - 1).clamp(LEAST, MOST)
        back = torch.zeros_like(residual)
        if self.seen:
            slot, change = self.seen % MIXED, residual - self.residual
            self.motion[:, slot], self.change[:, slot] = self.step + change, change
        if self.seen and self.seen % MIX_EVERY == 0:
            grown = (error > self.before * GROWN).view(-1, 1, 1)
            self.change.masked_fill_(grown, 0), self.motion.masked_fill_(grown, 0)
            weighted = self.change * target.unsqueeze(1)
            gram = weighted @ self.change.mT
            ridge = gram.diagonal(dim1=1, dim2=2).sum(dim=1) * RIDGE + 1e-30
            system = gram + torch.diag_embed(ridge.unsqueeze(1).expand(-1, MIXED))
            mixture = torch.linalg.solve_ex(system, weighted @ residual.unsqueeze(2)).result
            drift = self.motion @ target.unsqueeze(2)  # only trades scale between u and v
            back = ((self.motion - drift) * mixture).sum(dim=1).clamp(-FURTHEST, FURTHEST)
        self.residual, self.step, self.before, self.seen = residual, residual - back, error, self.seen + 1
        return back


def _updater(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """`_updated`, compiled into one pass over memory on the device types of `COMPILED_ON`."""
    global _compiled
    if device.type not in COMPILED_ON:
        return _updated
    if _compiled is None:
        _compiled = torch.compile(_updated, dynamic=True)
    return _compiled


def _updated(scale: Tensor, mass: Tensor, target: Tensor, over: Tensor, log: bool) -> tuple[Tensor, Tensor]:
    """New scaling vector, scale * (target / reached)^(1 + over) to first order, and what the old one reached.

    Positive for any ratio, and 0 where the target is. `over` 0 is Sinkhorn's own step.
    """
    over = over.unsqueeze(1)
    if log:
        ratio = torch.where(target.isinf(), target, target - (scale + mass))
        return scale + ratio + torch.log1p(over * torch.expm1(ratio).clamp(-STEP, STEP)), (scale + mass).exp()
    reached = scale * mass
    ratio = torch.where(reached > 0, target / reached, 0)
    return scale * ratio * (1 + over * (ratio - 1).clamp(-STEP, STEP)), reached


def _paced(relaxation: Tensor, last: Tensor, error: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
    """The relaxation that is best for the rate of convergence seen since `last`, and the error to compare with next.

    Source: the theory of successive over-relaxation; Young, "Iterative Solution of Large Linear Systems", 1971.
    """
    if iteration == FIRST_ESTIMATE - 1:
        return relaxation, error
    again = iteration > FIRST_ESTIMATE and (iteration + 1) % ESTIMATE_EVERY == 0
    if iteration != FIRST_ESTIMATE and not again:
        return relaxation, last
    rate = (error / last).clamp_min(1e-6)
    if again:
        rate, last = rate ** (1 / ESTIMATE_EVERY), error
    theta = ((rate + relaxation - 1).square() / (relaxation.square() * rate)).clamp_max(SLOWEST)
    best = torch.maximum(relaxation, 2 / (1 + (1 - theta).sqrt()))
    grown = torch.where(rate > relaxation - 1, best, relaxation)
    return torch.where(rate >= 1, 1 + (relaxation - 1) * DAMPING, grown), last


def _row_mass(kernel: Tensor, scaling: Tensor, log: bool) -> Tensor:
    """K v, (B, rows) from (B, rows, columns) and (B, columns); logarithms of it for logarithms."""
    if log:
        return torch.logsumexp(kernel + scaling.unsqueeze(1), dim=2)
    return torch.bmm(kernel, scaling.unsqueeze(2)).squeeze(2)
