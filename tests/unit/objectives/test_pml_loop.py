"""`StructuralDistance` with PML's parts only, as `docs/objectives.md` says: wrappers, testers, trainers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers, testers, trainers
from pytorch_metric_learning.distances import BatchedDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, InferenceModel, MatchFinder
from torch import nn

from diml.matching import Matcher, Regions
from diml.objectives import StructuralDistance, StructuralSimilarity, pack_regions

KINDS = pytest.mark.parametrize("kind", [StructuralDistance, StructuralSimilarity])
MATCHER = Matcher(epsilon=0.1)
#: Losses that PML's wrappers accept and that work with structural distances.
WRAPPED = (
    *("ContrastiveLoss", "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss", "LiftedStructureLoss"),
    *("MultiSimilarityLoss", "NCALoss", "NTXentLoss", "SupConLoss", "TripletMarginLoss"),
)
CPU = torch.device("cpu")


@pytest.fixture
def batch(make_maps):
    """Packed regions (12, 5 * 16), a leaf, and labels."""
    maps, labels = make_maps()
    return pack_regions(Regions.from_maps(maps.detach())).requires_grad_(), labels


class PackRegions(nn.Module):
    """The embedder of a model whose trunk gives feature maps."""

    def forward(self, maps):
        return pack_regions(Regions.from_maps(maps))


def _gradient(value, packed):
    (gradient,) = torch.autograd.grad(value.sum(), packed)
    assert gradient.isfinite().all()
    return gradient


@KINDS
@pytest.mark.parametrize("name", [*WRAPPED, "MarginLoss"])
def test_cross_batch_memory_compares_with_earlier_batches(name, kind, batch):
    """Until the memory is full, it is the loss of a batch against all batches so far, itself being left out."""
    packed, labels = batch
    make = getattr(losses, name)
    memory = losses.CrossBatchMemory(make(distance=kind(4, MATCHER)), embedding_size=packed.shape[1], memory_size=30)
    plain, earlier = make(distance=kind(4, MATCHER)), []
    for step in range(3):
        leaf = packed.detach().roll(step, dims=0).requires_grad_()
        y = labels.roll(step)
        value = memory(leaf, y)
        earlier.append((leaf.detach(), y))
        gradient = _gradient(value, leaf)
        assert gradient.abs().max() > 0
        if step < 2:
            seen, seen_y = (torch.cat(part) for part in zip(*earlier, strict=True))
            same = y.unsqueeze(1) == seen_y
            itself = torch.zeros_like(same)
            itself[range(12), range(12 * step, 12 * step + 12)] = True
            pairs = (*(same & ~itself).nonzero().T, *(~same).nonzero().T)
            expected = plain(leaf, y, pairs, seen, seen_y)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(gradient, _gradient(expected, leaf))


@KINDS
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", WRAPPED)
def test_self_supervised_loss(name, symmetric, kind, batch):
    packed, _ = batch
    view = packed.detach().roll(1, dims=0)
    loss = losses.SelfSupervisedLoss(getattr(losses, name)(distance=kind(4, MATCHER)), symmetric=symmetric)
    value = loss(packed, view)
    assert value.isfinite().all()
    assert _gradient(value, packed).abs().max() > 0


def test_multiple_losses(batch):
    packed, labels = batch
    parts = [
        losses.TripletMarginLoss(distance=StructuralDistance(4)),
        losses.MarginLoss(distance=StructuralDistance(4)),
    ]
    own = [miners.TripletMarginMiner(distance=StructuralDistance(4)), None]
    value = losses.MultipleLosses(parts, miners=own, weights=[1.0, 0.5])(packed, labels)
    expected = parts[0](packed, labels, own[0](packed, labels)) + 0.5 * parts[1](packed, labels)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "reducer",
    [reducers.AvgNonZeroReducer(), reducers.MeanReducer(), reducers.SumReducer(), reducers.ThresholdReducer(low=0.0)],
)
def test_reducers(reducer, batch):
    packed, labels = batch
    value = losses.TripletMarginLoss(distance=StructuralDistance(4), reducer=reducer)(packed, labels)
    assert _gradient(value, packed).abs().max() > 0


@KINDS
def test_neighbours_and_matches(kind, batch):
    packed, labels = batch
    packed = packed.detach()
    distance = kind(4, MATCHER)
    matrix = distance(packed)
    blocks = torch.empty(12, 12)
    BatchedDistance(distance, lambda part, start, end: blocks[start:end].copy_(part), batch_size=5)(packed)
    torch.testing.assert_close(blocks, matrix, rtol=0, atol=1e-5)
    others = matrix.clone().fill_diagonal_(-9.0 if distance.is_inverted else 9.0)
    expected = others.argsort(dim=1, descending=distance.is_inverted)[:, :2]
    search = CustomKNN(distance, batch_size=5)
    assert torch.equal(search(packed, 2, packed, True)[1], expected)
    accuracy = AccuracyCalculator(include=("precision_at_1",), k=1, knn_func=search).get_accuracy(packed, labels)
    assert accuracy["precision_at_1"] == pytest.approx((labels[expected[:, 0]] == labels).double().mean().item())
    threshold = float(matrix[0, 1])
    found = MatchFinder(distance, threshold=threshold).get_matching_pairs(packed)
    wanted = matrix >= threshold if distance.is_inverted else matrix <= threshold
    assert (torch.from_numpy(found) == wanted).double().mean() > 0.98  # but for rounding at the threshold


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(6)
    pixels = torch.randn(4, 3, 4, 4, generator=generator)[labels] + torch.randn(24, 3, 4, 4, generator=generator)
    return torch.utils.data.TensorDataset(pixels, labels)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML's progress bar
def test_trainer_tester_and_inference_model(images):
    torch.manual_seed(0)
    distance, trunk, embedder = StructuralDistance(4, MATCHER), nn.Conv2d(3, 8, 2, 2), PackRegions()
    before = trunk.weight.detach().clone()
    trainers.MetricLossOnly(
        models={"trunk": trunk, "embedder": embedder},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=12,
        loss_funcs={"metric_loss": losses.TripletMarginLoss(distance=distance)},
        mining_funcs={"tuple_miner": miners.TripletMarginMiner(distance=distance)},
        dataset=images,
        dataloader_num_workers=0,
        data_device=CPU,
    ).train(num_epochs=2)
    assert (trunk.weight - before).abs().max() > 1e-3

    calculator = AccuracyCalculator(include=("precision_at_1",), k=1, knn_func=CustomKNN(distance))
    usual = {"dataloader_num_workers": 0, "data_device": CPU}
    tester = testers.GlobalEmbeddingSpaceTester(normalize_embeddings=False, accuracy_calculator=calculator, **usual)
    found = tester.test({"val": images}, 0, trunk, embedder)["val"]["precision_at_1_level0"]
    pixels, labels = images.tensors
    with torch.no_grad():
        nearest = distance(embedder(trunk(pixels))).fill_diagonal_(9.0).argmin(dim=1)
    assert found == pytest.approx((labels[nearest] == labels).double().mean().item())

    with pytest.raises(ValueError, match="unit"):  # the default normalises packed vectors
        testers.GlobalEmbeddingSpaceTester(accuracy_calculator=calculator, **usual).test(
            {"val": images}, 0, trunk, embedder
        )

    pytest.importorskip("faiss", reason="InferenceModel searches with it; new milvus-lite brings it")
    model = InferenceModel(
        trunk, embedder, MatchFinder(distance, threshold=0.6), normalize_embeddings=False, data_device=CPU
    )
    assert model.get_matches(pixels[:3], pixels).shape == (3, 24)
    assert model.is_match(pixels[:2], pixels[:2]).all()


WORKER = """
import os, torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from diml.matching import Regions
from diml.objectives import StructuralDistance, pack_regions

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
generator = torch.Generator().manual_seed(0)
maps, labels = torch.randn(12, 8, 2, 2, generator=generator), torch.arange(12) % 3
own = maps[6 * rank : 6 * rank + 6].clone().requires_grad_()
distance = StructuralDistance(4)
loss = DistributedLossWrapper(losses.TripletMarginLoss(distance=distance))
miner = DistributedMinerWrapper(miners.TripletMarginMiner(distance=distance))
packed, y = pack_regions(Regions.from_maps(own)), labels[6 * rank : 6 * rank + 6]
value = loss(packed, y, miner(packed, y))
value.backward()
if rank:  # the whole batch in one process; PML multiplies by the number of processes
    order = torch.tensor([*range(6, 12), *range(6)])
    whole = maps[order].clone().requires_grad_()
    packed = pack_regions(Regions.from_maps(whole))
    plain = losses.TripletMarginLoss(distance=distance)
    expected = 2 * plain(packed, labels[order], miners.TripletMarginMiner(distance=distance)(packed, labels[order]))
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(own.grad, whole.grad[:6])
    print("agrees")
torch.distributed.destroy_process_group()
"""


def test_distributed_wrappers():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", WORKER]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | place | {"RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert "agrees" in ended[1][0]
