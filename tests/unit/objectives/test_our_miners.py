"""Our triplet miners: which triplets they draw, how often, and that a seed determines them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import miners as library
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils import loss_and_miner_utils

from diml.matching import Regions
from diml.objectives import StructuralDistance, pack_regions
from diml.objectives.miners import distance_weights
from diml.objectives.objective import TRIPLET_MINERS

CLASS_RESPECTING = ("distance", "semihard", "softhard", "random", "parametric")


def _batch(dim=8, classes=4, per_class=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(classes * per_class, dim, generator=generator), dim=1)
    return x, torch.arange(classes).repeat_interleave(per_class)


def _seeded(name, seed=0, **options):
    return TRIPLET_MINERS[name](generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("name", TRIPLET_MINERS)
def test_a_seed_decides_and_the_global_generator_is_left_alone(name):
    x, y = _batch()
    state = torch.get_rng_state()
    first, second, other = (torch.stack(_seeded(name, seed)(x, y)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", CLASS_RESPECTING)
def test_classes_are_respected_and_the_anchor_is_not_its_own_positive(name):
    x, y = _batch()
    for seed in range(20):
        a, p, n = _seeded(name, seed)(x, y)
        assert len(a) == 12
        assert (y[a] == y[p]).all()
        assert (a != p).all()
        assert (y[a] != y[n]).all()
        assert a.dtype == torch.int64


@pytest.mark.parametrize("name", TRIPLET_MINERS)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all differ", "one image"])
def test_without_positives_or_negatives_there_are_no_triplets(name, labels):
    y = torch.tensor(labels)
    x = _batch()[0][: len(y)]
    a, p, n = _seeded(name)(x, y)
    assert len(a) == len(p) == len(n)
    if name != "intra_random":
        assert len(a) == 0


@pytest.mark.parametrize("name", CLASS_RESPECTING)
def test_anchors_alone_in_their_class_are_left_out(name):
    x, _ = _batch()
    y = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5])
    a, p, n = _seeded(name)(x, y)
    assert not set(a.tolist()) & {5, 10, 11}
    assert (y[a] == y[p]).all()
    assert (y[a] != y[n]).all()


def _naive_weights(row, dim, cutoff, upper):
    logs = []
    for distance in row:
        d = max(cutoff, distance)
        wanted = upper is None or distance < upper
        logs.append((2 - dim) * math.log(d) - (dim - 3) / 2 * math.log(1 - d * d / 4) if wanted else -math.inf)
    largest = max(logs)
    return [math.exp(value - largest) for value in logs]


@pytest.mark.parametrize("dim", [3, 32, 128, 512, 2048])
@pytest.mark.parametrize("upper", [None, 1.4])
def test_distance_weights_against_a_naive_loop(dim, upper):
    distances = torch.tensor([[0.1, 0.6, 1.0, 1.3], [1.1, 1.39, 1.45, 1.9]])
    weights = distance_weights(distances, torch.ones(2, 4, dtype=torch.bool), dim, 0.5, upper)
    for row, given in zip(weights.tolist(), distances.double().tolist(), strict=True):
        assert row == pytest.approx(_naive_weights(given, dim, 0.5, upper), rel=1e-6)


def test_distance_weights_are_those_of_the_library(monkeypatch):
    x, y = _batch(dim=32)
    seen = []
    keep = loss_and_miner_utils.get_random_triplet_indices
    monkeypatch.setattr(
        loss_and_miner_utils,
        "get_random_triplet_indices",
        lambda *args, weights, **kwargs: seen.append(weights) or keep(*args, weights=weights, **kwargs),
    )
    library.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)(x.double(), y)
    negative = y[:, None] != y
    ours = distance_weights(LpDistance()(x.double()), negative, 32, 0.5, 1.4)
    torch.testing.assert_close(ours / ours.sum(1, keepdim=True), seen[0])


@pytest.mark.parametrize("dim", [32, 512])
def test_distance_mining_keeps_every_anchor_where_the_library_loses_some(dim):
    x, y = _batch(dim=dim, classes=8, per_class=2)
    x[2] = F.normalize(x[0] + 0.02 * torch.randn(dim, generator=torch.Generator().manual_seed(1)) / 5, dim=0)
    a, _, n = _seeded("distance")(x, y)
    assert a.tolist() == list(range(16))
    assert (y[a] != y[n]).all()
    kept = len(library.DistanceWeightedMiner(0.5, 2.0)(x, y)[0].unique())
    assert kept == 16 if dim == 32 else kept < 8


def test_distance_mining_draws_by_weight():
    x, y = _batch(dim=8)
    miner = _seeded("distance")
    counts = torch.zeros(12, 12, dtype=torch.float64)
    draws = 3000
    for _ in range(draws):
        a, _, n = miner(x, y)
        counts[a, n] += 1
    weights = distance_weights(LpDistance()(x), y[:, None] != y, 8, 0.5, 1.4)
    chance = weights / weights.sum(1, keepdim=True)
    assert (counts / draws - chance).abs().max() < 5 * (0.25 / draws) ** 0.5


def test_semihard_against_the_definition():
    x, y = _batch(dim=4)
    d = torch.cdist(x.double(), x.double())
    everyone = {tuple(t) for t in torch.stack(library.TripletMarginMiner(0.2, "semihard")(x, y), 1).tolist()}
    for seed in range(30):
        for a, p, n in zip(*_seeded("semihard", seed, margin=0.2)(x, y), strict=True):
            wanted = [j for j in range(12) if y[j] != y[a] and d[a, p] < d[a, j] < d[a, p] + 0.2]
            assert not wanted or int(n) in wanted
            assert not wanted or (int(a), int(p), int(n)) in everyone


def test_softhard_against_the_definition():
    x, y = _batch(dim=4)
    d = torch.cdist(x.double(), x.double())
    for seed in range(30):
        for a, p, n in zip(*_seeded("softhard", seed)(x, y), strict=True):
            positive = [j for j in range(12) if y[j] == y[a] and j != a]
            negative = [j for j in range(12) if y[j] != y[a]]
            hard_p = [j for j in positive if d[a, j] > min(d[a, k] for k in negative)]
            hard_n = [j for j in negative if d[a, j] < max(d[a, k] for k in positive)]
            assert int(p) in (hard_p or positive)
            assert int(n) in (hard_n or negative)


def test_random_draws_different_triplets_evenly_among_all():
    y = torch.tensor([0, 0, 1, 1, 1])
    x = torch.eye(5)
    valid = [
        (a, p, n) for a in range(5) for p in range(5) for n in range(5) if a != p and y[a] == y[p] and y[a] != y[n]
    ]
    miner, counts, draws = _seeded("random"), dict.fromkeys(valid, 0), 1500
    for _ in range(draws):
        triplets = [tuple(t) for t in torch.stack(miner(x, y), 1).tolist()]
        assert len(set(triplets)) == 5
        for triplet in triplets:
            counts[triplet] += 1
    chance = 5 / len(valid)
    assert all(abs(count / draws - chance) < 5 * (0.25 / draws) ** 0.5 for count in counts.values())
    few = _seeded("random")(x[:3], torch.tensor([0, 0, 1]))
    assert len(few[0]) == 2


def test_intra_random_stays_in_one_class():
    x, y = _batch()
    a, p, n = _seeded("intra_random")(x, y)
    assert len(a) == 12
    assert (y[a] == y[p]).all()
    assert (y[a] == y[n]).all()


def test_random_distance_mixes_classes():
    x, y = _batch()
    triplets = [_seeded("random_distance", seed)(x, y) for seed in range(20)]
    mixed = torch.cat([y[a] != y[p] for a, p, _ in triplets])
    assert 0.6 < mixed.double().mean() < 1.0  # 9 of 11 others are of another class
    assert all((a != p).all() and (p != n).all() and (a != n).all() for a, p, n in triplets)


@pytest.mark.parametrize("switch", [0.0, 0.2, 1.0])
def test_rho_distance_switches_that_often(switch):
    x, y = _batch()
    miner = _seeded("rho_distance", switch=switch)
    switched = []
    for _ in range(100):
        a, p, n = miner(x, y)
        own = a == p
        assert (y[a[own]] == y[n[own]]).all()
        assert (a[own] != n[own]).all()
        assert (y[a[~own]] != y[n[~own]]).all()
        switched.append(own)
    assert torch.cat(switched).double().mean().item() == pytest.approx(switch, abs=0.06)


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("hards", 0.1, 0.5), ("semihards", 0.3, 0.7), ("veryhards", 0.1, 0.3)]
)
def test_parametric_prefers_its_range(mode, low, high):
    angle = torch.tensor([0.0, 0.0, 0.2, 0.45, 0.6, 1.2])
    x = torch.stack([angle.cos(), angle.sin()], 1)
    y = torch.tensor([0, 0, 1, 2, 3, 4])
    d = torch.cdist(x.double(), x.double())
    for seed in range(20):
        for a, _, n in zip(*_seeded("parametric", seed, mode=mode)(x, y), strict=True):
            assert low - 0.05 <= d[a, n] <= high + 0.05


def test_parametric_takes_a_distribution_and_falls_back():
    x, y = _batch()
    d = LpDistance()(x)
    given = tuple(float(i == 2) for i in range(4))  # only the third of four intervals, 1.0 to 1.2
    miner = _seeded("parametric", bins=4, lower=0.6, upper=1.4, probabilities=given)
    a, _, n = miner(x, y)
    inside = ((d >= 1.0) & (d < 1.2) & (y[:, None] != y))[a]
    assert ((d[a, n] >= 1.0) & (d[a, n] < 1.2) == inside.any(dim=1)).all()


def test_structural_distances_can_be_mined(make_maps):
    maps, y = make_maps()
    packed = pack_regions(Regions.from_maps(maps.detach()))
    d = StructuralDistance(4)(packed)
    a, p, n = _seeded("softhard", distance=StructuralDistance(4))(packed, y)
    assert ((d[a, n] < d[a, p]) | (d[a, p] > 0)).all()
    assert (y[a] != y[n]).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distance", {"distance": CosineSimilarity()}),
        ("rho_distance", {"switch": 1.5}),
        ("parametric", {"mode": "hard"}),
        ("parametric", {"bins": 3, "probabilities": (1.0,)}),
        ("parametric", {"lower": 2.0}),
    ],
)
def test_wrong_settings_are_refused(name, options):
    with pytest.raises(ValueError, match="need"):
        TRIPLET_MINERS[name](**options)


def test_a_second_batch_is_refused():
    x, y = _batch()
    with pytest.raises(ValueError, match="ref_emb"):
        _seeded("random")(x, y, x.clone(), y)
