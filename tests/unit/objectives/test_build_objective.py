"""`build_objective`: options, learning rates, statistics, errors, and batches that give a loss nothing to do."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from diml.matching import Matcher, Regions
from diml.objectives import StructuralDistance, build_objective, objective_names, pack_regions
from diml.objectives.objective import allowed_miners

SIZES = {"num_classes": 5, "embedding_dim": 16}
STRUCTURAL = ("margin", "multisimilarity", "triplet", "contrastive", "quadruplet", "npair", "lifted", "histogram")
STRUCTURAL += ("proxynca", "proxyanchor", "softtriple", "softmax")
TRIPLETS = ("margin", "triplet", "quadruplet", "margin_diml")


def _build(name, **options):
    torch.manual_seed(0)
    return build_objective(name, **SIZES, num_regions=4, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("name", objective_names())
def test_options_are_plain_and_build_it_again(name, make_maps):
    objective = _build(name)
    options = json.loads(json.dumps(objective.options))
    again = build_objective(**options, generator=torch.Generator().manual_seed(0))
    assert json.loads(json.dumps(again.options)) == options
    again.load_state_dict(objective.state_dict())
    maps, labels = make_maps()
    regions = Regions.from_maps(maps.detach())
    if name != "adversarial_separation":  # its further miners have drawn by then
        assert torch.equal(objective(regions, labels), again(regions, labels))


@pytest.mark.parametrize("name", objective_names())
def test_only_structural_objectives_look_at_regions(name, make_maps):
    maps, labels = make_maps()
    regions = Regions.from_maps(maps.detach())
    other = Regions(regions.dense.roll(1, dims=0), regions.pooled)
    objective = _build(name)
    values = []
    for given in (regions, other):
        objective = _build(name)
        values.append(objective(given, labels).item())
    assert objective.uses_regions == name.endswith("_diml")
    assert (objective.matcher is not None) == objective.uses_regions
    assert (values[0] != values[1]) == objective.uses_regions


@pytest.mark.parametrize("name", [name for name in objective_names() if not name.endswith("_diml")])
def test_pooled_objectives_take_embeddings(name, make_maps):
    maps, labels = make_maps()
    regions = Regions.from_maps(maps.detach())
    expected = _build(name)(regions, labels)
    torch.testing.assert_close(_build(name)(regions.pooled, labels), expected)
    longer = _build(name)(3 * regions.pooled, labels)
    lengths_matter = name in ("npair", "lifted")  # angular does only with n-pair
    assert torch.isclose(longer, expected) != lengths_matter
    assert _build(name).unnormalized == (name in ("npair", "lifted", "angular"))


def test_angular_with_npair_sees_lengths(make_maps):
    maps, labels = make_maps()
    pooled = Regions.from_maps(maps.detach()).pooled
    options = {"angular_weight": 2, "npair_weight": 1, "l2_weight": 0.005}
    angular, npair = _build("angular"), _build("npair", l2_weight=0.0)
    for scale in (1, 2):
        expected = 2 * angular(scale * pooled, labels) + npair(scale * pooled, labels) + 0.005 * scale
        torch.testing.assert_close(_build("angular", **options)(scale * pooled, labels), expected)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("margin", {}, {"beta": 5e-4}),
        ("margin", {"learn_beta": False}, {}),
        ("margin_diml", {"beta_lr": 1e-3}, {"beta": 1e-3}),
        ("multisimilarity", {}, {}),
        ("proxynca", {}, {"proxies": 50e-5}),
        ("proxyanchor", {}, {"proxies": 100e-5}),
        ("softtriple", {}, {"fc": 1e-5}),
        ("arcface", {}, {"W": 5e-4}),
        ("softmax", {}, {"W": 1e-5}),
        ("adversarial_separation", {}, {"losses": 5e-4, "predictors": 1e-5}),
    ],
)
def test_parameter_groups_have_their_own_rates(name, options, expected):
    objective = _build(name, **options)
    groups = objective.parameter_groups(lr=1e-5)
    assert {group["name"]: pytest.approx(group["lr"]) for group in groups} == expected
    assert all(group["weight_decay"] == 0 for group in groups)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in objective.parameters()}
    if groups:
        optimiser = torch.optim.Adam(groups, lr=1.0)
        assert all("lr" in group for group in optimiser.param_groups)
    relative = [group for group in objective.parameter_groups() if "lr" not in group]
    assert bool(relative) == (name in ("proxynca", "proxyanchor", "softtriple"))


def test_beta_learns_for_the_classes_of_the_batch(make_maps):
    maps, labels = make_maps()
    objective = _build("margin_diml", beta=0.6)
    assert objective.loss.beta.tolist() == [pytest.approx(0.6)] * 5
    objective(Regions.from_maps(maps), labels).backward()
    assert objective.loss.beta.grad[4] == 0
    assert (objective.loss.beta.grad[:4] != 0).any()
    assert _build("margin", per_class=False).loss.beta.shape == (1,)
    _build("margin", nu=0.1)(Regions.from_maps(maps), labels).backward()


def test_margin_has_one_term_a_triplet(make_maps):
    """The released margin + DIML broadcasts (n, 1) against (n,) into n x n terms."""
    maps, labels = make_maps()
    regions = Regions.from_maps(maps.detach())
    objective = _build("margin_diml", miner="random", margin=0.3)
    loss = objective(regions, labels).item()
    chosen = _build("margin_diml", miner="random").miner(regions.pooled, labels)
    matrix = StructuralDistance(4)(pack_regions(regions))
    total, active = 0.0, 0
    for i, j, k in zip(*chosen, strict=True):
        for term in (matrix[i, j] - 1.2 + 0.3, 1.2 - matrix[i, k] + 0.3):
            total += max(0.0, float(term))
            active += int(term > 0)
    assert active > 12
    assert loss == pytest.approx(total / active, rel=1e-5)


@pytest.mark.parametrize("name", objective_names())
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [2]], ids=["one class", "all differ", "one image"])
def test_batches_without_pairs_stay_finite(name, labels, make_maps):
    maps, _ = make_maps()
    for miner in allowed_miners(name):
        leaf = maps.detach()[: len(labels)].clone().requires_grad_()
        objective = _build(name, miner=miner)
        loss = objective(Regions.from_maps(leaf), torch.tensor(labels))
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()
        if name in TRIPLETS and miner != "intra_random":
            assert loss == 0


@pytest.mark.parametrize("name", objective_names())
def test_blank_and_equal_images_stay_finite(name, make_maps):
    maps, labels = make_maps()
    maps = maps.detach().clone()
    maps[0] = 0
    maps[4] = maps[3]
    maps[9] = maps[3]
    maps.requires_grad_()
    loss = _build(name)(Regions.from_maps(maps), labels)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


def test_snr_is_zero_when_nothing_violates():
    """The released code divides by the number of violations."""
    pooled = torch.eye(16)[[0, 0, 1, 1]] + 0.01
    objective = _build("snr", margin=0.0, miner="none", zero_mean_weight=0.0)
    leaf = pooled.requires_grad_()
    loss = objective(leaf, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss == 0
    assert leaf.grad.isfinite().all()


def test_snr_has_no_zero_mean_term_with_distance_mining():
    assert _build("snr").options["zero_mean_weight"] == 0
    assert _build("snr", miner="random").options["zero_mean_weight"] == 0.005


def test_statistics_count(make_maps):
    maps, labels = make_maps()
    regions = Regions.from_maps(maps)
    margin = _build("margin_diml", matcher=Matcher(max_iterations=1))
    margin(regions, labels)
    assert margin.statistics["triplets"] == 12
    assert 0 < margin.statistics["active"] <= 12
    assert margin.statistics["unconverged_pairs"] > 0
    similarity = _build("multisimilarity")
    similarity(regions, labels)
    assert set(similarity.statistics) == {"positive_pairs", "negative_pairs", "active"}


def test_miner_and_loss_share_one_matrix(make_maps, monkeypatch):
    maps, labels = make_maps()
    objective = _build("multisimilarity_diml")
    solved = []
    for distance in objective._structural:
        solve = distance._matrix
        monkeypatch.setattr(distance, "_matrix", lambda *a, _s=solve, **k: solved.append(1) or _s(*a, **k))
    objective(Regions.from_maps(maps), labels).backward()
    assert len(solved) == 1


@pytest.mark.parametrize("name", ["margin", "triplet", "contrastive"])
def test_mined_triplets_need_no_other_pairs(name, make_maps, monkeypatch):
    maps, labels = make_maps(classes=5, per_class=6)
    regions = Regions.from_maps(maps.detach())
    few = _build(name, similarity="structural")
    monkeypatch.setattr(type(few._structural[0]), "_matrix", None)  # what solves all pairs
    value = few(regions, labels)
    monkeypatch.undo()
    every = _build(name, similarity="structural")
    every._reads_mined_only = False
    torch.testing.assert_close(value, every(regions, labels), rtol=1e-4, atol=1e-5)


def test_precision(make_maps):
    maps, labels = make_maps()
    for name in ("multisimilarity_diml", "margin", "proxyanchor"):
        objective = _build(name)
        expected = objective(Regions.from_maps(maps), labels)
        assert expected.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = _build(name)(Regions.from_maps(maps), labels)
        torch.testing.assert_close(again, expected)
        half = _build(name)(Regions.from_maps(maps).to(torch.float16), labels)
        assert half.dtype == torch.float32
    assert _build("multisimilarity_diml")(Regions.from_maps(maps.double()), labels).dtype == torch.float64


def test_a_copy_is_its_own(make_maps):
    maps, labels = make_maps()
    objective = _build("margin_diml")
    copied = copy.deepcopy(objective)
    copied(Regions.from_maps(maps), labels)
    assert copied.statistics["triplets"] == 12
    assert objective.statistics == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("marign", {}, "did you mean 'margin'"),
        ("margin", {"miner": "semi-hard"}, "allowed.*semihard"),
        ("npair", {"miner": "distance"}, r"npair.*'distance'; allowed: \('none',\)"),
        ("multisimilarity", {"miner": "intra_random"}, "allowed"),
        ("arcface", {"similarity": "structural"}, "allowed.*'margin'"),
        ("margin", {"similarity": "regions"}, "allowed.*structural"),
        ("margin_diml", {"similarity": "pooled"}, "choose 'margin'"),
        ("margin", {"bet": 1.0}, "did you mean beta"),
        ("margin_diml", {"epsilon": 0.1}, r"matcher=Matcher\(epsilon=0.1\)"),
        ("margin", {"miner_cutof": 0.1}, "did you mean miner_cutoff"),
        ("margin", {"miner": "none", "miner_cutoff": 0.1}, "none"),
        ("margin", {"mining": "structural"}, "similarity 'structural'"),
        ("margin_diml", {"mining": "regions"}, "allowed"),
        ("margin_diml", {"matcher": {"weights": "both"}}, "weights"),
        ("margin_diml", {"matcher": {"epsilom": 0.1}}, "did you mean epsilon"),
        ("proxyanchor", {"similarity": "structural", "num_regions": None}, "num_regions"),
        ("margin", {"num_classes": 0}, "num_classes"),
        ("margin", {"embedding_dim": 1.5}, "embedding_dim"),
        ("histogram", {"nodes": 1}, "nodes"),
        ("softtriple", {"centers": 0}, "centers"),
        ("angular", {"angular_weight": 0}, "npair"),
        ("adversarial_separation", {"parts": ("shared", "intra")}, "discriminative"),
        ("adversarial_separation", {"embedding_dim": 15}, "multiple"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_objective(name, **(SIZES | {"num_regions": 4} | options))


def test_wrong_batches_are_refused(make_maps):
    maps, labels = make_maps()
    regions = Regions.from_maps(maps.detach())
    pooled, structural = _build("margin"), _build("proxyanchor", similarity="structural")
    with pytest.raises(TypeError, match="need Regions"):
        pooled([1, 2], labels)
    with pytest.raises(TypeError, match="compares regions"):
        structural(regions.pooled, labels)
    with pytest.raises(ValueError, match="embedding_dim"):
        pooled(Regions.from_maps(maps.detach()[:, :8]), labels)
    with pytest.raises(ValueError, match="float embeddings"):
        pooled(regions.pooled[:, :8], labels)
    with pytest.raises(ValueError, match="num_regions = 4"):
        structural(Regions(regions.dense[:, :2], regions.pooled), labels)
    with pytest.raises(TypeError, match="integer"):
        pooled(regions, labels.float())
    with pytest.raises(ValueError, match="shape"):
        pooled(regions, labels[:3])
    with pytest.raises(ValueError, match="num_classes - 1 = 4, got 2 to 5"):
        pooled(regions, labels + 2)
    with pytest.raises(ValueError, match="N >= 1"):
        pooled(regions[:0], labels[:0])
