"""One process or several: the processes that torchrun started, as one group for training, evaluation and indexing.

Legend: W processes.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ProcessGroup", "process_group"]


class FirstProcessError(ValueError):
    """The first of several processes has failed, so the others stop; its own error says why."""

    def __init__(self) -> None:
        super().__init__("the first of the processes has failed; its message says why")


@dataclass(frozen=True)
class ProcessGroup:
    """This process and its peers; with `size` 1 every collective operation returns its argument.

    Args:
        rank: 0 to size - 1; rank 0 writes files and prints.
        size: W.
        device: the device of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shares(self, count: int) -> list[slice]:
        """Split 0 .. count - 1 into contiguous shares, in rank order, as evenly as possible; one slice a process."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def strided(self, count: int) -> range:
        """The items of 0 .. count - 1 that are this process's when every W-th item is its own."""
        return range(self.rank, count, self.size)

    def gather(self, own: Tensor) -> Tensor:
        """Concatenate the rows of all processes in rank order; differentiable.

        Args:
            own: (n, ...) rows of this process; n may be 0 and may differ between processes, the other axes may not.

        Returns:
            (n_0 + ... + n_{W-1}, ...), the same in every process.
        """
        if self.size == 1:
            return own
        counts = torch.zeros(self.size, dtype=torch.int64, device=own.device)
        counts[self.rank] = len(own)
        dist.all_reduce(counts)
        gathered: Tensor = _Gather.apply(own, counts.tolist(), self.rank)
        return gathered

    def gather_objects(self, own: Any) -> list[Any]:
        """Objects of all processes (plain values, arrays, dataclasses of these), in rank order; waits for all."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is true in any process."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes, each of which embedded its share of the images."""
        self._reduce([p.grad for p in parameters if p.grad is not None], 1.0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that are equal up to rounding, such as the objective's, so that they stay equal."""
        self._reduce([p.grad for p in parameters if p.grad is not None], self.size)

    def average_buffers(self, module: nn.Module) -> None:
        """Average the statistics of batch norm, which each process computed from its share of the images."""
        self._reduce([buffer for buffer in module.buffers() if buffer.is_floating_point()], self.size)

    def copy_from_first(self, module: nn.Module) -> None:
        """Broadcast the parameters and buffers of rank 0 to all processes."""
        if self.size > 1:
            for value in module.state_dict().values():
                held = value.contiguous()
                dist.broadcast(held, src=0)
                value.copy_(held)

    def wait(self) -> None:
        """Block until every process has come here."""
        if self.size > 1:
            self.any(False)

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Run the block in rank 0 first, then in the others, which find what it has fetched or written.

        Raises:
            FirstProcessError: in the other processes, if the block failed in rank 0, where its own error is raised.
        """
        if not self.is_first:
            if self.any(False)[0]:
                raise FirstProcessError
            yield
            return
        failed = True
        try:
            yield
            failed = False
        finally:
            self.any(failed)

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
    """all_gather of unequal shares. Backward: every process computes the same loss, so the gradient is their mean."""

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
def process_group(device: str = "auto", *, timeout: datetime.timedelta | None = None) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, if it did; leave the group at the end.

    An existing torch.distributed group is used and left alone. A script that trains several times under torchrun has
    to create one itself (groups created one after another interfere with each other) and to destroy it before Python
    exits: otherwise the threads of the group can abort the interpreter.

    Args:
        device: "auto" for an accelerator where there is one, or a name such as "cuda"; every process takes its own GPU.
        timeout: of collective operations; torch's own by default. Long where shares of the work differ in duration.

    Raises:
        ValueError: there is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)
        return
    if size == 1:
        yield ProcessGroup(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, available in backends.items() if available), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available ({str(error).splitlines()[0]}); use cpu") from error
    several = device.type == "cuda" and device.index is None
    return torch.device("cuda", local_rank) if several else device
