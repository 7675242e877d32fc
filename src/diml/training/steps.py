"""One training step: embed a share of the batch, gather, loss of the whole batch, gradient, update.

Every process embeds its share of the batch; the embeddings of all are gathered with their gradient, and each process
computes the loss of the whole batch. Miners and losses therefore see what they would see in one process, and the
gradient of a weight of the network is the sum over processes.

Legend: B images of the whole batch, b images of this process.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from diml.distributed import ProcessGroup
from diml.matching import Regions
from diml.models import Embedder
from diml.models.backbones import Features, autocast_type
from diml.objectives import Objective
from diml.training.config import TrainConfig
from diml.training.embedding import gather_regions
from diml.training.optim import freeze_batch_norm, parameters_of
from diml.training.randomness import reseed


class NonFiniteError(ValueError):
    """Embeddings, loss or gradient are not finite; `step` is the step, `images` names those of its batch."""

    def __init__(self, what: str, step: int, images: tuple[str, ...]) -> None:
        super().__init__(what, step, images)
        self.what, self.step, self.images = what, step, images

    def __str__(self) -> str:
        listed = "\n".join(f"  {image}" for image in self.images)
        return (
            f"{self.what} in step {self.step}; a lower --lr, --warmup-steps or --clip-norm may help, and "
            f"--skip-non-finite skips such steps. The batch:\n{listed}"
        )


@dataclass(frozen=True, eq=False)
class Step:
    """Result of a step.

    Attributes:
        loss: of the whole batch; NaN or infinity if that is why the step was skipped.
        gradient_norm: norm of the gradient before clipping.
        fault: why the step was skipped; None if it was taken.
        pooled: (B, D) unit pooled vectors of the whole batch, without gradient; None if the step was skipped.
        empty: it was skipped because no image of the batch could be read.
    """

    loss: float
    gradient_norm: float
    fault: str | None
    pooled: Tensor | None
    empty: bool = False


class Stepper:
    """Takes training steps; every process calls it with its own images.

    Args:
        config: `precision`, `clip_norm`, `freeze_batch_norm`, `skip_non_finite`, `seed`.
        embedder: the network.
        objective: the loss.
        optimizer: of the parameters of both.
        processes: the processes that share the batch.

    Raises:
        ValueError: the objective needs embeddings before normalization, which `pooled="grid_mean"` does not have.
    """

    def __init__(
        self,
        config: TrainConfig,
        embedder: Embedder,
        objective: Objective,
        optimizer: Optimizer,
        processes: ProcessGroup,
    ) -> None:
        self.config, self.processes = config, processes
        self.embedder, self.objective, self.optimizer = embedder, objective, optimizer
        self.low = autocast_type(config.precision, processes.device)
        # Small gradients underflow in half precision: they are scaled up, and down again before the step.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.low is torch.float16)
        self._embeds_regions = objective.uses_regions or embedder.config.pooled == "grid_mean"
        if self._embeds_regions and objective.unnormalized and not objective.uses_regions:
            raise ValueError(
                f"pooled: {objective.name!r} needs embeddings before normalization; use pooled 'backbone', got "
                f"{embedder.config.pooled!r}"
            )

    def step(self, images: Tensor, labels: Tensor, number: int) -> Step:
        """Take one step.

        Args:
            images: (b, 3, H, W) float32, preprocessed: this process's share of the batch; b may be 0, and B too, where
                images cannot be read.
            labels: (b,) int64.
            number: number of the step in the run, from 0; determines all randomness of the step.
        """
        self.embedder.train()
        self.objective.train()
        if self.config.freeze_batch_norm:
            freeze_batch_norm(self.embedder)
        before = self._buffers() if self.config.skip_non_finite else []
        self.optimizer.zero_grad(set_to_none=True)
        step = self._try(images.to(self.processes.device, non_blocking=True), labels.to(self.processes.device), number)
        if step.fault is not None:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, value in before:
                buffer.copy_(value)  # non-finite values have entered the statistics of batch norm
        elif not self.config.freeze_batch_norm:
            self.processes.average_buffers(self.embedder)
        return step

    def _try(self, images: Tensor, labels: Tensor, number: int) -> Step:
        if not self.processes.any(len(images) > 0)[0]:
            return Step(math.nan, math.nan, "no image of the batch can be read", None, empty=True)
        if not len(images):
            self.embedder.eval()  # batch norm has no mean over nothing
        reseed(self.config.seed, number, 1 + self.processes.rank)  # dropout differs between processes
        own = self._embed(images)
        if self.processes.any(own is None)[0] or own is None:
            return Step(math.nan, math.nan, "embeddings are not finite", None)
        reseed(self.config.seed, number)  # mining is the same in all of them
        gathered = self.processes.gather(own) if isinstance(own, Tensor) else gather_regions(own, self.processes)
        loss = self.objective(gathered, self.processes.gather(labels))
        value = float(loss.detach())
        if self.processes.any(not math.isfinite(value))[0]:
            return Step(value, math.nan, f"the loss is {value}", None)
        pooled = gathered if isinstance(gathered, Tensor) else gathered.pooled
        taken = Step(value, 0.0, None, F.normalize(pooled.detach(), dim=1))
        if not loss.requires_grad:  # no pair of the batch contributes
            return taken
        self.scaler.scale(loss).backward()
        norm = self._reduced_norm()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            return Step(value, norm, f"the gradient has norm {norm}", None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return dataclasses.replace(taken, gradient_norm=norm)

    def _embed(self, images: Tensor) -> Regions | Tensor | None:
        """The input of the objective, regions or (b, D) pooled vectors; None if it is not finite."""
        low = self.low
        with torch.autocast(self.processes.device.type, dtype=low, enabled=low is not None):
            if not self._embeds_regions:
                pooled = self.embedder.head(self._features(images).pooled).float()
                return pooled if torch.isfinite(pooled).all() else None
            try:
                regions: Regions = self.embedder(images)
            except ValueError:  # Regions raises it for non-finite values
                if self._finite(images):
                    raise
                return None
        return regions if self.objective.uses_regions else regions.pooled

    def _features(self, images: Tensor) -> Features:
        features: Features = self.embedder.backbone(images.contiguous(memory_format=torch.channels_last))
        return features

    @torch.no_grad()
    def _finite(self, images: Tensor) -> bool:
        """Whether the embeddings of the images and of all their cells are finite."""
        features, head = self._features(images), self.embedder.head
        embedded = (head(features.pooled), head(features.maps.permute(0, 2, 3, 1)))
        return all(bool(torch.isfinite(vectors).all()) for vectors in embedded)

    def _reduced_norm(self) -> float:
        """Reduce the gradients over processes, clip them, and return their norm before clipping."""
        own = {id(parameter) for parameter in self.embedder.parameters()}
        parameters = parameters_of(self.optimizer)
        self.processes.add_gradients(parameter for parameter in parameters if id(parameter) in own)
        self.processes.average_gradients(parameter for parameter in parameters if id(parameter) not in own)
        self.scaler.unscale_(self.optimizer)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        both = (*self.embedder.buffers(), *self.objective.buffers())
        return [(buffer, buffer.clone()) for buffer in both]
