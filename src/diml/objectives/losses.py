"""Losses that pytorch-metric-learning (PML) lacks, in its form: loss(embeddings, labels, indices_tuple) -> scalar.

`HistogramLoss`, `AngularLoss` and `CenterDiversity` change one place each of PML's; `QuadrupletLoss` and
`AdversarialSeparation` are ours.

Legend: N images, D channels of an embedding, T triplets (a, p, n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.regularizers import BaseRegularizer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn

from diml.objectives.miners import draw

#: Cosines stay below 1 by this much in the histogram: the node right of cosine 1 does not exist.
_BELOW_ONE: Final = 1e-6

#: What each part of the embedding learns in `AdversarialSeparation`.
PARTS: Final = ("discriminative", "shared", "intra")


class QuadrupletLoss(losses.BaseMetricLossFunction):  # type: ignore[misc]
    """Triplet loss plus a term for two images of other classes: the distance (a, p) stays below (n, m) as well.

    mean_T relu(d(a, p) - d(a, n) + margin) + mean_T relu(d(a, p) - d(n, m) + margin_others), where m is drawn for each
    triplet among the images whose class is neither that of a nor that of n; a triplet without such an image (two
    classes in total) is left out of the second mean. The authors' base code draws m regardless of its class; the paper
    has learned distances, the authors Euclidean ones, as here.

    Args:
        margin, margin_others: the two margins, 0 or more.
        generator: CPU generator for the draw; the global one when omitted.
        kwargs: `distance=` and `reducer=` as in PML; the distance must not be inverted.

    Called with (N, D) float, (N,) int64 and, optionally, mined indices (all triplets when omitted); returns a scalar.
    Source: Chen, Chen, Zhang, Huang, CVPR 2017.

    Example:
        >>> QuadrupletLoss(0.2, 0.2)(embeddings, labels, miner(embeddings, labels))
    """

    def __init__(
        self,
        margin: float = 0.2,
        margin_others: float = 0.2,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.distance.is_inverted:
            raise ValueError("distance: need a distance, got a similarity; take StructuralDistance or LpDistance")
        self.margin, self.margin_others, self.generator = margin, margin_others, generator

    def get_default_reducer(self) -> MeanReducer:
        """Average over all triplets, violated or not."""
        return MeanReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["triplet_loss", "others_loss"]

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Losses of each triplet, for the reducer."""
        if ref_emb is not embeddings:
            raise ValueError("ref_emb: QuadrupletLoss works within one batch; omit ref_emb")
        a, p, n = lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor="all")
        if len(a) == 0:
            return dict(self.zero_losses())
        matrix = self.distance(embeddings, embeddings)
        near = F.relu(matrix[a, p] - matrix[a, n] + self.margin)
        parts = {"triplet_loss": {"losses": near, "indices": (a, p, n), "reduction_type": "triplet"}}
        others = (labels[a].unsqueeze(1) != labels) & (labels[n].unsqueeze(1) != labels)
        kept = others.any(dim=1)
        a, p, n = a[kept], p[kept], n[kept]
        if len(a) == 0:
            return parts | {"others_loss": self.zero_loss()}
        m = draw(others[kept], self.generator)
        far = F.relu(matrix[a, p] - matrix[n, m] + self.margin_others)
        return parts | {"others_loss": {"losses": far, "indices": (a, p, n), "reduction_type": "triplet"}}


class HistogramLoss(losses.HistogramLoss):  # type: ignore[misc]
    """PML's histogram loss over all positive and all negative pairs, each counted once.

    Densities are PML's. Two things differ: pairs come from masks rather than from all triplets (PML indexes with lists,
    which future versions of torch will interpret differently), and a cosine of exactly 1 is counted in the last node.
    Mined indices restrict the pairs. Source: Ustinova & Lempitsky, NeurIPS 2016.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """One reduced value: the probability that a random negative pair is more similar than a random positive one."""
        if ref_emb is not embeddings:
            raise ValueError("ref_emb: HistogramLoss works within one batch; omit ref_emb")
        a, p, b, n = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
        if len(a) == 0 or len(b) == 0:
            return dict(self.zero_losses())
        matrix = self.distance(embeddings, embeddings).clamp(-1, 1 - _BELOW_ONE)
        positive, negative = (self.compute_density(_each_once(matrix, *pair)) for pair in ((a, p), (b, n)))
        value = (negative * positive.cumsum(0)).sum()
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}


def _each_once(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (i, j) of a symmetric matrix, where (j, i) and repetitions count as the same entry."""
    chosen = torch.zeros_like(matrix, dtype=torch.bool)
    chosen[torch.minimum(rows, columns), torch.maximum(rows, columns)] = True
    return matrix[chosen]


class AngularLoss(losses.AngularLoss):  # type: ignore[misc]
    """PML's angular loss with *all* vectors normalised; PML does not normalise the negatives.

    Source: Wang, Zhou, Wen, Liu, Lin, ICCV 2017.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> Any:
        """Losses of each positive pair, for the reducer."""
        unit = F.normalize(embeddings, dim=1)
        unit_ref = unit if ref_emb is embeddings else F.normalize(ref_emb, dim=1)
        return super().compute_loss(unit, labels, indices_tuple, unit_ref, ref_labels)


class CenterDiversity(BaseRegularizer):  # type: ignore[misc]
    """Distances between the centres of one class, sum_{i<j} ||w_i - w_j|| / (C K (K - 1)), C classes of K centres.

    The value of PML's `SparseCentersRegularizer`, which compares *all* centres with each other and therefore needs
    gigabytes on data sets of 11,000 classes. Source: Qian et al., SoftTriple, ICCV 2019, equation 10.
    """

    def __init__(self, centers_per_class: int) -> None:
        super().__init__(distance=CosineSimilarity(), reducer=MeanReducer())
        self.centers_per_class = centers_per_class

    def compute_loss(self, x: Tensor) -> dict[str, Any]:
        """`x` holds the centres (C * K, D), those of a class next to each other."""
        centers = F.normalize(x, dim=1).reshape(-1, self.centers_per_class, x.shape[1])
        i, j = torch.triu_indices(self.centers_per_class, self.centers_per_class, offset=1, device=x.device)
        cosine = (centers[:, i] * centers[:, j]).sum(dim=2)
        value = (2.00001 - 2 * cosine).clamp(min=1e-5).sqrt().mean() / 2
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}


class AdversarialSeparation(nn.Module):
    """Slices of one embedding are trained on different triplets and decorrelated adversarially, after DiVA.

    DiVA trains several heads on one backbone: one discriminates classes, one learns from triplets *across* classes what
    classes share, one from triplets *within* a class. Between heads, a small network predicts one head from the other
    behind a gradient reversal: the network finds what they have in common, and the heads remove it.

    Ours is an interpretation for a model with one embedding: the pooled vector is divided into equal slices, one for
    each part, each normalised and trained by a margin loss with its own triplets; `separation` is
    -mean((slice * predicted slice)^2) between the first part and each other one. The self-supervised head of DiVA is
    left out: it needs a second view of each image.

    Args:
        num_classes: for the class-wise beta of the first part.
        dim: D of the pooled vector, divisible by the number of parts.
        miner: draws the triplets of the first part, on its slice.
        other_miners: one for each further part.
        margin, beta: of all margin losses.
        part_weight: weight of each further part's loss (DiVA 0.1 to 0.3).
        separation_weight: weight of each separation (DiVA 100 to 1500).
        hidden: width of the predicting networks.

    Called with (N, D) float, (N,) int64; returns a scalar. Source: Milbich et al., ECCV 2020, sections 3 and 4.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        miner: BaseMiner,
        other_miners: Sequence[BaseMiner],
        margin: float = 0.2,
        beta: float = 1.2,
        part_weight: float = 0.3,
        separation_weight: float = 150.0,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        parts = 1 + len(other_miners)
        if parts < 2 or dim % parts:
            raise ValueError(
                f"embedding_dim: need a multiple of the number of parts, got {dim} for {parts} parts (2 up)"
            )
        self.size = dim // parts
        self.part_weight, self.separation_weight = part_weight, separation_weight
        self.miners = nn.ModuleList([miner, *other_miners])
        shared = [losses.MarginLoss(margin, beta=beta, learn_beta=True) for _ in other_miners]
        first = losses.MarginLoss(margin, beta=beta, learn_beta=True, num_classes=num_classes)
        self.losses = nn.ModuleList([first, *shared])
        predictors = [(nn.Linear(self.size, hidden), nn.ReLU(), nn.Linear(hidden, self.size)) for _ in other_miners]
        self.predictors = nn.ModuleList(nn.Sequential(*layers) for layers in predictors)

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        """Sum of the parts' losses and the separations; `indices_tuple` replaces the triplets of the first part."""
        parts = [F.normalize(part, dim=1) for part in embeddings.chunk(len(self.miners), dim=1)]
        total: Tensor = embeddings.sum() * 0
        for index, (part, miner, loss) in enumerate(zip(parts, self.miners, self.losses, strict=True)):
            given = indices_tuple is not None and index == 0
            value = loss(part, labels, indices_tuple if given else miner(part, labels))
            total = total + value * (1.0 if index == 0 else self.part_weight)
        return total + self.separation_weight * self.separation(parts)

    def separation(self, parts: Sequence[Tensor]) -> Tensor:
        """Minus the correlation that the predictors find, behind the gradient reversal; unit slices (N, D / parts)."""
        target, *others = (reverse_gradient(part) for part in parts)
        found = [
            (target * F.normalize(predictor(other), dim=1)).square().mean()
            for other, predictor in zip(others, self.predictors, strict=True)
        ]
        return -torch.stack(found).sum()


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient has the opposite sign."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reverse_gradient(values: Tensor) -> Tensor:
    """Return `values`; in the backward pass their gradient changes sign. Source: Ganin & Lempitsky, ICML 2015."""
    result: Tensor = _Reversal.apply(values)
    return result
