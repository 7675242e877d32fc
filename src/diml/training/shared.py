"""One process or many: who embeds which images, and how all come to see the whole batch.

Every process embeds its share of a batch; the embeddings of all are gathered, with their gradient, and each process
computes the loss of the whole batch. So miners and losses see what they would see in one process, and the gradient of a
weight is the sum of the processes' shares.

Legend: W processes, B images of the whole batch, Q queries.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diml.data import BadImage, ImageSet
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.protocol import HITS_KEPT
from diml.evaluation.report import summarize
from diml.matching import Regions
from diml.matching.retrieval import NOTHING
from diml.models import Embedder


@dataclass(frozen=True)
class Team:
    """This process among its equals; alone when `size` is 1, where every method is a plain copy.

    Attributes:
        rank: 0 to size - 1; rank 0 writes files and prints.
        size: W.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def shares(self, count: int) -> list[slice]:
        """Divide 0 .. count - 1 among the processes, in order, as evenly as possible; one slice each."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def gather(self, own: Tensor) -> Tensor:
        """Join the rows of all processes, in the order of ranks; differentiable.

        Args:
            own: (n, ...), n rows of this process, which may be 0; the other axes alike in all.

        Returns:
            (n_0 + ... + n_W-1, ...), the same everywhere.
        """
        if self.size == 1:
            return own
        counts = torch.zeros(self.size, dtype=torch.int64, device=own.device)
        counts[self.rank] = len(own)
        dist.all_reduce(counts)
        gathered: Tensor = _Gather.apply(own, counts.tolist(), self.rank)
        return gathered

    def gather_regions(self, own: Regions) -> Regions:
        """Join the images of all processes, in the order of ranks; differentiable."""
        if self.size == 1:
            return own
        flat = self.gather(torch.cat([own.dense.flatten(1), own.pooled], dim=1))
        vectors = flat.view(len(flat), own.num_regions + 1, own.dim)
        return Regions(vectors[:, :-1], vectors[:, -1], own.grid)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raised it."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes: each saw its share of the images."""
        self._reduce([p.grad for p in parameters if p.grad is not None], 1.0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that are alike but for rounding, as the objective's are: then they stay alike."""
        self._reduce([p.grad for p in parameters if p.grad is not None], self.size)

    def average_buffers(self, module: nn.Module) -> None:
        """Average the statistics of batch norm, of which each process saw its share."""
        self._reduce([buffer for buffer in module.buffers() if buffer.is_floating_point()], self.size)

    def copy_from_first(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of rank 0."""
        if self.size > 1:
            for value in module.state_dict().values():
                held = value.contiguous()
                dist.broadcast(held, src=0)
                value.copy_(held)

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            self.any(False)

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Run the block in rank 0, then in the others, who find what it has fetched."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @torch.no_grad()
    def _reduce(self, values: Sequence[Tensor], divisor: float) -> None:
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        dist.all_reduce(flat)
        if divisor != 1:
            flat /= divisor
        parts = torch.split(flat, [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))


class _Gather(torch.autograd.Function):
    """all_gather of unequal shares. Backward: all compute the same loss, so its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.size = len(counts)
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rows] / ctx.size, None, None


@contextlib.contextmanager
def join_team(device: str = "auto") -> Iterator[Team]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    A process group that is there already is used and left alone. A script that trains several times under torchrun has
    to make one, as groups made one after another get in each other's way, and to destroy it before Python ends.

    Args:
        device: "auto" for an accelerator where there is one, or a name such as "cuda"; every process takes its own GPU.

    Raises:
        ValueError: there is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1 or dist.is_initialized():
        yield Team(dist.get_rank(), dist.get_world_size(), chosen) if dist.is_initialized() else Team(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, there in backends.items() if there), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error
    several = device.type == "cuda" and device.index is None
    return torch.device("cuda", local_rank) if several else device


@dataclass(frozen=True, eq=False)
class SharedEmbedding:
    """Those images that could be read, in order, the same in every process.

    Attributes:
        regions: N' images.
        images: these N' images.
        kept: (N',) int64, which of all images these are.
    """

    regions: Regions
    images: ImageSet
    kept: Tensor


def embed_shared(
    embedder: Embedder,
    images: ImageSet,
    team: Team,
    *,
    batch_size: int,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> SharedEmbedding:
    """Embed images, each process its share of the batches.

    Whole batches are shared out, so that each is what it would be in one process, and so are its embeddings.

    Args:
        embedder: the same in every process.
        images: what to embed.
        team: the processes.
        batch_size, workers, on_bad_image: as in `Embedder.embed_checked`.
    """
    batches = -(-len(images) // batch_size)
    alone = batches < team.size  # some would have nothing to embed: then all embed all
    share = slice(0, batches) if alone else team.shares(batches)[team.rank]
    rows = range(len(images))[share.start * batch_size : share.stop * batch_size]
    paths = images.paths[rows.start : rows.stop]
    own = embedder.embed_checked(paths, batch_size=batch_size, workers=workers, on_bad_image=on_bad_image)
    warn_of_bad(own.bad)
    kept = (own.kept + rows.start).to(team.device)
    regions = own.regions if alone else team.gather_regions(own.regions)
    kept = kept if alone else team.gather(kept)
    left = images if len(kept) == len(images) else images.subset(kept.cpu().numpy())
    return SharedEmbedding(regions, left, kept)


def warn_of_bad(bad: Iterable[BadImage]) -> None:
    """Name images that cannot be read and are left out."""
    for image in bad:
        warnings.warn(f"left out {image.path}: {image.reason}", stacklevel=2)


def evaluate_shared(
    regions: Regions, images: ImageSet, team: Team, *, rerank: Sequence[int], seed: int, resamples: int = 1000
) -> Report:
    """Evaluate as `evaluate_regions` does, each process its share of the queries; the whole report in every process.

    Args:
        regions: of all images, in every process.
        images: labels, queries and gallery.
        team: the processes.
        rerank, seed, resamples: as in `evaluate_regions`.
    """
    settings: dict[str, Any] = {"rerank": tuple(rerank), "seed": seed}
    sides: dict[str, Any] = {"queries": images.queries, "gallery": images.gallery}
    counted = _queries_with_relevant(images)
    if team.size == 1 or len(counted) < team.size:
        return evaluate_regions(regions, images.labels, resamples=resamples, **sides, **settings)
    own = counted[team.shares(len(counted))[team.rank]]
    everyone = np.arange(len(images))
    gallery = everyone if images.gallery is None else images.gallery
    part = evaluate_regions(regions, images.labels, queries=own, gallery=gallery, resamples=2, **settings)
    queries = everyone if images.queries is None else images.queries
    return _joined(part, queries[~np.isin(queries, counted)], team, seed, resamples)


def _joined(part: Report, without_relevant: Any, team: Team, seed: int, resamples: int) -> Report:
    """One report of the shares of all processes, which follow each other in the order of ranks."""

    def join(own: Any) -> Any:
        return team.gather(torch.from_numpy(own).to(team.device)).cpu().numpy()

    per_query = {k: {metric: join(own) for metric, own in found.items()} for k, found in part.per_query.items()}
    rows, intervals, comparisons = summarize(per_query, resamples, seed)
    return Report(
        rows=rows,
        intervals=intervals,
        comparisons=comparisons,
        per_query=per_query,
        queries=join(part.queries),
        without_relevant=without_relevant,
        hits={k: join(_padded(hits)) for k, hits in part.hits.items()},
        gallery_size=part.gallery_size,
        unfinished_pairs=int(join(np.array([part.unfinished_pairs])).sum()),
        settings=part.settings | {"resamples": resamples},
    )


def _padded(hits: Any) -> Any:
    """Hits of one width in all processes: a share that needed no deep ranking has fewer columns."""
    return np.pad(hits, ((0, 0), (0, HITS_KEPT - hits.shape[1])), constant_values=NOTHING)


def _queries_with_relevant(images: ImageSet) -> Any:
    """(Q,) image indices of the queries that have a image of their class in their gallery."""
    everyone = np.arange(len(images))
    queries = everyone if images.queries is None else images.queries
    gallery = everyone if images.gallery is None else images.gallery
    in_class = np.bincount(images.labels[gallery], minlength=images.num_classes)
    return queries[in_class[images.labels[queries]] - np.isin(queries, gallery) > 0]
