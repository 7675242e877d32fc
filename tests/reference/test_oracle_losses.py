"""Our objectives beside the released code on fixed inputs.

Where the definitions agree, value and gradient must. Where the released code departs from the published definition, the
test writes the released formula down, shows that the recorded value is *that*, and that ours is the published one.

Legend: N = 12 images in 6 classes of two, D = 32 channels, R = 16 regions.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diml.matching import Matcher, Regions
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, pack_regions

SIZES = {"num_classes": 6, "embedding_dim": 32}


class Recorded:
    """The recorded arrays as tensors, and the inputs they belong to."""

    def __init__(self, oracle):
        self.oracle = oracle
        self.x, self.y, self.maps = (self[f"loss_{key}"] for key in ("embeddings", "labels", "feature_maps"))
        self.triplets = tuple(self["loss_triplets"].T)

    def __getitem__(self, name):
        return torch.tensor(self.oracle[name])

    def value(self, name):
        return float(self.oracle[f"loss_{name}_value"])

    def agrees(self, name, objective, rel=1e-5, chosen=None):
        """Value and gradient of an objective on the embeddings, with given triplets where it mines."""
        x = self.x.clone().requires_grad_()
        loss = objective.loss(x, self.y, chosen)
        loss.backward()
        assert loss.item() == pytest.approx(self.value(name), rel=rel)
        torch.testing.assert_close(x.grad, self[f"loss_{name}_grad"], rtol=1e-4, atol=1e-6)


@pytest.fixture
def recorded(oracle):
    return Recorded(oracle)


def _others(y, i):
    return [j for j in range(len(y)) if y[j] != y[i]]


# ---- Definitions that agree ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["triplet", "contrastive", "snr"])
def test_losses_over_given_triplets_agree(name, recorded):
    recorded.agrees(name, build_objective(name, **SIZES, miner="distance"), chosen=recorded.triplets)


def test_multisimilarity_agrees(recorded):
    objective = build_objective("multisimilarity", **SIZES)
    recorded.agrees("multisimilarity", objective, chosen=objective.miner(recorded.x, recorded.y))
    loss = objective(recorded.x, recorded.y)
    assert loss.item() == pytest.approx(recorded.value("multisimilarity"), rel=1e-5)


def test_multisimilarity_averages_over_active_anchors(recorded):
    """As the authors do; the paper divides by all images, which `active_only=False` gives: here half are active."""
    objective = build_objective("multisimilarity", **SIZES, active_only=False)
    assert objective(recorded.x, recorded.y).item() == pytest.approx(recorded.value("multisimilarity") / 2, rel=1e-5)


def test_histogram_agrees(recorded):
    recorded.agrees("histogram", build_objective("histogram", **SIZES, nodes=65))


def test_softmax_agrees(recorded):
    objective = build_objective("softmax", **SIZES)
    objective.loss.W.data = recorded["loss_softmax_param_class_map"].T.clone()
    recorded.agrees("softmax", objective)


# ---- DIML: the released code with rows and columns of the weights put right ------------------------------------------


def test_structural_matrices_agree(recorded):
    packed = pack_regions(Regions.from_maps(recorded.maps))
    similarity, distance = StructuralSimilarity(16)(packed), StructuralDistance(16)(packed)
    assert (similarity - recorded["train_similarity_matrix_oriented"]).abs().max() <= 1e-4
    apart = (distance - recorded["train_distance_matrix_oriented"]).abs()
    assert apart[~torch.eye(len(apart), dtype=torch.bool)].max() <= 1e-4
    assert apart.diagonal().max() <= 3e-4  # the root of 1e-6 and of what rounding leaves of 2 - 2 cosine


def test_released_matrices_have_the_weights_swapped(recorded):
    packed = pack_regions(Regions.from_maps(recorded.maps))
    off = ~torch.eye(12, dtype=torch.bool)
    released = recorded["train_similarity_matrix_as_released"]
    assert (StructuralSimilarity(16)(packed) - released)[off].abs().mean() > 1e-2
    released = recorded["train_distance_matrix_as_released"]
    assert (StructuralDistance(16)(packed) - released)[off].abs().mean() > 1e-2


def test_multisimilarity_diml_agrees(recorded):
    maps = recorded.maps.clone().requires_grad_()
    loss = build_objective("multisimilarity_diml", **SIZES)(Regions.from_maps(maps), recorded.y)
    loss.backward()
    expected = float(recorded.oracle["train_multisimilarity_loss_oriented"])
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    gradient = recorded["train_multisimilarity_grad_oriented"]
    assert (maps.grad - gradient).norm() <= 1e-3 * gradient.norm()


def test_multisimilarity_diml_with_uniform_weights_agrees_as_released(recorded):
    """Uniform weights cannot be swapped."""
    objective = build_objective("multisimilarity_diml", **SIZES, matcher=Matcher(weights="uniform"))
    loss = objective(Regions.from_maps(recorded.maps), recorded.y)
    assert loss.item() == pytest.approx(recorded.value("multisimilarity_diml_uniform"), rel=1e-3)


def _margin_terms(matrix, beta, triplets):
    a, p, n = triplets
    return F.relu(matrix[a, p] - beta + 0.2), F.relu(beta - matrix[a, n] + 0.2)


def test_margin_diml_differs_by_swapped_weights_and_n_times_n_terms(recorded):
    """Released: distances (n,) meet beta (n, 1), so every beta meets every triplet; all betas are 1.2 here, which hides
    it in the value but for the divisor, the number of (n, n) terms with a violation."""
    objective = build_objective("margin_diml", **SIZES)
    ours = objective.loss
    regions = Regions.from_maps(recorded.maps)
    ours.distance.regions = 16
    loss = ours(pack_regions(regions), recorded.y, recorded.triplets).item()
    near, far = _margin_terms(StructuralDistance(16)(pack_regions(regions)), 1.2, recorded.triplets)
    assert loss == pytest.approx(float((near + far).sum() / ((near > 0).sum() + (far > 0).sum())), rel=1e-5)
    near, far = _margin_terms(recorded["train_distance_matrix_as_released"], 1.2, recorded.triplets)
    released = float((near + far).sum() / ((near > 0) | (far > 0)).sum())
    assert released == pytest.approx(recorded.value("margin_diml"), rel=1e-3)
    assert loss != pytest.approx(released, rel=1e-2)


# ---- Definitions that differ -----------------------------------------------------------------------------------------


def test_margin_divides_by_violated_pairs_not_triplets(recorded):
    """Released: the sum over the number of triplets with any violation. Published: over that of violated terms."""
    d = torch.cdist(recorded.x, recorded.x)
    near, far = _margin_terms(d, 1.2, recorded.triplets)
    released = (near + far).sum() / ((near > 0) | (far > 0)).sum()
    assert released.item() == pytest.approx(recorded.value("margin"), rel=1e-5)
    ours = build_objective("margin", **SIZES).loss(recorded.x, recorded.y, recorded.triplets)
    published = (near + far).sum() / ((near > 0).sum() + (far > 0).sum())
    assert ours.item() == pytest.approx(published.item(), rel=1e-5)
    x = recorded.x.clone().requires_grad_()
    build_objective("margin", **SIZES).loss(x, recorded.y, recorded.triplets).backward()
    ratio = published / released
    torch.testing.assert_close(x.grad, ratio * recorded["loss_margin_grad"], rtol=1e-4, atol=1e-6)


def test_quadruplet_draws_the_fourth_image_elsewhere(recorded):
    """The triplet half agrees; the other half depends on the draw of the fourth image, of any class in the released
    code, and lies between the least and the most that any draw gives."""
    x, (a, p, n) = recorded.x, recorded.triplets
    d = torch.cdist(x, x)
    near = F.relu(d[a, p] - d[a, n] + 0.2).mean().item()
    rest = F.relu(d[a, p].unsqueeze(1) - d[n] + 0.2)
    half = recorded.value("quadruplet") - near
    assert rest.amin(dim=1).mean() <= half <= rest.amax(dim=1).mean()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        objective = build_objective("quadruplet", **SIZES, generator=generator)
        mean = [rest[i, _others(recorded.y, a[i])] for i in range(12)]
        loss = objective.loss(x, recorded.y, recorded.triplets).item()
        assert near + min(float(m.min()) for m in mean) <= loss <= near + max(float(m.max()) for m in mean)


def test_npair_takes_all_images_as_negatives(recorded):
    """Released: every image an anchor, all others but its positive as negatives. Published: one pair a class, the other
    classes' positives as negatives. Both add 0.005 of the mean length, which is 1 here."""
    x, y = recorded.x, recorded.y
    s = x @ x.T
    released = 0.0
    for i in range(12):
        j = i ^ 1  # its only positive
        gaps = [s[i, k] - s[i, j] for k in range(12) if k not in (i, j)]
        released += float(torch.stack(gaps).exp().sum().log1p()) / 12
    assert released + 0.005 == pytest.approx(recorded.value("npair"), rel=1e-5)
    published = 0.0
    for i in range(0, 12, 2):
        gaps = [s[i, k + 1] - s[i, i + 1] for k in range(0, 12, 2) if k != i]
        published += float(torch.stack(gaps).exp().sum().log1p()) / 6
    assert build_objective("npair", **SIZES)(x, y).item() == pytest.approx(published + 0.005, rel=1e-5)


def test_angular_adds_npair_and_a_length_penalty(recorded):
    """Released: n-pair + 2 angular + 0.005 of the mean length. Published (by itself): the angular term."""
    x, y = recorded.x, recorded.y
    s, tan, angular, npair = x @ x.T, math.tan(math.radians(45)) ** 2, 0.0, 0.0
    for i in range(12):
        j, others = i ^ 1, _others(y, i)
        f = 4 * tan * (s[i, others] + s[j, others]) - 2 * (1 + tan) * s[i, j]
        angular += float(f.exp().sum().log1p()) / 12
        npair += float((s[i, others] - s[i, j]).exp().sum().log1p()) / 12
    assert npair + 2 * angular + 0.005 == pytest.approx(recorded.value("angular"), rel=1e-5)
    assert build_objective("angular", **SIZES)(x, y).item() == pytest.approx(angular, rel=1e-5)


def test_lifted_sums_over_the_wrong_axis(recorded):
    """Released: torch's pairwise distance now takes the last axis, so that with one positive each *coordinate* becomes
    a "distance". Published: logarithms of sums over images."""
    x, y = recorded.x, recorded.y
    d = torch.cdist(x, x)
    released = published = 0.0
    for i in range(12):
        j, others = [i ^ 1], _others(y, i)

        def coordinates(chosen, i=i):
            return (x[i].unsqueeze(1) - x[chosen].T + 1e-6).norm(dim=1)  # (D,) over images, in place of (images,)

        near, far = coordinates(j).logsumexp(0), (1 - coordinates(others)).logsumexp(0)
        released += float(F.relu(near + far)) / 12
        published += float(F.relu(d[i, j].logsumexp(0) + (1 - d[i, others]).logsumexp(0))) / 12
    assert released + 0.005 == pytest.approx(recorded.value("lifted"), rel=1e-4)
    assert build_objective("lifted", **SIZES)(x, y).item() == pytest.approx(published + 0.005, rel=1e-4)


def test_proxynca_leaves_the_positive_out(recorded):
    """Released: the sum runs over the proxies of other classes. Ours (the library's): over all, a softmax."""
    objective = build_objective("proxynca", **SIZES)
    proxies = recorded["loss_proxynca_param_proxies"]
    objective.loss.proxies.data = proxies.clone()
    d = 9 * torch.cdist(recorded.x, F.normalize(proxies, dim=1)) ** 2
    own = d[range(12), recorded.y]
    rest = d.masked_fill(F.one_hot(recorded.y, 6).bool(), float("inf"))
    released = (own + torch.logsumexp(-rest, dim=1)).mean()
    assert released.item() == pytest.approx(recorded.value("proxynca"), rel=1e-5)
    softmax = (own + torch.logsumexp(-d, dim=1)).mean()
    assert objective(recorded.x, recorded.y).item() == pytest.approx(softmax.item(), rel=1e-5)


def test_arcface_adds_its_margin_to_every_class(recorded):
    """Released: all logits of an image move alike, which a softmax does not see. Published: the true class's only."""
    objective = build_objective("arcface", **SIZES)
    weights = recorded["loss_arcface_param_class_map"]
    objective.loss.W.data = weights.T.clone()
    raw = recorded.x @ F.normalize(weights, dim=1).T
    cosine = raw.clamp(1e-10, 1 - 1e-10)
    own = cosine[range(12), recorded.y]
    moved = cosine + ((own.acos() + 0.5).cos() - own).unsqueeze(1)
    released = F.cross_entropy(16 * moved, recorded.y).item()
    assert released == pytest.approx(recorded.value("arcface"), rel=1e-5)
    assert released == pytest.approx(F.cross_entropy(16 * cosine, recorded.y).item(), rel=1e-5)  # no effect
    logits = raw.clone()
    logits[range(12), recorded.y] = (raw[range(12), recorded.y].acos() + 0.5).cos()
    published = F.cross_entropy(16 * logits, recorded.y).item()
    assert objective(recorded.x, recorded.y).item() == pytest.approx(published, rel=1e-5)


def test_softtriple_takes_the_wrong_axes(recorded):
    """Released: centres scaled along the wrong axis, softmax over classes in place of centres, gamma in place of its
    inverse. Published: unit centres, softmax over the centres of a class of cosine / gamma."""
    objective = build_objective("softtriple", **SIZES)
    centers = recorded["loss_softtriplet_param_intra_class_centroids"]  # (D, classes * 2)
    objective.loss.fc.data = centers.clone()

    def value(unit, axis, gamma, over):
        s = (recorded.x @ unit).reshape(12, 6, 2)
        s = (torch.softmax(gamma * s, dim=axis) * s).sum(dim=2)
        s = s - 0.01 * F.one_hot(recorded.y, 6)
        between = torch.stack([unit[:, 2 * c] @ unit[:, 2 * c + 1] for c in range(6)])
        return F.cross_entropy(8 * s, recorded.y) + 0.2 * (2.00001 - 2 * between).sqrt().sum() / over

    released = value(F.normalize(centers, dim=1), axis=1, gamma=0.1, over=12)
    assert released.item() == pytest.approx(recorded.value("softtriplet"), rel=1e-5)
    published = value(F.normalize(centers, dim=0), axis=2, gamma=10, over=12)
    assert objective(recorded.x, recorded.y).item() == pytest.approx(published.item(), rel=1e-4)
