"""`build_objective` with loss and miner objects of PML trains exactly as these do without it."""

from __future__ import annotations

import copy

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch import nn

from diml.matching import Matcher, Regions
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, pack_regions
from diml.objectives.miners import DistanceWeightedMiner

DIM, REGIONS, CLASSES = 8, 4, 4
PACKED = (REGIONS + 1) * DIM
LABELS = torch.arange(CLASSES).repeat_interleave(3)
MATCHER = Matcher(epsilon=0.1)


def _distance(kind=StructuralDistance):
    return kind(regions=REGIONS, matcher=MATCHER)


class Contrast(nn.Module):
    """A loss that is no class of PML, in its calling form."""

    def __init__(self, distance):
        super().__init__()
        self.distance, self.scale = distance, nn.Parameter(torch.tensor(2.0))

    def forward(self, embeddings, labels, indices_tuple=None):
        matrix = self.distance(embeddings, embeddings)
        same = labels.unsqueeze(1) == labels
        if indices_tuple is not None:
            matrix = matrix[indices_tuple[0]]
            same = same[indices_tuple[0]]
        return self.scale * (matrix * same.to(matrix.dtype)).mean() - matrix.mean()


class PairOnly(nn.Module):
    """A loss without an argument for mined indices."""

    def forward(self, embeddings, labels):
        return (embeddings[0] - embeddings[1]).square().sum() * labels[0].add(1)


class FirstTriplets(nn.Module):
    """A miner that is no class of PML."""

    def forward(self, embeddings, labels):
        every = miners.TripletMarginMiner(10.0)(embeddings[:, :DIM], labels)
        return tuple(part[::3] for part in every)


SHARED = _distance(StructuralSimilarity)

#: Name -> loss, miner, and whether each compares regions.
CASES = {
    "margin and triplet miner": (
        lambda: losses.MarginLoss(0.2, beta=0.8, learn_beta=True, distance=_distance()),
        lambda: miners.TripletMarginMiner(0.2, distance=_distance()),
        (True, True),
    ),
    "structural loss, pooled miner": (
        lambda: losses.TripletMarginLoss(0.3, distance=_distance()),
        lambda: miners.TripletMarginMiner(0.3),
        (True, False),
    ),
    "pooled loss, structural miner": (
        lambda: losses.TripletMarginLoss(0.3),
        lambda: miners.BatchHardMiner(distance=_distance()),
        (False, True),
    ),
    "one distance for both": (
        lambda: losses.MultiSimilarityLoss(2, 40, 0.5, distance=SHARED),
        lambda: miners.MultiSimilarityMiner(0.1, distance=SHARED),
        (True, True),
    ),
    "pooled": (
        lambda: losses.MultiSimilarityLoss(2, 40, 0.5),
        lambda: miners.MultiSimilarityMiner(0.1),
        (False, False),
    ),
    "pooled without normalisation": (
        lambda: losses.ContrastiveLoss(distance=LpDistance(normalize_embeddings=False)),
        lambda: None,
        (False, False),
    ),
    "memory": (
        lambda: losses.CrossBatchMemory(
            losses.MarginLoss(beta=0.8, distance=_distance()), embedding_size=PACKED, memory_size=30
        ),
        lambda: None,
        (True, False),
    ),
    "memory with a miner inside": (
        lambda: losses.CrossBatchMemory(
            losses.ContrastiveLoss(distance=_distance()),
            embedding_size=PACKED,
            memory_size=30,
            miner=miners.TripletMarginMiner(0.2, distance=_distance()),
        ),
        lambda: None,
        (True, False),
    ),
    "memory with a miner beside": (
        lambda: losses.CrossBatchMemory(losses.TripletMarginLoss(distance=_distance()), PACKED, memory_size=24),
        lambda: miners.TripletMarginMiner(0.2, distance=_distance()),
        (True, True),
    ),
    "pooled memory": (
        lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), DIM, memory_size=24),
        lambda: None,
        (False, False),
    ),
    "several losses": (
        lambda: losses.MultipleLosses(
            [
                losses.TripletMarginLoss(distance=_distance()),
                losses.NTXentLoss(distance=_distance(StructuralSimilarity)),
            ],
            weights=[1.0, 0.5],
        ),
        lambda: None,
        (True, False),
    ),
    "region proxies": (
        lambda: losses.ProxyAnchorLoss(CLASSES, REGIONS * DIM, distance=_distance(StructuralSimilarity)),
        lambda: None,
        (True, False),
    ),
    "another module": (lambda: Contrast(_distance()), lambda: FirstTriplets(), (True, False)),
    "another module on pooled vectors": (lambda: Contrast(CosineSimilarity()), lambda: None, (False, False)),
    "another module, two arguments": (lambda: PairOnly(), lambda: None, (False, False)),
}


def _network():
    torch.manual_seed(0)
    return nn.Conv2d(3, DIM, kernel_size=2, stride=2)


def _train(network, loss, value, steps=4):
    """Values and gradients of some steps of gradient descent; `value` of regions and labels."""
    rate, seen = 0.05, []
    for step in range(steps):
        images = torch.randn(len(LABELS), 3, 4, 4, generator=torch.Generator().manual_seed(step))
        images = images + 2 * LABELS.view(-1, 1, 1, 1) / CLASSES
        found = value(Regions.from_maps(network(images)))
        parameters = [*network.parameters(), *loss.parameters()]
        gradients = torch.autograd.grad(found, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
        seen.append((found.detach(), *gradients))
    return seen


@pytest.mark.parametrize("name", CASES)
def test_objects_train_as_they_do_without_an_objective(name):
    make_loss, make_miner, (loss_on_regions, miner_on_regions) = CASES[name]
    torch.manual_seed(1)
    loss, miner = make_loss(), make_miner()
    own_loss, own_miner = copy.deepcopy((loss, miner))

    def direct(regions):
        loss_input = pack_regions(regions) if loss_on_regions else regions.pooled
        if own_miner is None:
            return own_loss(loss_input, LABELS).reshape(())
        miner_input = pack_regions(regions) if miner_on_regions else regions.pooled
        return own_loss(loss_input, LABELS, own_miner(miner_input, LABELS)).reshape(())

    objective = build_objective(loss, miner=miner)
    assert objective.loss is loss
    assert objective.miner is miner
    assert objective.uses_regions == (loss_on_regions or miner_on_regions)
    ours = _train(_network(), loss, lambda regions: objective(regions, LABELS))
    expected = _train(_network(), own_loss, direct)
    for mine, theirs in zip(ours, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert max(float(gradient.abs().max()) for _, *gradients in ours for gradient in gradients) > 1e-4
    assert ours[0][0] != ours[-1][0]


def test_miner_and_loss_with_one_distance_solve_once(monkeypatch):
    distance, calls = _distance(StructuralSimilarity), []
    solve = distance._matrix
    monkeypatch.setattr(distance, "_matrix", lambda *sides: calls.append(1) or solve(*sides))
    loss = losses.MultiSimilarityLoss(distance=distance)
    objective = build_objective(loss, miner=miners.MultiSimilarityMiner(distance=distance))
    objective(Regions.from_maps(torch.randn(12, DIM, 2, 2)), LABELS)
    assert len(calls) == 1


def test_tensors_reach_objects_unchanged():
    seen = []

    class Watch(nn.Module):
        def forward(self, embeddings, labels, indices_tuple=None):
            seen.append(embeddings)
            return embeddings.sum() * 0

    given = 3 * torch.randn(12, DIM)
    build_objective(Watch())(given, LABELS)
    assert torch.equal(seen[0], given)
    with pytest.raises(TypeError, match="compares regions"):
        build_objective(losses.MarginLoss(distance=_distance()))(given, LABELS)


def test_a_module_is_given_regions_on_request():
    seen = []

    class Watch(nn.Module):
        def forward(self, embeddings, labels):
            seen.append(embeddings)
            return embeddings.sum() * 0

    regions = Regions.from_maps(torch.randn(12, DIM, 2, 2))
    build_objective(Watch(), similarity="structural")(regions, LABELS)
    assert torch.equal(seen[0], pack_regions(regions))


def test_a_distance_without_regions_takes_those_of_the_batch():
    regions = Regions.from_maps(torch.randn(12, DIM, 2, 2))
    objective = build_objective(losses.TripletMarginLoss(distance=StructuralDistance(matcher=MATCHER)))
    expected = losses.TripletMarginLoss(distance=_distance())(pack_regions(regions), LABELS)
    torch.testing.assert_close(objective(regions, LABELS), expected)
    assert objective.matcher == MATCHER
    with pytest.raises(ValueError, match="num_regions = 4"):
        build_objective(losses.TripletMarginLoss(distance=_distance()))(
            Regions.from_maps(torch.randn(12, DIM, 3, 3)), LABELS
        )


def test_a_named_miner_with_a_loss_object():
    regions = Regions.from_maps(torch.randn(12, DIM, 2, 2))

    def generator():
        return torch.Generator().manual_seed(0)

    loss = losses.MarginLoss(beta=0.8, distance=_distance())
    objective = build_objective(loss, miner="distance", miner_cutoff=0.4, generator=generator())
    triplets = DistanceWeightedMiner(cutoff=0.4, generator=generator())(regions.pooled, LABELS)
    torch.testing.assert_close(objective(regions, LABELS), loss(pack_regions(regions), LABELS, triplets))
    assert objective.statistics["triplets"] == 12
    on_regions = build_objective(
        loss, miner="distance", mining="structural", embedding_dim=DIM, matcher=MATCHER, generator=generator()
    )
    assert on_regions.miner.distance.matcher == MATCHER
    assert on_regions(regions, LABELS).isfinite()
    with pytest.raises(ValueError, match="embedding_dim"):
        build_objective(loss, miner="distance", mining="structural")


@pytest.mark.parametrize("name", ["margin", "margin_diml", "multisimilarity", "lifted", "adversarial_separation"])
def test_a_miner_object_with_a_named_loss(name):
    regions = Regions.from_maps(torch.randn(12, DIM, 2, 2))
    miner = miners.TripletMarginMiner(0.2)
    objective = build_objective(name, num_classes=CLASSES, embedding_dim=DIM, miner=miner)
    value = objective(regions, LABELS)
    assert value.isfinite()
    assert objective.options["miner"] == "TripletMarginMiner"
    if name == "margin_diml":
        objective.loss.distance.regions = REGIONS
        torch.testing.assert_close(
            value, objective.loss(pack_regions(regions), LABELS, miner(regions.pooled, LABELS)).reshape(())
        )
        on_regions = build_objective(
            name,
            num_classes=CLASSES,
            embedding_dim=DIM,
            matcher=MATCHER,
            miner=miners.TripletMarginMiner(distance=_distance()),
        )
        assert on_regions.options["mining"] == "structural"
        assert on_regions(regions, LABELS).isfinite()


def test_options_say_what_was_built():
    objective = build_objective(
        losses.MarginLoss(distance=_distance()), miner=miners.TripletMarginMiner(), num_classes=CLASSES, loss_lr=1e-3
    )
    assert objective.name == "MarginLoss"
    assert objective.options == {
        "loss": "MarginLoss",
        "num_classes": CLASSES,
        "embedding_dim": None,
        "num_regions": None,
        "similarity": "structural",
        "miner": "TripletMarginMiner",
        "mining": "pooled",
        "loss_lr": 1e-3,
        "matcher": MATCHER.to_dict(),
    }
    assert "epsilon=0.1" in repr(objective)


def test_parameters_of_a_loss_object_learn_at_its_rate():
    loss = losses.MarginLoss(learn_beta=True, distance=_distance())
    assert [group["lr"] for group in build_objective(loss).parameter_groups(lr=1e-5)] == [1e-5]
    (group,) = build_objective(loss, loss_lr=5e-4).parameter_groups(lr=1e-5)
    assert (group["lr"], group["name"], group["params"]) == (5e-4, "loss", [loss.beta])
    assert build_objective(losses.TripletMarginLoss()).parameter_groups(lr=1e-5) == []


def test_objects_are_left_as_they_were():
    loss = losses.TripletMarginLoss(distance=_distance())
    for _ in range(2):
        objective = build_objective(loss)
        objective(Regions.from_maps(torch.randn(12, DIM, 2, 2)), LABELS)
        assert objective.statistics["active"] > 0
    assert not any(module._forward_pre_hooks for module in loss.modules())


def test_labels_are_free_where_the_number_of_classes_is_unknown():
    regions = Regions.from_maps(torch.randn(12, DIM, 2, 2))
    for labels in (LABELS + 1000, LABELS - 7):
        assert build_objective(losses.TripletMarginLoss())(regions, labels).isfinite()
    with pytest.raises(ValueError, match="num_classes - 1"):
        build_objective(losses.TripletMarginLoss(), num_classes=2)(regions, LABELS)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (3, {}, "loss: need a name or a module"),
        (losses.TripletMarginLoss(), {"miner": 3}, "miner: need a name or a module"),
        (losses.TripletMarginLoss(), {"miner": "distanc"}, "did you mean 'distance'"),
        (losses.TripletMarginLoss(), {"beta": 1.0}, "TripletMarginLoss has no beta"),
        (
            losses.TripletMarginLoss(),
            {"miner": FirstTriplets(), "miner_cutoff": 1.0},
            "FirstTriplets has no miner_cutoff",
        ),
        (losses.TripletMarginLoss(), {"miner": "distance", "mining": "structural"}, "similarity 'structural'"),
        (losses.TripletMarginLoss(distance=_distance()), {"similarity": "pooled"}, "holds a structural distance"),
        (losses.TripletMarginLoss(distance=_distance()), {"num_regions": 9}, r"one number of regions.*\[4, 9\]"),
        ("npair", {"miner": miners.TripletMarginMiner(), "num_classes": 2, "embedding_dim": 4}, "'TripletMarginMiner'"),
        ("margin", {"embedding_dim": 4}, "num_classes: need an integer"),
    ],
)
def test_wrong_objects_and_options_are_refused(loss, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build_objective(loss, **options)


def test_a_loss_that_is_no_scalar_is_refused():
    objective = build_objective(losses.TripletMarginLoss(reducer=reducers.DoNothingReducer()))
    with pytest.raises(TypeError, match="scalar, got dict; choose a reducer"):
        objective(Regions.from_maps(torch.randn(12, DIM, 2, 2)), LABELS)
