"""One step of training: embed a share of the batch, gather, loss of the whole batch, gradient, update.

Legend: B images of the whole batch, b images of this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from diml.matching import Regions
from diml.models import Embedder, Features
from diml.models.inference import autocast_type
from diml.objectives import Objective
from diml.training.checkpoints import random_states, set_random_states
from diml.training.config import TrainConfig
from diml.training.optim import freeze_batch_norm, parameters_of
from diml.training.shared import Team


class NonFiniteError(ValueError):
    """Embeddings, loss or gradient are not finite: `step` says when, `paths` which images were in the batch."""

    def __init__(self, what: str, step: int, paths: tuple[Path, ...]) -> None:
        super().__init__(what, step, paths)
        self.what, self.step, self.paths = what, step, paths

    def __str__(self) -> str:
        listed = "\n".join(f"  {path}" for path in self.paths)
        return (
            f"{self.what} in step {self.step}; a lower --lr, --warmup-steps or --clip-norm may help, and "
            f"--skip-non-finite leaves such steps out. The batch:\n{listed}"
        )


@dataclass(frozen=True, eq=False)
class Step:
    """What a step found.

    Attributes:
        loss: of the whole batch; NaN or infinity where the step was left out for that.
        gradient_norm: length of the gradient before clipping.
        fault: why the step was left out; None when it was taken.
        pooled: (B, D) pooled embeddings of the whole batch, without gradient; None when left out.
    """

    loss: float
    gradient_norm: float
    fault: str | None
    pooled: Tensor | None


class Stepper:
    """Takes steps; the same on every process, each with its own images.

    Args:
        config: precision, clip_norm, freeze_batch_norm, skip_non_finite, seed.
        embedder, objective, optimizer: what is trained and how.
        team: the processes.

    Raises:
        ValueError: the objective wants embeddings that are not normalised, of an embedder that averages unit vectors.
    """

    def __init__(
        self, config: TrainConfig, embedder: Embedder, objective: Objective, optimizer: Optimizer, team: Team
    ) -> None:
        self.config, self.team = config, team
        self.embedder, self.objective, self.optimizer = embedder, objective, optimizer
        self.low = autocast_type(config.precision, team.device)
        # Half precision has too few exponents for small gradients: they are scaled up, and down again before the step.
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=self.low is torch.float16)
        self._whole = objective.uses_regions or embedder.config.pooled == "grid_mean"
        if self._whole and objective.unnormalized and not objective.uses_regions:
            raise ValueError(
                f"pooled: {objective.name!r} is for embeddings that are not normalised; take pooled 'backbone', got "
                f"{embedder.config.pooled!r}"
            )

    def step(self, images: Tensor, labels: Tensor, number: int) -> Step:
        """Take one step.

        Args:
            images: (b, 3, H, W) float32, normalised: this process's share of the batch.
            labels: (b,) int64.
            number: which step of the run this is; all randomness of the step follows from it.
        """
        self.embedder.train()
        self.objective.train()
        if self.config.freeze_batch_norm:
            freeze_batch_norm(self.embedder)
        before = self._buffers() if self.config.skip_non_finite else []
        self.optimizer.zero_grad(set_to_none=True)
        step = self._try(images.to(self.team.device, non_blocking=True), labels.to(self.team.device), number)
        if step.fault is not None:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, value in before:
                buffer.copy_(value)  # statistics of batch norm have seen what is not finite
        elif not self.config.freeze_batch_norm:
            self.team.average_buffers(self.embedder)
        return step

    def _try(self, images: Tensor, labels: Tensor, number: int) -> Step:
        reseed(self.config.seed, number, 1 + self.team.rank)  # drop-out differs between the processes
        own = self._embed(images)
        if self.team.any(own is None)[0] or own is None:
            return Step(math.nan, math.nan, "embeddings are not finite", None)
        reseed(self.config.seed, number)  # mining does not
        everything = self.team.gather(own) if isinstance(own, Tensor) else self.team.gather_regions(own)
        loss = self.objective(everything, self.team.gather(labels))
        value = float(loss.detach())
        if self.team.any(not math.isfinite(value))[0]:
            return Step(value, math.nan, f"the loss is {value}", None)
        pooled = everything if isinstance(everything, Tensor) else everything.pooled
        taken = Step(value, 0.0, None, F.normalize(pooled.detach(), dim=1))
        if not loss.requires_grad:  # no pair of the batch counts
            return taken
        self.scaler.scale(loss).backward()
        norm = self._reduced_norm()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            return Step(value, norm, f"the gradient has length {norm}", None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return dataclasses.replace(taken, gradient_norm=norm)

    def _embed(self, images: Tensor) -> Regions | Tensor | None:
        """What the objective compares, (b, D) where that is pooled vectors; None where it is not finite."""
        low = self.low
        with torch.autocast(self.team.device.type, dtype=low, enabled=low is not None):
            if not self._whole:
                pooled = self.embedder.head(self._features(images).pooled).float()
                return pooled if torch.isfinite(pooled).all() else None
            try:
                regions: Regions = self.embedder(images)
            except ValueError:  # Regions refuse what is not finite
                if self._finite(images):
                    raise
                return None
        return regions if self.objective.uses_regions else regions.pooled

    def _features(self, images: Tensor) -> Features:
        features: Features = self.embedder.backbone(images.contiguous(memory_format=torch.channels_last))
        return features

    @torch.no_grad()
    def _finite(self, images: Tensor) -> bool:
        """Whether the embeddings of images and of all their cells are finite."""
        features, head = self._features(images), self.embedder.head
        embedded = (head(features.pooled), head(features.maps.permute(0, 2, 3, 1)))
        return all(bool(torch.isfinite(vectors).all()) for vectors in embedded)

    def _reduced_norm(self) -> float:
        """Bring the gradients of all processes together, clip them, and return their length before that."""
        own = {id(parameter) for parameter in self.embedder.parameters()}
        parameters = parameters_of(self.optimizer)
        self.team.add_gradients(parameter for parameter in parameters if id(parameter) in own)
        self.team.average_gradients(parameter for parameter in parameters if id(parameter) not in own)
        self.scaler.unscale_(self.optimizer)
        longest = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return float(nn.utils.clip_grad_norm_(parameters, longest))

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        both = (*self.embedder.buffers(), *self.objective.buffers())
        return [(buffer, buffer.clone()) for buffer in both]


def reseed(*numbers: int) -> None:
    """Start the global random streams of torch, numpy and Python anew, at a place that belongs to these numbers."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
    np.random.seed(int(state[1] & np.uint64(0xFFFFFFFF)))  # noqa: NPY002  # the miners' library draws from it
    random.seed(int(state[1]))


@contextlib.contextmanager
def own_random_streams(seed: int) -> Iterator[None]:
    """Within the block, the global random streams start from `seed`; afterwards they go on as if nothing had been."""
    before = random_states()
    reseed(seed)
    try:
        yield
    finally:
        set_random_states(before)


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block, the same step gives the same bits again, on the CPU; on GPUs that would cost too much."""
    settings: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # it only costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]
