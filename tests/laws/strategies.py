"""Hypothesis generators of image pairs, from ordinary to degenerate, and of problems whose answer is known.

Legend: B pairs, Rq x Rg regions of the two sides, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from diml.matching import Regions

#: Kinds of pairs. "basis": one-hot vectors, cosines exactly 0 or 1. "opposite": no region agrees with the other
#: image, so there is no mass. "blank": zero vectors among the regions. "similar": noisy copies, slow to solve.
KINDS = ("random", "similar", "basis", "duplicates", "opposite", "blank")

seeds = st.integers(0, 2**31)


@dataclass(frozen=True)
class Known:
    """A problem and its plan."""

    query: Regions
    gallery: Regions
    weights: str | tuple[Tensor, Tensor]
    plan: Tensor


def pair(kind: str, rows: int, columns: int, dim: int, seed: int, dtype: torch.dtype = torch.float64):
    """One pair (query, gallery) of the given kind, N = 1 on both sides."""
    generator = torch.Generator().manual_seed(seed)
    dense_q, dense_g = (torch.randn(1, n, dim, generator=generator, dtype=torch.float64) for n in (rows, columns))
    again = torch.arange(columns) % rows
    if kind == "similar":
        dense_g = dense_q[:, again] + 0.1 * dense_g
    elif kind == "basis":
        dense_q, dense_g = (torch.nn.functional.one_hot(d.argmax(-1), dim).double() for d in (dense_q, dense_g))
    elif kind == "duplicates":
        dense_q = dense_q[:, :1].expand(1, rows, dim)
        dense_g = dense_q[:, :1].expand(1, columns, dim)
    elif kind == "opposite":
        dense_q = dense_q.abs()
        dense_g = -dense_q[:, again]
    elif kind == "blank":
        dense_q, dense_g = (d * (d[..., :1] > 0) for d in (dense_q, dense_g))
    query, gallery = (Regions.normalized(dense, dense.mean(dim=1)) for dense in (dense_q, dense_g))
    return query.to(dtype), gallery.to(dtype)


@st.composite
def pairs(draw, kinds=KINDS, dtype=torch.float64, max_pairs=4, max_regions=9):
    """(query, gallery), B pairs of mixed kinds and difficulty; Rq, Rg and D vary."""
    rows, columns, dim = draw(st.tuples(*[st.integers(1, max_regions)] * 2, st.integers(1, 8)))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=max_pairs))
    seed = draw(seeds)
    sides = [pair(kind, rows, columns, dim, seed + i, dtype) for i, kind in enumerate(chosen)]
    return tuple(Regions.cat(side) for side in zip(*sides, strict=True))


@st.composite
def maps(draw, dtype=torch.float64):
    """Feature maps (N, D, H, W) as behind a ReLU: non-negative, with blank cells and blank images."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(seeds))
    return torch.randn(shape, generator=generator, dtype=dtype).relu()


@st.composite
def permutations(draw):
    """Orthogonal regions, shuffled: with uniform weights and little entropy the plan is the permutation / R."""
    size = draw(st.integers(1, 9))
    order = torch.tensor(draw(st.permutations(range(size))))
    generator = torch.Generator().manual_seed(draw(seeds))
    dense = torch.linalg.qr(torch.randn(size + 2, size + 2, generator=generator, dtype=torch.float64))[0]
    query = Regions.normalized(dense[None, :size], dense[None, :size].mean(1))
    gallery = Regions(query.dense[:, order], query.pooled)
    return Known(query, gallery, "uniform", torch.eye(size, dtype=torch.float64)[None, :, order] / size)


@st.composite
def diracs(draw):
    """All mass in one region of each side: the plan is that one entry, whatever the cosines."""
    query, gallery = draw(pairs(max_pairs=1))
    row, column = (draw(st.integers(0, side.num_regions - 1)) for side in (query, gallery))
    weight_q = torch.zeros(1, query.num_regions, dtype=torch.float64)
    weight_g = torch.zeros(1, gallery.num_regions, dtype=torch.float64)
    weight_q[0, row] = weight_g[0, column] = draw(st.floats(1e-6, 1e6))
    return Known(query, gallery, (weight_q, weight_g), torch.outer(weight_q[0] > 0, weight_g[0] > 0)[None].double())


@st.composite
def duplicates(draw):
    """All costs equal: the plan is the product of the weights."""
    query, gallery = draw(pairs(kinds=("duplicates",)))
    generator = torch.Generator().manual_seed(draw(seeds))
    weights = [torch.rand(len(s), s.num_regions, generator=generator).double() for s in (query, gallery)]
    unit = [weight / weight.sum(dim=1, keepdim=True) for weight in weights]
    return Known(query, gallery, tuple(weights), unit[0].unsqueeze(2) * unit[1].unsqueeze(1))
