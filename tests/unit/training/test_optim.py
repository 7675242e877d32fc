from __future__ import annotations

import math

import pytest
import torch

from diml.objectives import build_objective
from diml.training.config import TrainConfig
from diml.training.optim import Schedule, build_optimizer, freeze_batch_norm, parameters_of, set_learning_rates


def config(**changes) -> TrainConfig:
    return TrainConfig(dataset="orl", **changes)


def objective(name="margin", **options):
    return build_objective(name, num_classes=3, embedding_dim=16, num_regions=4, **options)


def test_backbone_head_and_objective_have_rates_of_their_own(tiny):
    embedder, margin = tiny(), objective(beta_lr=3e-3)
    optimizer = build_optimizer(config(lr=1e-4, head_lr=1e-2, weight_decay=0.1), embedder, margin)
    rates = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    backbone = len(list(embedder.backbone.parameters()))
    assert rates == [(1e-4, 0.1, backbone), (1e-2, 0.1, 2), (3e-3, 0.0, 1)]


def test_the_rate_of_the_objective_can_be_set(tiny):
    optimizer = build_optimizer(config(loss_lr=0.5), tiny(), objective("proxyanchor"))
    assert optimizer.param_groups[-1]["lr"] == 0.5


def test_frozen_parameters_are_left_out(tiny):
    embedder = tiny()
    embedder.backbone.requires_grad_(False)
    assert len(parameters_of(build_optimizer(config(), embedder, objective("npair")))) == 2
    embedder.head.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(config(), embedder, objective("npair"))


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimizers_by_name(tiny, name, kind):
    assert type(build_optimizer(config(optimizer=name), tiny(), objective())).__name__ == kind


def test_schedules_against_torch():
    """Step and cosine as torch's own schedulers have them, epoch by epoch and step by step."""
    steps, epochs = 5, 8
    weight = torch.nn.Parameter(torch.zeros(1))
    settings = config(schedule="step", milestones=(2, 5), gamma=0.3, epochs=epochs)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * steps, 5 * steps], 0.3)
    check_schedule(Schedule(settings, steps), optimizer, theirs, steps * epochs)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * epochs)
    check_schedule(Schedule(config(schedule="cosine", epochs=epochs), steps), optimizer, theirs, steps * epochs)


def check_schedule(schedule, optimizer, theirs, steps):
    for step in range(steps):
        assert schedule.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_in_equal_strides():
    schedule = Schedule(config(warmup_steps=4), 10)
    assert [schedule.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert Schedule(config(schedule="cosine", warmup_steps=2, epochs=1), 10).factor(10) == pytest.approx(0, abs=1e-12)


def test_learning_rates_are_set_from_the_first_ones(tiny):
    optimizer = build_optimizer(config(lr=1e-2, head_lr=1e-1), tiny(), objective("npair"))
    for _ in range(2):  # twice: not from the last ones
        assert set_learning_rates(optimizer, 0.5) == pytest.approx(5e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-3, 5e-2])
    assert math.isclose(optimizer.param_groups[1]["initial_lr"], 1e-1)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weight(tiny):
    embedder = tiny().train()
    freeze_batch_norm(embedder)
    norms = [part for part in embedder.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(part.training for part in norms)
    before = [part.running_mean.clone() for part in norms]
    embedder(torch.randn(4, 3, 64, 64)).pooled.sum().backward()
    assert all(torch.equal(part.running_mean, old) for part, old in zip(norms, before, strict=True))
    assert all(part.weight.grad is not None for part in norms)
