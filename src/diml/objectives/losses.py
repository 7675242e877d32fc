"""Losses that pytorch-metric-learning lacks, in its form: loss(embeddings, labels, indices_tuple) -> scalar.

Three of them mend one of its losses in one place each; `QuadrupletLoss` and `AdversarialSeparation` are ours.

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
    """Triplet loss plus a push between two images of other classes: the distance (a, p) stays below (n, m) as well.

    mean_T relu(d(a, p) - d(a, n) + margin) + mean_T relu(d(a, p) - d(n, m) + margin_others), where m is drawn anew for
    each triplet among the images whose class is neither that of a nor that of n; a triplet without such an image (two
    classes in all) adds nothing to the second mean. The authors' base code draws m by its place among the triplets,
    whatever its class; the paper has learned distances, the authors Euclidean ones, as here.

    Args:
        margin, margin_others: the two margins, 0 or more.
        generator: CPU generator for the draw; the global one when omitted.
        kwargs: `distance=` and `reducer=` as in the library; the distance must not be inverted.

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
            raise ValueError("ref_emb: QuadrupletLoss works within one batch; leave ref_emb out")
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
    """The library's histogram loss over all positive and all negative pairs, each once.

    Densities are the library's. What differs: pairs come from masks rather than from all triplets (the library indexes
    with lists, which torch will read otherwise in future), and a cosine of exactly 1 no longer falls off the last node.
    Mined indices restrict the pairs. Source: Ustinova & Lempitsky, NeurIPS 2016.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """One reduced value: the probability that a random negative pair is more alike than a random positive one."""
        if ref_emb is not embeddings:
            raise ValueError("ref_emb: HistogramLoss works within one batch; leave ref_emb out")
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
    """The library's angular loss with *all* vectors at unit length; the library leaves the negatives as they are.

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

    The value of the library's `SparseCentersRegularizer`, which compares *all* centres with each other and for that
    takes gigabytes on data sets of 11,000 classes. Source: Qian et al., SoftTriple, ICCV 2019, equation 10.
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
    """Parts of one embedding learn different things and are kept from telling the same story, in the manner of DiVA.

    DiVA trains several heads on one backbone: one tells classes apart, one learns from triplets *across* classes what
    classes share, one from triplets *inside* a class; between heads, a small network predicts one head from the other
    behind a gradient reversal, so that the network seeks what they have in common and the heads get rid of it.

    Ours is a reading of it for a model with one embedding: the pooled vector is cut into as many equal slices as there
    are `parts`, each brought to unit length and trained by a margin loss with its own triplets; `separation` reads
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
        """Minus what the predictors find in common, behind the gradient reversal: unit slices (N, D / parts) each."""
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
