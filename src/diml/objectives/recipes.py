"""How each objective is made: the loss of pytorch-metric-learning (or ours), its settings and its learning rates.

A recipe is a function of a `Setting` (what data and model give) and keyword options, whose defaults are those of
the authors' runs. It returns a `Recipe`. Which similarities and miners go with it stands in `registry`.

With `similarity="structural"`, a loss between images gets a structural distance. A loss with proxies gets proxies that
are region maps, R x D numbers each, compared by the same matching, the pooled vector being the mean of the regions: our
own reading, since nobody released the ProxyAnchor + DIML that the paper reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import (
    BaseDistance,
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
)
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer
from pytorch_metric_learning.regularizers import LpRegularizer, ZeroMeanRegularizer
from torch import nn

from diml.objectives.distances import SignalToNoiseDistance, StructuralDistance, StructuralSimilarity
from diml.objectives.losses import (
    PARTS,
    AdversarialSeparation,
    AngularLoss,
    CenterDiversity,
    HistogramLoss,
    QuadrupletLoss,
)
from diml.objectives.miners import IntraRandomMiner, RandomDistanceMiner


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a recipe builds for: C classes, D channels, the kind of similarity, and a generator for what it draws."""

    num_classes: int
    dim: int
    structural: bool
    num_regions: int | None
    matching: dict[str, Any]
    miner_name: str
    miner: BaseMiner | None
    generator: torch.Generator | None

    def similarity(self) -> BaseDistance:
        """Cosine of the unit vectors we hand over, or the structural similarity."""
        if self.structural:
            return self._with_miner(StructuralSimilarity(self.num_regions, **self.matching))
        return DotProductSimilarity(normalize_embeddings=False)

    def distance(self, power: float = 1) -> BaseDistance:
        """Euclidean distance of the vectors as they are, or the structural distance."""
        if self.structural:
            return self._with_miner(StructuralDistance(self.num_regions, power=power, **self.matching))
        return LpDistance(normalize_embeddings=False, power=power)

    def _with_miner(self, distance: BaseDistance) -> BaseDistance:
        """The miner's distance where it is the same one: what both ask for is then computed once."""
        if self.miner is None or type(self.miner.distance) is not type(distance):
            return distance
        return self.miner.distance if self.miner.distance.power == distance.power else distance

    @property
    def proxy_size(self) -> int:
        """Numbers in one proxy: D, or R * D for a region map."""
        return self.dim * (self.num_regions or 1) if self.structural else self.dim


@dataclass(frozen=True)
class Rate:
    """Parameters `name` (of the loss module) and their learning rate: fixed, or a multiple of the model's."""

    name: str
    lr: float | None = None
    multiple: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A built loss and what to know of it.

    Args:
        loss: called with embeddings, labels and mined indices or None.
        rates: learning rates of its parameters.
        unnormalized: whether it wants embeddings that are not of unit length.
        reads_mined_only: whether it looks at no other pairs than (a, p) and (a, n) of mined triplets.
        mines_itself: whether it has taken the miner over.
        resolved: options whose default depends on others.
    """

    loss: nn.Module
    rates: tuple[Rate, ...] = ()
    unnormalized: bool = False
    reads_mined_only: bool = False
    mines_itself: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)


Maker = Callable[..., Recipe]


def margin(
    setting: Setting,
    *,
    margin: float = 0.2,
    beta: float = 1.2,
    learn_beta: bool = True,
    per_class: bool = True,
    nu: float = 0.0,
    beta_lr: float = 5e-4,
) -> Recipe:
    """Margin loss around a boundary beta (0.6 or 1.2), learnt for each class. Wu et al., ICCV 2017."""
    classes = setting.num_classes if per_class else None
    loss = losses.MarginLoss(
        margin, nu=nu, beta=beta, learn_beta=learn_beta, num_classes=classes, distance=setting.distance()
    )
    return Recipe(loss, (Rate("beta", lr=beta_lr),) if learn_beta else (), reads_mined_only=True)


def multisimilarity(
    setting: Setting, *, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, active_only: bool = True
) -> Recipe:
    """Multi-similarity. Wang et al., CVPR 2019.

    `active_only` averages over the anchors with a mined pair, as the authors do, not over all.
    """
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    return Recipe(losses.MultiSimilarityLoss(alpha, beta, base, distance=setting.similarity(), reducer=reducer))


def triplet(setting: Setting, *, margin: float = 0.2, squared: bool = True, active_only: bool = False) -> Recipe:
    """Triplet loss on squared distances. Schroff et al., CVPR 2015."""
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    loss = losses.TripletMarginLoss(margin, distance=setting.distance(2 if squared else 1), reducer=reducer)
    return Recipe(loss, reads_mined_only=True)


def contrastive(
    setting: Setting, *, pos_margin: float = 0.0, neg_margin: float = 1.0, active_only: bool = False
) -> Recipe:
    """Contrastive loss. Hadsell, Chopra, LeCun, CVPR 2006 (distances not squared, as in the authors' code)."""
    reducer = AvgNonZeroReducer() if active_only else MeanReducer()
    loss = losses.ContrastiveLoss(pos_margin, neg_margin, distance=setting.distance(), reducer=reducer)
    return Recipe(loss, reads_mined_only=True)


def quadruplet(setting: Setting, *, margin: float = 0.2, margin_others: float = 0.2) -> Recipe:
    """Quadruplet loss, ours. Chen et al., CVPR 2017."""
    return Recipe(QuadrupletLoss(margin, margin_others, setting.generator, distance=setting.distance()))


def npair(setting: Setting, *, l2_weight: float = 0.005) -> Recipe:
    """N-pair (multi-class): one pair a class, negatives are the positives of other classes. Sohn, NIPS 2016."""
    return Recipe(
        losses.NPairsLoss(distance=setting.similarity(), **_l2(setting, l2_weight)), unnormalized=not setting.structural
    )


def lifted(setting: Setting, *, neg_margin: float = 1.0, pos_margin: float = 0.0, l2_weight: float = 0.005) -> Recipe:
    """Generalised lifted structure. Hermans, Beyer, Leibe, 2017, page 4."""
    loss = losses.GeneralizedLiftedStructureLoss(
        neg_margin, pos_margin, distance=setting.distance(), **_l2(setting, l2_weight)
    )
    return Recipe(loss, unnormalized=not setting.structural)


def angular(
    setting: Setting,
    *,
    alpha: float = 45.0,
    angular_weight: float = 1.0,
    npair_weight: float = 0.0,
    l2_weight: float = 0.0,
) -> Recipe:
    """Angular loss, alpha in degrees, by itself or with n-pair. Wang et al., ICCV 2017.

    The authors' runs have angular_weight 2, npair_weight 1, l2_weight 0.005.
    """
    if angular_weight <= 0:
        raise ValueError(f"angular_weight: need more than 0, got {angular_weight}; for none of it take 'npair'")
    parts: list[nn.Module] = [AngularLoss(alpha, **_l2(setting, l2_weight / angular_weight))]
    weights = [angular_weight]
    if npair_weight:
        parts.append(losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False)))
        weights.append(npair_weight)
    return Recipe(losses.MultipleLosses(parts, weights=weights), unnormalized=True)


def histogram(setting: Setting, *, nodes: int = 65) -> Recipe:
    """Histogram loss with that many nodes on [-1, 1] (the authors: 65; 11 for SOP). Ustinova & Lempitsky, NIPS 2016."""
    if nodes < 2:
        raise ValueError(f"nodes: need 2 or more, got {nodes}")
    return Recipe(HistogramLoss(n_bins=nodes - 1, distance=setting.similarity()))


def snr(setting: Setting, *, margin: float = 0.2, zero_mean_weight: float | None = None) -> Recipe:
    """Signal-to-noise triplet loss over violated triplets. Yuan et al., CVPR 2019.

    `zero_mean_weight` defaults to 0.005, and to 0 with distance mining, as in the base code.
    """
    weight = (0.0 if setting.miner_name == "distance" else 0.005) if zero_mean_weight is None else zero_mean_weight
    extra = {"embedding_regularizer": ZeroMeanRegularizer(), "embedding_reg_weight": weight} if weight else {}
    distance = SignalToNoiseDistance(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(margin, distance=distance, reducer=AvgNonZeroReducer(), **extra)
    return Recipe(loss, resolved={"zero_mean_weight": weight})


def proxynca(setting: Setting, *, scale: float = 9.0, proxy_lr_multiple: float = 50.0) -> Recipe:
    """Proxy NCA on squared distances. Movshovitz-Attias et al., ICCV 2017; the library sums over *all* proxies.

    `scale` 9 is the authors' length 3 of embeddings and proxies, squared.
    """
    distance = setting.distance(2) if setting.structural else LpDistance(power=2)
    loss = losses.ProxyNCALoss(setting.num_classes, setting.proxy_size, softmax_scale=scale, distance=distance)
    return Recipe(loss, (Rate("proxies", multiple=proxy_lr_multiple),))


def proxyanchor(
    setting: Setting, *, margin: float = 0.1, alpha: float = 32.0, proxy_lr_multiple: float = 100.0
) -> Recipe:
    """Proxy anchor. Kim et al., CVPR 2020, whose proxies learn 100 times as fast as the model."""
    distance = setting.similarity() if setting.structural else CosineSimilarity()
    loss = losses.ProxyAnchorLoss(setting.num_classes, setting.proxy_size, margin, alpha, distance=distance)
    return Recipe(loss, (Rate("proxies", multiple=proxy_lr_multiple),))


def softtriple(
    setting: Setting,
    *,
    centers: int = 2,
    scale: float = 8.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    diversity_weight: float = 0.2,
    center_lr_multiple: float = 1.0,
) -> Recipe:
    """SoftTriple with several centres a class; `gamma` as in the paper (the softmax is over cosine / gamma).

    Qian et al., ICCV 2019, whose own settings are 10 centres, scale 20.
    """
    if centers < 1:
        raise ValueError(f"centers: need 1 or more, got {centers}")
    diverse = centers > 1 and diversity_weight > 0
    extra = {"weight_regularizer": CenterDiversity(centers), "weight_reg_weight": diversity_weight} if diverse else {}
    distance = setting.similarity() if setting.structural else CosineSimilarity()
    sizes = (setting.num_classes, setting.proxy_size, centers)
    loss = losses.SoftTripleLoss(*sizes, la=scale, gamma=gamma, margin=margin, distance=distance, **extra)
    return Recipe(loss, (Rate("fc", multiple=center_lr_multiple),))


def arcface(setting: Setting, *, margin: float = 0.5, scale: float = 16.0, weight_lr: float = 5e-4) -> Recipe:
    """ArcFace, margin in radians. Deng et al., CVPR 2019."""
    loss = losses.ArcFaceLoss(setting.num_classes, setting.dim, margin=math.degrees(margin), scale=scale)
    return Recipe(loss, (Rate("W", lr=weight_lr),))


def softmax(setting: Setting, *, temperature: float = 0.05, weight_lr: float = 1e-5) -> Recipe:
    """Normalised softmax. Zhai & Wu, BMVC 2019."""
    loss = losses.NormalizedSoftmaxLoss(
        setting.num_classes, setting.proxy_size, temperature=temperature, distance=setting.similarity()
    )
    return Recipe(loss, (Rate("W", lr=weight_lr),))


def adversarial_separation(
    setting: Setting,
    *,
    parts: tuple[str, ...] = ("discriminative", "shared"),
    margin: float = 0.2,
    beta: float = 1.2,
    part_weight: float = 0.3,
    separation_weight: float = 150.0,
    hidden: int = 512,
    beta_lr: float = 5e-4,
    predictor_lr: float = 1e-5,
) -> Recipe:
    """Slices of the embedding that learn different things, kept apart, in the manner of DiVA; see the loss."""
    parts = tuple(parts)
    if parts[:1] != PARTS[:1] or len(parts) < 2 or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
        raise ValueError(f"parts: need 'discriminative' and then some of {PARTS[1:]}, each once, got {parts}")
    assert setting.miner is not None
    makers: dict[str, Callable[[], BaseMiner]] = {
        "shared": lambda: RandomDistanceMiner(generator=setting.generator),
        "intra": lambda: IntraRandomMiner(generator=setting.generator),
    }
    loss = AdversarialSeparation(
        num_classes=setting.num_classes,
        dim=setting.dim,
        miner=setting.miner,
        other_miners=[makers[part]() for part in parts[1:]],
        margin=margin,
        beta=beta,
        part_weight=part_weight,
        separation_weight=separation_weight,
        hidden=hidden,
    )
    return Recipe(loss, (Rate("losses", lr=beta_lr), Rate("predictors", lr=predictor_lr)), mines_itself=True)


def _l2(setting: Setting, weight: float) -> dict[str, Any]:
    """A penalty on the length of embeddings that are not normalised; none for region vectors, which are."""
    if setting.structural or not weight:
        return {}
    return {"embedding_regularizer": LpRegularizer(), "embedding_reg_weight": weight}
