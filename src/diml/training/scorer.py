"""Training of a learned matcher on frozen regions: list-wise, on batches of classes, with class-disjoint validation.

Legend: N images, n of a batch, R regions, D channels, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.evaluation.evaluate import evaluate_regions
from diml.matching import LearnedMatcher, Matcher, Regions
from diml.matching.learned import LEAST_WEIGHT, VoteScorer
from diml.progress import ShowProgress, progress_bar

#: Channels up to which the map is square, and of the map beyond; both keep the scorer below 200,000 parameters.
WIDEST_SQUARE, NARROW = 400, 128

#: Learning rate of a map that begins as a whitening, for each unit of the spread of its weights, against that of a
#: square one.
WHITENED_STEP: Final = 22.0

#: Steps between validations, and validations without a better one after which training stops.
EVERY, PATIENCE = 10, 4

#: Cosines of regions that a batch may have; more do not fit into the caches, nor into the time.
COSINES_PER_BATCH: Final = 3_300_000

#: Softness of the ranks in the loss, in units of the score divided by 1 + structural weight.
RANK_TEMPERATURE: Final = 0.02


class Validation(NamedTuple):
    """A step, the loss there, and MAP@R of the held-out classes, as fractions."""

    step: int
    loss: float
    map_at_r: float


@dataclass(frozen=True, eq=False, repr=False)
class TrainedScorer:
    """Result of `train_scorer`.

    Args:
        matcher: the learned matcher, trained on all classes for `steps` steps.
        steps: those of the best validation.
        history: the validations, in order; step 0 is before training.
        plain: MAP@R of the held-out classes by pooled cosine.
        paper: by the setting of the paper.
        classes: how many were trained on at last, and how many of them were held out before.
    """

    matcher: LearnedMatcher
    steps: int
    history: tuple[Validation, ...]
    plain: float
    paper: float
    classes: tuple[int, int]

    @property
    def gain(self) -> float:
        """MAP@R of the held-out classes at `steps`, minus that by the setting of the paper; biased upwards a little, as
        the steps were chosen there."""
        return max(entry.map_at_r for entry in self.history) - self.paper

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "matcher": self.matcher.to_dict(),
            "steps": self.steps,
            "history": [entry._asdict() for entry in self.history],
            "validation": {"plain": self.plain, "paper": self.paper, "gain": self.gain},
            "classes": self.classes[0],
            "held_out": self.classes[1],
        }

    def __repr__(self) -> str:
        best = max(entry.map_at_r for entry in self.history)
        return f"TrainedScorer({self.steps} steps; held-out MAP@R {100 * self.plain:.2f} plain, {100 * best:.2f})"


def train_scorer(
    regions: Regions,
    labels: ArrayLike | Tensor,
    *,
    channels: int | None = None,
    max_steps: int = 150,
    validation_fraction: float = 0.25,
    learning_rate: float = 1e-3,
    images_per_class: int = 8,
    region_dropout: float = 0.15,
    rerank_at: int = 100,
    seed: int = 0,
    on_validation: Callable[[Validation], None] | None = None,
    progress: ShowProgress = False,
) -> TrainedScorer:
    """Train a scorer of pairs, which re-ranks better than transport, on the regions of labelled images.

    Whole classes are held out to choose the number of steps; a second training with that number uses all classes. The
    loss is a smoothed average precision of the lists within a batch, so that what is trained is what is measured.
    Regions are left out at random, of the pooled vectors that weigh them as well.

    Args:
        regions: N images, of a frozen embedder.
        labels: (N,) class of each.
        channels: of the map, at most D; fewer train faster and rank a little worse. When omitted D, or 128 for D above
            400.
        max_steps: most steps of a training.
        validation_fraction: fraction of the classes held out, in (0, 1).
        learning_rate: of Adam for the map; the few other parameters take five times that.
        images_per_class: in a batch; there are as many classes as fit.
        region_dropout: fraction of the regions left out, in [0, 1).
        rerank_at: K of the validation.
        seed: of the held-out classes and the batches.
        on_validation: called with every validation.
        progress: show a progress bar, or call a function with the steps finished since.

    Raises:
        ValueError: labels that do not fit, or too few classes with two images; a setting out of range.

    Source: Brown et al., "Smooth-AP", ECCV 2020 (the loss).

    Example:
        >>> trained = train_scorer(embedder.embed(images), images.labels)  # doctest: +SKIP
        >>> embedder.with_settings(matcher=trained.matcher).save("models/mine")  # doctest: +SKIP
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
    _check(regions, classes, max_steps, validation_fraction, images_per_class, region_dropout)
    present = np.flatnonzero(np.bincount(classes) > 1)
    held = np.random.default_rng(seed).permutation(present)[: max(2, round(validation_fraction * len(present)))]
    inside = ~np.isin(classes, held)
    if channels is not None and not 1 <= channels <= regions.dim:
        raise ValueError(f"channels: need 1 to {regions.dim}, the channels of the regions, got {channels}")
    options = (channels, learning_rate, images_per_class, region_dropout)
    rows, left_out = np.flatnonzero(inside & np.isin(classes, present)), np.flatnonzero(np.isin(classes, held))
    own, own_labels = regions[torch.from_numpy(left_out)], classes[left_out]

    def measured(matcher: Matcher | None) -> float:
        report = evaluate_regions(
            own, own_labels, rerank_at=(0, rerank_at), matcher=matcher, metrics=("map@r",), resamples=1
        )
        return float(report.row(rerank_at if matcher else 0)["map@r"])

    first = _Training(regions, classes, rows, *options, seed)
    history = [Validation(0, math.nan, measured(first.matcher()))]
    with progress_bar(2 * max_steps, show=progress, what="training", unit="steps") as advance:
        while history[-1].step < max_steps and not _stalled(history):
            loss = first.run(min(EVERY, max_steps - history[-1].step), advance)
            history.append(Validation(first.step, loss, measured(first.matcher())))
            if on_validation is not None:
                on_validation(history[-1])
        steps = max(history, key=lambda entry: entry.map_at_r).step
        final = _Training(regions, classes, np.flatnonzero(np.isin(classes, present)), *options, seed)
        final.run(steps, advance)
    counts = len(present), len(held)
    return TrainedScorer(final.matcher(), steps, tuple(history), measured(None), measured(Matcher()), counts)


def _check(
    regions: Regions, classes: NDArray[np.int64], steps: int, fraction: float, per_class: int, dropout: float
) -> None:
    if len(classes) != len(regions):
        raise ValueError(f"labels: need one for each of the {len(regions)} images, got {len(classes)}")
    usable = int((np.bincount(classes) > 1).sum())
    if usable < 4:
        raise ValueError(
            f"labels: need at least four classes of two images or more, half of them to train, got {usable}"
        )
    if steps < 1 or per_class < 2:
        raise ValueError(f"max_steps, images_per_class: need at least 1 and 2, got {steps} and {per_class}")
    if not 0 < fraction < 1 or usable - max(2, round(fraction * usable)) < 2:
        raise ValueError(
            f"validation_fraction: need a fraction in (0, 1) that leaves two of the {usable} classes, got {fraction}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"region_dropout: need a fraction in [0, 1), got {dropout}")


def _stalled(history: list[Validation]) -> bool:
    best = max(range(len(history)), key=lambda place: history[place].map_at_r)
    return len(history) - 1 - best >= PATIENCE


class _Training:
    """A scorer, its optimiser and its batches."""

    def __init__(
        self,
        regions: Regions,
        classes: NDArray[np.int64],
        rows: NDArray[np.int64],
        channels: int | None,
        learning_rate: float,
        per_class: int,
        dropout: float,
        seed: int,
    ) -> None:
        self.regions, self.labels = regions, torch.from_numpy(classes)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scorer = _initial(regions, rows, channels)
        self.scorer.to(regions.dense.device)
        others = [part for name, part in self.scorer.named_parameters() if not name.startswith("map.")]
        weights = self.scorer.map.weight
        scale = (
            1.0 if regions.dim <= WIDEST_SQUARE else WHITENED_STEP * float(weights.detach().std())
        )  # steps relative to the weights
        first = {"params": [weights], "lr": learning_rate * scale}
        self.optimizer = torch.optim.Adam([first, {"params": others, "lr": 5 * learning_rate}])
        members = [torch.from_numpy(rows[classes[rows] == name]) for name in np.unique(classes[rows])]
        most = max(4, int(COSINES_PER_BATCH**0.5 / regions.num_regions))
        self.members, self.per_class = members, per_class
        self.classes_at_once = max(2, min(len(members), most // per_class))
        self.dropout, self.step = dropout, 0

    def run(self, steps: int, advance: Callable[[float], None]) -> float:
        """Take steps; the last loss."""
        value = math.nan
        self.scorer.train().requires_grad_(True)
        for _ in range(steps):
            rows = self._batch()
            labels = self.labels[rows.cpu()].to(rows.device)
            loss = smooth_average_precision_loss(_scores(self.scorer, *self._dropped(rows)), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            value = loss.item()
            self.step += 1
            advance(1)
        return value

    def _dropped(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (n, R, D), some of them zero, and pooled vectors (n, D), which change as the mean of the regions."""
        dense, pooled = self.regions.dense[rows].float(), self.regions.pooled[rows].float()
        kept = (torch.rand(dense.shape[:2], generator=self.generator) >= self.dropout).to(dense)
        left = dense * kept.unsqueeze(2)
        mean = left.sum(dim=1) / kept.sum(dim=1, keepdim=True).clamp_min(1)
        return left, F.normalize(pooled + mean - dense.mean(dim=1), dim=1)

    def matcher(self) -> LearnedMatcher:
        """The present state as a matcher, apart from further steps."""
        state = {name: part.detach().clone() for name, part in self.scorer.state_dict().items()}
        return LearnedMatcher.of(VoteScorer.of_state(state))

    def _batch(self) -> Tensor:
        chosen = torch.randperm(len(self.members), generator=self.generator)[: self.classes_at_once]
        rows = []
        for number in chosen.tolist():
            own = self.members[number]
            rows.append(own[torch.randperm(len(own), generator=self.generator)[: self.per_class]])
        return torch.cat(rows).to(self.regions.dense.device)


def _initial(regions: Regions, rows: NDArray[np.int64], channels: int | None) -> VoteScorer:
    """The first channels as they are (of a whitening, the strongest), or of many the half-whitening of these."""
    if regions.dim <= WIDEST_SQUARE:
        return VoteScorer(regions.dim, channels)
    from diml.models.heads import WhitenHead

    head = WhitenHead(regions.dim, channels or NARROW)
    blocks = torch.split(torch.from_numpy(rows), 256)
    head.fit(regions.dense[some].flatten(0, 1).float() for some in blocks)
    scorer = VoteScorer(regions.dim, head.dim)
    with torch.no_grad():
        scorer.map.weight.copy_(head.weight / head.weight.norm(dim=1).max())
    return scorer


def _scores(scorer: VoteScorer, dense: Tensor, pooled: Tensor) -> Tensor:
    """(n, n) scores of all pairs of a batch, divided by 1 + structural weight; as `LearnedMatcher`, differentiable.

    The votes of the gallery's side of a pair are those of the query's side of the exchanged pair.
    """
    mapped = scorer(dense, pooled)
    count, regions, _ = mapped.dense.shape
    flat = mapped.dense.flatten(0, 1)
    cosine = (flat @ flat.T).view(count, regions, count, regions).transpose(1, 2)
    like = scorer.likeness(cosine)
    own = scorer.likeness(mapped.dustbin).unsqueeze(1)
    votes = (like * cosine).sum(dim=3) / (own + like.sum(dim=3))
    agreement = (flat @ mapped.pooled.T).view(count, regions, count).transpose(1, 2).relu() + LEAST_WEIGHT
    half = (agreement / agreement.sum(dim=2, keepdim=True) * votes).sum(dim=2)
    weight = scorer.log_weight.exp()
    scores: Tensor = (pooled @ pooled.T + weight * 0.5 * (half + half.T)) / (1 + weight.detach())
    return scores


def smooth_average_precision_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """1 - mean average precision of n lists, each image of a batch against the others, with sigmoids in place of ranks.

    Args:
        scores: (n, n).
        labels: (n,) classes.

    Returns:
        Scalar in [0, 1].
    """
    count = len(labels)
    others: Tensor = ~torch.eye(count, dtype=torch.bool, device=scores.device)
    same = ((labels.unsqueeze(1) == labels) & others).to(scores)
    above = ((scores.unsqueeze(1) - scores.unsqueeze(2)) / RANK_TEMPERATURE).sigmoid()  # [q, i, j]: j above i
    above = above * (others.unsqueeze(1) & others.unsqueeze(0))
    rank, rank_same = 1 + above.sum(dim=2), 1 + (above * same.unsqueeze(1)).sum(dim=2)
    precision = (rank_same / rank * same).sum(dim=1) / same.sum(dim=1).clamp_min(1)
    loss: Tensor = 1 - precision.mean()
    return loss
