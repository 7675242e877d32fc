"""All pairs of a training batch at once on the CPU: plans by the compiled kernel, cosines by one matrix product.

Cosines and plans stand in one (Q * Rq, G * Rg) matrix each; gradients are written out, so that nothing else of that
size is kept. Where the kernel does not suit, `StructuralSimilarity` and `StructuralDistance` do it by way of torch.

Legend: Q and G images on the two sides, Rq and Rg regions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from diml.matching import Regions, native

#: Added under the root of a distance, so that its gradient stays finite at distance zero. Source: the released code.
ROOT_EPSILON: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How plans are made: see `diml.matching.match`; and whether what they weigh are distances or cosines."""

    marginals: str
    epsilon: float
    tolerance: float
    max_iterations: int
    distance: bool


@dataclass(frozen=True, eq=False)
class PlannedMatrix:
    """(Q, G) sums over the plan of each pair, differentiable, and how many plans stopped above the tolerance."""

    values: Tensor
    unconverged: int


def planned_matrix(
    query: Regions, gallery: Regions, settings: PlanSettings, *, symmetric: bool
) -> PlannedMatrix | None:
    """Sum over each pair's plan its cosines, or its distances; None where the kernel cannot do it.

    Args:
        query, gallery: Q and G images, float32 on the CPU; the same images where `symmetric`.
        settings: of the plans.
        symmetric: pair (j, i) is the mirror image of (i, j) and is not solved again.

    Gradients flow through cosines and distances and not through the plans.
    """
    if not native.suits(query.dense, gallery.dense) or query.dense.dtype != torch.float32:
        return None
    problems = _problems(query, gallery, settings.marginals, symmetric)
    report: dict[str, Any] = {}
    flat_g = query.dense.flatten(0, 1) if symmetric else gallery.dense.flatten(0, 1)
    lengths = (squared_length(query.dense), squared_length(gallery.dense))
    values: Tensor = _PlannedSum.apply(query.dense.flatten(0, 1), flat_g, lengths, problems, settings, report)
    return None if report["too_wide"] else PlannedMatrix(values, report["unconverged"])


class _PlannedSum(torch.autograd.Function):
    """(Q, G) from (Q * Rq, D) and (G * Rg, D): the sum of plan * value of each pair, plan held constant."""

    @staticmethod
    def forward(
        ctx: Any,
        flat_q: Tensor,
        flat_g: Tensor,
        lengths: tuple[Tensor, Tensor],
        problems: native.Problems,
        settings: PlanSettings,
        report: dict[str, Any],
    ) -> Tensor:
        cosine = torch.mm(flat_q, flat_g.T, out=problems.cosine)
        plan = torch.empty_like(cosine)
        solver = (settings.epsilon, settings.tolerance, settings.max_iterations)
        found = native.solve(problems, *solver, plan=plan)
        report |= {"too_wide": bool(found.too_wide.any()), "unconverged": int((~found.converged).sum())}
        queries, images = (len(length) for length in lengths)
        ctx.symmetric, ctx.blocks = problems.mirror_at is not None, (queries, -1, images, problems.regions[1])
        slope = plan
        if settings.distance:
            square = (lengths[0].reshape(-1, 1) + lengths[1].reshape(1, -1)).sub_(cosine, alpha=2)
            beyond = square <= 0
            distance = square.clamp_(min=0).add_(ROOT_EPSILON).sqrt_()
            values = (plan * distance).view(ctx.blocks).sum(dim=(1, 3))
            slope = plan.div_(distance).masked_fill_(beyond, 0).neg_()
        elif ctx.symmetric:
            i, j = torch.triu_indices(queries, queries)
            values = cosine.new_empty(queries, images)
            values[i, j] = values[j, i] = found.structural
        else:
            values = found.structural.view(queries, images)
        ctx.save_for_backward(flat_q, flat_g, slope)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat_q, flat_g, slope = ctx.saved_tensors
        weight = gradients[0] + gradients[0].T if ctx.symmetric else gradients[0]
        weighed = (slope.view(ctx.blocks) * weight[:, None, :, None]).view(len(flat_q), len(flat_g))
        # where both sides are the same images, plans and slopes are symmetric, and one product serves both
        of_g = weighed.T @ flat_q if ctx.needs_input_grad[1] and not ctx.symmetric else None
        return (weighed @ flat_g if ctx.needs_input_grad[0] else None), of_g, None, None, None, None


@torch.no_grad()
def _problems(query: Regions, gallery: Regions, marginals: str, symmetric: bool) -> native.Problems:
    """Where each pair stands in the matrix of cosines, which is yet to be filled, and the masses of its regions."""
    (queries, rows), (images, cols), dim = query.dense.shape[:2], gallery.dense.shape[:2], query.dim
    pairs = torch.triu_indices(queries, images) if symmetric else torch.ones(queries, images).nonzero().T
    i, j = pairs.contiguous()
    stride = images * cols
    cosine_at, mirror_at = i * rows * stride + j * cols, j * rows * stride + i * cols
    if marginals == "uniform":
        mass_q, mass_g = torch.ones(rows), torch.ones(cols)
        mass_q_at = mass_g_at = torch.zeros_like(i)
    else:
        mass_q = query.dense.reshape(-1, dim) @ gallery.pooled.T  # (Q * Rq, G)
        mass_g = query.pooled @ gallery.dense.reshape(-1, dim).T  # (Q, G * Rg)
        mass_q_at, mass_g_at = i * rows * images + j, i * stride + j * cols
    return native.Problems(
        cosine=torch.empty(queries * rows, stride),
        cosine_at=cosine_at,
        stride=stride,
        mass_q=mass_q,
        mass_q_at=mass_q_at,
        mass_q_stride=1 if marginals == "uniform" else images,
        mass_g=mass_g,
        mass_g_at=mass_g_at,
        mass_g_stride=1,
        regions=(rows, cols),
        mirror_at=torch.where(i == j, -1, mirror_at) if symmetric else None,
    )


def squared_length(vectors: Tensor) -> Tensor:
    """Squared length of unit or zero vectors (..., D): (...) of exact ones and zeros."""
    return (vectors.detach().abs().amax(dim=-1) > 0).to(vectors.dtype)
