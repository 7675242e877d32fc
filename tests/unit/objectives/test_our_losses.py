"""Our losses against naive loops, and against those of PML that they correct in one place."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as library
from pytorch_metric_learning import regularizers
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance, SNRDistance

from diml.objectives import build_objective, miners
from diml.objectives.distances import SignalToNoiseDistance
from diml.objectives.losses import AngularLoss, CenterDiversity, HistogramLoss, QuadrupletLoss, reverse_gradient

PLAIN = {"normalize_embeddings": False}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    return F.normalize(torch.randn(12, 8, generator=generator).double(), dim=1), torch.arange(4).repeat_interleave(3)


class TestQuadruplet:
    def test_naive_loop(self, batch):
        x, y = batch
        triplets = miners.RandomMiner(generator=torch.Generator().manual_seed(0))(x, y)
        loss = QuadrupletLoss(0.2, 0.3, torch.Generator().manual_seed(1), distance=LpDistance(**PLAIN))(x, y, triplets)
        again = torch.Generator().manual_seed(1)
        others = torch.stack([(y != y[a]) & (y != y[n]) for a, _, n in zip(*triplets, strict=True)])
        fourth = miners.draw(others, again)
        total = 0.0
        for a, p, n, m in zip(*triplets, fourth, strict=True):
            assert len({int(y[a]), int(y[n]), int(y[m])}) == 3
            total += max(0.0, float((x[a] - x[p]).norm() - (x[a] - x[n]).norm()) + 0.2)
            total += max(0.0, float((x[a] - x[p]).norm() - (x[n] - x[m]).norm()) + 0.3)
        assert loss.item() == pytest.approx(total / len(fourth), rel=1e-9)

    def test_two_classes_leave_the_triplet_loss(self, batch):
        x, y = batch
        distance = LpDistance(**PLAIN)
        expected = library.TripletMarginLoss(0.2, distance=distance, reducer=QuadrupletLoss().get_default_reducer())
        assert torch.equal(QuadrupletLoss(0.2, 0.2, distance=distance)(x[:6], y[:6]), expected(x[:6], y[:6]))

    def test_similarities_and_references_are_refused(self, batch):
        x, y = batch
        with pytest.raises(ValueError, match="similarity"):
            QuadrupletLoss(distance=DotProductSimilarity())
        with pytest.raises(ValueError, match="ref_emb"):
            QuadrupletLoss()(x, y, ref_emb=x.clone(), ref_labels=y)


class TestHistogram:
    @staticmethod
    def naive(x, y, bins):
        """Triangular densities on the nodes, node by node and pair by pair."""
        density = {True: [0.0] * (bins + 1), False: [0.0] * (bins + 1)}
        counts = {True: 0, False: 0}
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                same = bool(y[i] == y[j])
                counts[same] += 1
                for node in range(bins + 1):
                    at = -1 + node * 2 / bins
                    density[same][node] += max(0.0, 1 - abs(float(x[i] @ x[j]) - at) * bins / 2)
        below, total = 0.0, 0.0
        for node in range(bins + 1):
            below += density[True][node] / counts[True]
            total += below * density[False][node] / counts[False]
        return total

    @pytest.mark.parametrize("bins", [10, 64])
    def test_naive_loop(self, batch, bins):
        value = HistogramLoss(n_bins=bins, distance=DotProductSimilarity(**PLAIN))(*batch)
        assert value.item() == pytest.approx(self.naive(*batch, bins), rel=1e-6)

    def test_equals_the_library(self, batch):
        with warnings.catch_warnings():  # the library indexes with lists, which torch warns of
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
            expected = library.HistogramLoss(n_bins=64)(*batch)
        torch.testing.assert_close(HistogramLoss(n_bins=64)(*batch), expected, rtol=1e-9, atol=0)

    def test_equal_images_do_not_fall_off_the_last_node(self, batch):
        x, y = batch
        for vectors in (x.float(), x):
            x = vectors.clone()
            x[1] = x[0]
            assert HistogramLoss(n_bins=64, distance=DotProductSimilarity(**PLAIN))(x, y).isfinite()


class TestAngular:
    def test_naive_loop_whatever_the_lengths(self, batch):
        x, y = batch
        value = AngularLoss(45)(x * torch.arange(1, 13).unsqueeze(1), y)
        tan, terms = math.tan(math.radians(45)) ** 2, []
        for a in range(12):
            for p in range(12):
                if a != p and y[a] == y[p]:
                    f = [4 * tan * float((x[a] + x[p]) @ x[n]) for n in range(12) if y[n] != y[a]]
                    shift = 2 * (1 + tan) * float(x[a] @ x[p])
                    terms.append(math.log(1 + sum(math.exp(value - shift) for value in f)))
        assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_center_diversity_equals_the_library():
    w = torch.randn(15, 7, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(CenterDiversity(3)(w), regularizers.SparseCentersRegularizer(5, 3)(w), rtol=1e-5, atol=0)


def test_center_diversity_of_equal_centers_has_a_finite_gradient():
    w = torch.ones(4, 7, requires_grad=True)
    CenterDiversity(2)(w).backward()
    assert w.grad.isfinite().all()


def test_signal_to_noise_equals_the_library_and_takes_a_blank_image(batch):
    x, _ = batch
    ours = SignalToNoiseDistance(**PLAIN)(x)
    torch.testing.assert_close(ours, SNRDistance(**PLAIN)(x))
    blank = x.clone()
    blank[0] = 0
    assert SignalToNoiseDistance(**PLAIN)(blank).isfinite().all()


class TestAdversarialSeparation:
    def test_the_reversal_flips_the_gradient_only(self):
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        y = reverse_gradient(x)
        assert torch.equal(y, x)
        (y * torch.tensor([3.0, 4.0])).sum().backward()
        assert x.grad.tolist() == [-3.0, -4.0]

    @pytest.fixture
    def loss(self):
        torch.manual_seed(0)
        options = {"parts": ("discriminative", "shared"), "hidden": 16}
        sizes = {"num_classes": 4, "embedding_dim": 8}
        return build_objective("adversarial_separation", miner="random", **sizes, **options).loss.double()

    def test_separation_against_a_naive_loop(self, loss, batch):
        parts = [F.normalize(part, dim=1) for part in batch[0].chunk(2, dim=1)]
        predicted = loss.predictors[0](parts[1]).detach()
        total = 0.0
        for i in range(12):
            unit = predicted[i] / predicted[i].norm()
            total += sum(float(parts[0][i, c] * unit[c]) ** 2 for c in range(4)) / 4
        assert loss.separation(parts).item() == pytest.approx(-total / 12, rel=1e-6)

    def test_the_predictor_seeks_what_the_embedding_flees(self, loss, batch):
        x = batch[0].clone().requires_grad_()

        def found(vectors):
            with torch.no_grad():
                return -loss.separation([F.normalize(part, dim=1) for part in vectors.chunk(2, dim=1)]).item()

        before = found(x)
        value = loss.separation([F.normalize(part, dim=1) for part in x.chunk(2, dim=1)])
        value.backward()
        assert found(x.detach() - 0.1 * x.grad) < before
        with torch.no_grad():
            for weight in loss.predictors.parameters():
                weight -= 0.1 * weight.grad
        assert found(x.detach()) > before

    def test_the_sum_of_its_parts(self, loss, batch):
        x, y = batch
        triplets = miners.RandomMiner(generator=torch.Generator().manual_seed(3))(x, y)
        loss.miners[1] = miners.RandomMiner(generator=torch.Generator().manual_seed(3))
        parts = [F.normalize(part, dim=1) for part in x.chunk(2, dim=1)]
        margins = [library.MarginLoss(0.2, beta=1.2)(part, y, triplets) for part in parts]
        expected = margins[0] + 0.3 * margins[1] + 150 * loss.separation(parts)
        torch.testing.assert_close(loss(x, y, triplets).reshape(()), expected)
