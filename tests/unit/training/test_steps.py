from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diml.distributed import ProcessGroup
from diml.matching import Regions
from diml.objectives import build_objective, objective_names
from diml.training.config import TrainConfig
from diml.training.optim import build_optimizer
from diml.training.randomness import deterministic
from diml.training.steps import NonFiniteError, Stepper

ALONE = ProcessGroup()
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def stepper(tiny, name="multisimilarity", *, pooled=None, options=None, **changes) -> Stepper:
    config = TrainConfig(dataset="orl", **({"lr": 1e-2, "freeze_batch_norm": True} | changes))
    embedder = tiny(pooled=pooled or ("grid_mean" if name.endswith("_diml") else "backbone"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = build_objective(name, num_classes=3, embedding_dim=16, num_regions=4, **(options or {}))
    return Stepper(config, embedder, objective, build_optimizer(config, embedder, objective), ALONE)


@pytest.mark.parametrize("name", ["multisimilarity", "proxyanchor", "multisimilarity_diml"])
def test_steps_against_a_plain_loop(tiny, name):
    """A plain training loop, with its own Regions, gives the same losses and weights."""
    ours = stepper(tiny, name, clip_norm=0.7)
    plain = stepper(tiny, name)
    embedder, objective = plain.embedder.eval(), plain.objective
    groups = [
        {"params": list(embedder.parameters()), "weight_decay": 4e-4},
        *objective.parameter_groups(1e-2),
    ]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    for number in range(3):
        found = ours.step(images(number), LABELS, number)
        features = embedder.backbone(images(number))
        cells = embedder.head(features.maps.flatten(2).transpose(1, 2))
        if name.endswith("_diml"):
            regions = Regions.normalized(cells, cells.mean(dim=1))
        else:
            regions = Regions.normalized(cells, embedder.head(features.pooled))
        loss = objective(regions, LABELS)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 0.7)
        optimizer.step()
        assert found.loss == pytest.approx(loss.item(), rel=1e-4)
        assert found.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
        assert found.fault is None
        if not name.endswith("_diml"):
            torch.testing.assert_close(found.pooled, regions.pooled.detach(), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(ours.embedder.parameters(), embedder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_objectives_for_embeddings_of_any_length_get_those(tiny):
    """N-pair gets the output of the head before normalization; with unit vectors its loss differs."""
    ours = stepper(tiny, "npair")
    ours.embedder.eval()
    ours.embedder.head.weight.data.mul_(30)
    with torch.no_grad():
        raw = ours.embedder.head(ours.embedder.backbone(images()).pooled)
        assert (torch.linalg.vector_norm(raw, dim=1) - 1).abs().min() > 0.1
        wanted = ours.objective(raw, LABELS).item()
        other = ours.objective(F.normalize(raw, dim=1), LABELS).item()
    assert ours.step(images(), LABELS, 0).loss == pytest.approx(wanted, rel=1e-4)
    assert wanted != pytest.approx(other, rel=1e-2)
    with pytest.raises(ValueError, match=r"pooled: 'npair' needs embeddings before normalization"):
        stepper(tiny, "npair", pooled="grid_mean")


def test_the_same_step_gives_the_same_bits_whatever_was_drawn_before(tiny):
    """Mining is random; its randomness depends on seed and step alone."""
    found = []
    for seed in (3, 4):
        ours = stepper(tiny, "margin", options={"miner": "distance"})
        torch.manual_seed(seed)
        with deterministic(ALONE.device):
            found.append([ours.step(images(), LABELS, number).loss for number in range(2)])
    assert found[0] == found[1]
    other = stepper(tiny, "margin", options={"miner": "distance"}, seed=9)
    assert [other.step(images(), LABELS, number).loss for number in range(2)] != found[0]


def poison(ours: Stepper, how: str):
    """Make the next step not finite, at one of the places where that happens."""
    if how == "loss":
        whole = ours.objective.loss.forward
        ours.objective.loss.forward = lambda *arguments: whole(*arguments) * float("nan")
    elif how == "gradient":
        weight = ours.embedder.head.weight
        handle = weight.register_hook(lambda gradient: gradient * float("inf"))
        return handle.remove
    else:
        weight = ours.embedder.head.weight
        value = weight.data.clone()
        weight.data[0, 0] = float("inf")
        return lambda: weight.data.copy_(value)
    return lambda: setattr(ours.objective.loss, "forward", whole)


@pytest.mark.parametrize("name", ["multisimilarity", "multisimilarity_diml"])
@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("loss", "the loss is nan"),
        ("gradient", "the gradient has norm (nan|inf)"),
        ("weight", "embeddings are not finite"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(tiny, name, how, fault):
    import re

    ours = stepper(tiny, name, freeze_batch_norm=False, skip_non_finite=True)
    ours.step(images(), LABELS, 0)
    repair = poison(ours, how)
    before = {key: value.clone() for key, value in ours.embedder.state_dict().items()}
    found = ours.step(images(1), LABELS, 1)
    assert re.fullmatch(fault, found.fault)
    assert found.pooled is None
    after = ours.embedder.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    repair()
    assert ours.step(images(2), LABELS, 2).fault is None


def test_a_batch_without_a_pair_is_no_step(tiny):
    ours = stepper(tiny, "triplet")
    before = ours.embedder.head.weight.clone()
    found = ours.step(images(), torch.zeros(6, dtype=torch.int64), 0)
    assert (found.loss, found.fault) == (0.0, None)
    ours.step(images(), LABELS, 1)
    assert not torch.equal(before, ours.embedder.head.weight)


def test_other_errors_of_the_network_are_not_taken_for_it(tiny, monkeypatch):
    def wrong(images):
        raise ValueError("something else")

    ours = stepper(tiny, "multisimilarity_diml")
    monkeypatch.setattr(ours.embedder, "forward", wrong)
    with pytest.raises(ValueError, match="something else"):
        ours.step(images(), LABELS, 0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_float32_weights(tiny, precision):
    ours = stepper(tiny, "multisimilarity_diml", precision=precision, lr=1e-3)
    losses = [ours.step(images(), LABELS, number) for number in range(4)]
    assert all(step.fault is None for step in losses)
    assert losses[-1].loss < losses[0].loss
    assert {parameter.dtype for parameter in ours.embedder.parameters()} == {torch.float32}
    exact = stepper(tiny, "multisimilarity_diml", lr=1e-3).step(images(), LABELS, 0).loss
    assert losses[0].loss == pytest.approx(exact, rel=0.05)


def test_batch_norm_is_trained_when_wanted(tiny):
    ours = stepper(tiny, freeze_batch_norm=False)
    before = {name: buffer.clone() for name, buffer in ours.embedder.named_buffers() if "mean" in name}
    ours.step(images(), LABELS, 0)
    after = dict(ours.embedder.named_buffers())
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_error_names_step_and_images():
    error = NonFiniteError("the loss is nan", 12, ("a/1.jpg", "b/2.jpg"))
    assert "in step 12" in str(error)
    assert "a/1.jpg" in str(error)
    assert "b/2.jpg" in str(error)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("name", objective_names())
@pytest.mark.parametrize("frozen", [True, False])
def test_a_batch_without_a_readable_image_is_left_out(tiny, name, frozen):
    """No weight and no statistic changes; batches of one or two images are taken as any other."""
    ours = stepper(tiny, name, freeze_batch_norm=frozen)
    before = {key: value.clone() for key, value in ours.embedder.state_dict().items()}
    step = ours.step(torch.zeros(0, 3, 64, 64), torch.zeros(0, dtype=torch.int64), 0)
    assert step.empty
    assert step.fault == "no image of the batch can be read"
    assert all(torch.equal(value, before[key]) for key, value in ours.embedder.state_dict().items())
    for labels in ([0], [0, 0], [0, 1]):
        taken = ours.step(images()[: len(labels)], torch.tensor(labels), 1)
        assert (taken.fault, taken.empty) == (None, False)
        assert math.isfinite(taken.loss)
