"""Other engines that score by MaxSim or search by pooled vectors, for benchmarks/peers.py: how to call each.

Legend: Q queries, N gallery images, K candidates, R regions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import measure
from diml.matching import Regions


@dataclass(frozen=True, eq=False)
class Work:
    """What every engine is given: N images, rows (Q,) of the queries, candidates (Q, K), and the depth of a search."""

    images: Regions
    queries: Tensor
    candidates: Tensor
    depth: int


@dataclass(frozen=True)
class Engine:
    """An engine of another project.

    Attributes:
        package: the package to import; None where torch suffices.
        install: what installs it.
        prepare: given the work, does what is done once per gallery and returns what is timed; that returns scores:
            of MaxSim (Q, K), the mean over the query's regions of the largest cosine; of a search (Q, depth), the
            largest pooled cosines, best first.
    """

    package: str | None
    install: str
    prepare: Callable[[Work], Callable[[], Tensor]]

    def missing(self) -> str | None:
        """Why it cannot be measured on this machine, with what would change that, or None."""
        return measure.missing(self.package, self.install)


def maxsim_cpu(work: Work) -> Callable[[], Tensor]:
    """Mixedbread's maxsim-cpu: one query and its candidates a call; gathering them is part of the work, as in ours."""
    import maxsim_cpu as engine

    regions, rows = work.images.dense.float().numpy(), work.candidates.numpy()
    queries = regions[work.queries.numpy()]

    def run() -> Tensor:
        found = [engine.maxsim_scores(query, regions[some]) for query, some in zip(queries, rows, strict=True)]
        return torch.stack([torch.as_tensor(scores) for scores in found]) / regions.shape[1]

    return run


@torch.no_grad()
def torch_maxsim(work: Work) -> Callable[[], Tensor]:
    """The plain form in torch: all cosines of a query with its candidates, then the largest of each region."""
    regions = work.images.dense.float()
    queries = regions[work.queries]

    def run() -> Tensor:
        found = [
            torch.einsum("rd,ksd->krs", query, regions[some]).amax(dim=2).mean(dim=1)
            for query, some in zip(queries, work.candidates, strict=True)
        ]
        return torch.stack(found)

    return run


def faiss_flat(work: Work) -> Callable[[], Tensor]:
    """faiss's exhaustive index of inner products, filled beforehand; one more hit is asked for, the query itself."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    pooled = work.images.pooled.float().contiguous()
    index = faiss.IndexFlatIP(pooled.shape[1])
    index.add(pooled.numpy())
    queries = pooled[work.queries].numpy()
    return lambda: torch.from_numpy(index.search(queries, work.depth + 1)[0])[:, 1:]


@torch.no_grad()
def torch_topk(work: Work) -> Callable[[], Tensor]:
    """One matrix product and `topk` in torch, without the query itself."""
    pooled = work.images.pooled.float()
    queries = pooled[work.queries]
    return lambda: (queries @ pooled.T).topk(work.depth + 1, dim=1).values[:, 1:]


MAXSIM = {
    "maxsim_cpu": Engine("maxsim_cpu", "pip install maxsim-cpu", maxsim_cpu),
    "torch_maxsim": Engine(None, "", torch_maxsim),
}
NEAREST = {
    "faiss_flat": Engine("faiss", "pip install faiss-cpu", faiss_flat),
    "torch_topk": Engine(None, "", torch_topk),
}
