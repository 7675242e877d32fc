"""Parameter groups, optimizers, and learning rates as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from diml.models import Embedder
from diml.objectives import Objective
from diml.training.config import TrainConfig

_MOMENTUM = 0.9


def build_optimizer(config: TrainConfig, embedder: Embedder, objective: Objective) -> Optimizer:
    """Build the optimizer, with separate learning rates for backbone, head and objective.

    The objective's parameters have no weight decay, as in the authors' code. The base learning rate of a group is
    stored in it as `initial_lr`, for `set_learning_rates`.

    Raises:
        ValueError: there is nothing to train.
    """
    head = {"params": _trainable(embedder.head), "lr": config.head_lr or config.lr}
    groups: list[dict[str, Any]] = [{"params": _trainable(embedder.backbone), "lr": config.lr}, head]
    own = {} if config.loss_lr is None else {"lr": config.loss_lr}
    groups += [group | own for group in objective.parameter_groups(config.lr)]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("head: nothing to train; use head 'linear', or a backbone with trainable parameters")
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=_MOMENTUM, **settings)
    else:
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, **settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


@dataclass(frozen=True)
class Schedule:
    """Factor of the base learning rates at each step; a function of the step alone, so nothing of it is saved.

    Args:
        config: `schedule`, `warmup_steps`, `milestones`, `gamma`, `epochs`.
        steps_per_epoch: batches per epoch.

    Example:
        >>> Schedule(TrainConfig(dataset="orl", schedule="cosine", epochs=2), steps_per_epoch=5).factor(5)
        0.5
    """

    config: TrainConfig
    steps_per_epoch: int

    def factor(self, step: int) -> float:
        """Return the factor of a step, from 0; warm-up rises linearly to 1 in `warmup_steps` steps."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        if config.schedule == "step":
            passed = sum(step >= milestone * self.steps_per_epoch for milestone in config.milestones)
            return warm * config.gamma**passed
        if config.schedule == "cosine":
            total = max(1, config.epochs * self.steps_per_epoch)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        return warm


def set_learning_rates(optimizer: Optimizer, factor: float) -> float:
    """Set each group's learning rate to its base times `factor`; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def freeze_batch_norm(module: nn.Module) -> None:
    """Put batch norm into evaluation mode: its statistics are fixed, its weight and bias are still trained."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
