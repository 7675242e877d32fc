"""Other solvers of the same problem, for benchmarks/peers.py: how to call each, and its scale of effort.

Legend: B pairs, R regions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import measure

EPSILON = 0.05

#: Cost (B, R, R) and the weights (B, R) of rows and columns, float32.
Problems = tuple[Tensor, Tensor, Tensor]

#: Numbers of iterations to choose from, 5 % apart, and tolerances, three per factor of ten.
CAPS = tuple(sorted({round(1.05**power) for power in range(165)}))
TOLERANCES = tuple(10 ** (-power / 3) for power in range(3, 22))


@dataclass(frozen=True)
class Peer:
    """A solver of another project.

    Attributes:
        package: the package to import; None where torch suffices.
        install: what installs it.
        run: computes plans (B, R, R) of problems at an effort.
        efforts: the scale of effort, ascending.
        effort_is: the unit of that scale.
        batched: whether it solves a batch of problems together.
        most_pairs: number of pairs that are timed at most, as more would take minutes.
    """

    package: str | None
    install: str
    run: Callable[[Problems, float], Tensor]
    efforts: tuple[float, ...] = CAPS
    effort_is: str = "iterations"
    batched: bool = True
    most_pairs: int = 10**9

    def missing(self) -> str | None:
        """Why it cannot be measured on this machine, with what would change that, or None."""
        return measure.missing(self.package, self.install)

    def solve(self, problems: Problems, effort: float, batch: int) -> Tensor:
        """Plans of all problems, `batch` at a time."""
        parts = zip(*(part.split(batch if self.batched else len(part)) for part in problems), strict=True)
        return torch.cat([self.run(part, effort) for part in parts])


def pot_batch(method: str) -> Callable[[Problems, float], Tensor]:
    """POT's batched solver on torch; its tolerance is never met, as the number of iterations is the effort."""

    def run(problems: Problems, effort: float) -> Tensor:
        import ot.batch

        cost, weight_q, weight_g = problems
        settings = {"reg": EPSILON, "max_iter": int(effort), "tol": 0.0, "method": method, "grad": "detach"}
        return ot.batch.solve_batch(cost, a=weight_q, b=weight_g, **settings).plan

    return run


def pot_loop(problems: Problems, effort: float) -> Tensor:
    """POT's `sinkhorn` on numpy, pair by pair, each stopped by its tolerance."""
    import ot

    plans = [
        ot.sinkhorn(weight_q, weight_g, cost, EPSILON, stopThr=effort, numItermax=100_000, warn=False)
        for cost, weight_q, weight_g in zip(*(part.double().numpy() for part in problems), strict=True)
    ]
    return torch.from_numpy(np.stack(plans))


@torch.no_grad()
def torch_batch(problems: Problems, effort: float) -> Tensor:
    """The plain batched iteration in torch, without a test of convergence, which would take time."""
    cost, weight_q, weight_g = problems
    kernel = torch.exp(-cost / EPSILON)
    turned = kernel.mT.contiguous()
    v = torch.ones_like(weight_g).unsqueeze(2)
    row, column = weight_q.unsqueeze(2), weight_g.unsqueeze(2)
    for _ in range(int(effort)):
        u = row / torch.bmm(kernel, v)
        v = column / torch.bmm(turned, u)
    return u * kernel * v.mT


def ott_batch(problems: Problems, effort: float) -> Tensor:
    """OTT's Sinkhorn under vmap and jit, on the CPU."""
    import jax

    return torch.from_numpy(np.array(jax.device_get(_ott(int(effort))(*(part.numpy() for part in problems)))))


_COMPILED: dict[int, Callable[..., object]] = {}


def _ott(iterations: int) -> Callable[..., object]:
    """Compiled once per effort, as in normal use."""
    if iterations not in _COMPILED:
        import jax
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        counts = dict.fromkeys(("min_iterations", "max_iterations", "inner_iterations"), iterations)
        solver = sinkhorn.Sinkhorn(lse_mode=False, threshold=-1.0, **counts)

        def one(cost: object, weight_q: object, weight_g: object) -> object:
            problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=EPSILON), weight_q, weight_g)
            return solver(problem).matrix

        _COMPILED[iterations] = jax.jit(jax.vmap(one))
    return _COMPILED[iterations]


PEERS = {
    "pot_batch": Peer("ot", "pip install POT", pot_batch("sinkhorn")),
    "pot_batch_log": Peer("ot", "pip install POT", pot_batch("log_sinkhorn")),
    "pot_loop": Peer("ot", "pip install POT", pot_loop, TOLERANCES, "tolerance", batched=False, most_pairs=200),
    "torch_batch": Peer(None, "", torch_batch),
    "ott_batch": Peer("ott", "pip install ott-jax", ott_batch),
}
