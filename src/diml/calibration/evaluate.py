"""How well a calibration holds on classes that it has not seen, and the calibration of labelled images as a whole.

Legend: N images, P pairs, Q queries.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from diml.calibration.calibrator import Calibrator, Method, PairsFrom, auc, fit_calibrator
from diml.calibration.pairs import BestScores, Floats, LabelledScores, ScoredImages, best_scores, score_images
from diml.calibration.rates import Dependence
from diml.data import ImageSet
from diml.evaluation import QueryGallerySplit
from diml.extras import require
from diml.matching import Matcher, QuantizedRegions, Regions
from diml.models import Embedder
from diml.progress import ShowProgress

#: Bins of the expected calibration error, of equal mass.
BINS: Final = 15

FitOn = Literal["half", "all"]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How well probabilities agree with the share of same-class pairs.

    Args:
        ece: expected calibration error, 15 bins of equal mass.
        brier: mean squared error of the probabilities.
        auc: of the probabilities.
        prior: share of same-class pairs.
        predicted, observed: mean probability and share of same-class pairs of each bin, bins that are empty left out.
    """

    ece: float
    brier: float
    auc: float
    prior: float
    predicted: tuple[float, ...]
    observed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PairAcceptance:
    """Acceptance of pairs at the threshold for a named false-accept rate.

    Args:
        named: the rate that was asked for.
        promised: whether the threshold promises it; else it is that of the calibration pairs themselves.
        threshold: the score.
        false_accept, interval: share of different-class pairs accepted on the held-out classes, and its 95 % interval.
        true_accept: share of same-class pairs accepted.
    """

    named: float
    promised: bool
    threshold: float
    false_accept: float
    interval: tuple[float, float]
    true_accept: float


@dataclass(frozen=True, kw_only=True)
class OpenSetAcceptance:
    """Acceptance of the first hits of searches in a gallery from which half of the identities are missing.

    Args:
        named, promised, threshold: as of `PairAcceptance`, for `not_in_gallery_threshold`.
        false_accept, interval: share of the queries of missing classes accepted, and its 95 % interval.
        detected: share of the queries whose class is in the gallery accepted.
        identified: accepted, and the first hit is of their class.
    """

    named: float
    promised: bool
    threshold: float
    false_accept: float
    interval: tuple[float, float]
    detected: float
    identified: float


@dataclass(frozen=True, kw_only=True, repr=False)
class CalibrationReport:
    """A calibration measured on classes that it has not seen.

    Args:
        candidates, random: reliability on the re-ranked candidates of retrieval, and on random pairs (with the prior
            of these).
        hits: reliability of `hit_probability` on the candidates.
        pairs: acceptance of different-class pairs, of the kind that the calibration was fitted on.
        open_set: acceptance of first hits; `open_set_auc` is the area under its ROC curve.
        classes, images: how many were held out.
        absent_classes, gallery_images: classes missing from the gallery of the open-set measure, and its size.
    """

    candidates: Reliability
    random: Reliability
    hits: Reliability
    pairs: tuple[PairAcceptance, ...]
    open_set: tuple[OpenSetAcceptance, ...]
    open_set_auc: float
    classes: int
    images: int
    absent_classes: int
    gallery_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        return (
            f"CalibrationReport({self.classes} held-out classes, ECE {self.candidates.ece:.4f}, AUC "
            f"{self.candidates.auc:.3f}, open-set AUC {self.open_set_auc:.3f})"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Calibration:
    """Result of `calibrate`.

    Args:
        calibrator: to be saved beside the embedder or index.
        reports: one for each split of the classes; the calibrator is that of the first, unless it was fitted on all.
        fit_on: "half" or "all" of the classes.
        seeds: of the splits.
    """

    calibrator: Calibrator
    reports: tuple[CalibrationReport, ...]
    fit_on: FitOn
    seeds: tuple[int, ...]

    def save(self, folder: str | os.PathLike[str], *, more: Mapping[str, Any] | None = None) -> None:
        """Write the calibrator with what was measured; `more` are further plain values for the file."""
        self.calibrator.save(folder, measured=self.to_dict() | dict(more or {}))

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as plain values for JSON."""
        splits = [report.to_dict() | {"seed": seed} for seed, report in zip(self.seeds, self.reports, strict=True)]
        return {"fit_on": self.fit_on, "splits": splits}

    def __repr__(self) -> str:
        return f"Calibration({self.calibrator!r}; {len(self.reports)} splits, first: {self.reports[0]!r})"


def calibrate(
    embedder: Embedder,
    images: ImageSet,
    *,
    regions: Regions | QuantizedRegions | None = None,
    matcher: Matcher | None = None,
    false_accept_rates: tuple[float, ...] = (0.01,),
    pairs: PairsFrom = "candidates",
    method: Method | Literal["auto"] = "auto",
    prior: float | None = None,
    depth: int = 100,
    fit_on: FitOn = "half",
    seeds: tuple[int, ...] = (0,),
    kind: str = "class",
    progress: ShowProgress = False,
) -> Calibration:
    """Fit a calibration on half of the classes and measure it on the other half.

    Args:
        embedder: whose scores are calibrated.
        images: labelled images that it was not trained on, of 4 classes or more; with cameras, a query ignores the
            images of its own class and camera.
        regions: of the images, where they are embedded already.
        matcher: settings of the comparison; the embedder's own when omitted.
        false_accept_rates: at which thresholds are measured.
        pairs: "candidates" or "random": what the map is fitted on.
        method, prior: as of `fit_calibrator`.
        depth: K, candidates of each query.
        fit_on: "half" returns the calibrator that was measured; "all" one fitted on all classes, after measuring those
            of the halves.
        seeds: of the splits to measure, one each.
        kind: what images of one class have in common, for sentences; see `Calibrator`.
        progress: show progress bars.

    Raises:
        ValueError: fewer than 4 classes, or too few images of a class; images that are judged one by one.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> found = calibrate(load_embedder("mobilenetv2_100"), load_dataset("orl").test)  # doctest: +SKIP
        >>> found.calibrator.threshold(0.01), found.reports[0].candidates.ece  # doctest: +SKIP
    """
    require("train", "calibration")
    if fit_on not in get_args(FitOn) or not seeds:
        raise ValueError(f"fit_on, seeds: need one of {get_args(FitOn)} and a seed, got {fit_on!r} and {seeds!r}")
    if any(not 0 < rate < 1 for rate in false_accept_rates):
        raise ValueError(f"false_accept_rate: need fractions in (0, 1), got {false_accept_rates}; 0.01 is 1 %")
    if depth < 1:
        raise ValueError(f"depth: need at least 1 candidate, got {depth}")
    if images.judgements is not None:
        raise ValueError(f"images: need images with classes, got {images.name} with judgements of single images")
    matcher = embedder.matcher if matcher is None else matcher
    if regions is None:  # known before the images are read
        embedder.check_matcher(matcher)
    regions = embedder.embed(images, progress=progress) if regions is None else regions
    about: dict[str, Any] = {"fingerprint": embedder.fingerprint(), "matcher": matcher, "data": images.name}
    about |= {"model": embedder.config.backbone, "pairs": pairs, "method": method, "kind": kind}
    scoring: dict[str, Any] = {"matcher": matcher, "depth": depth, "progress": progress}
    calibrators, reports = [], []
    for seed in seeds:
        fitted, held_out = _halves(images, seed)
        calibrators.append(fit_calibrator(_scored(regions, images, fitted, seed, scoring), **about))
        scored = _scored(regions, images, held_out, seed, scoring)
        best, absent, gallery = _open_set(regions, images, held_out, seed, scoring)
        reports.append(measure(calibrators[-1], scored, best, absent, gallery, false_accept_rates))
    calibrator = calibrators[0]
    if fit_on == "all":
        calibrator = fit_calibrator(_scored(regions, images, np.arange(len(images)), seeds[0], scoring), **about)
    if prior is not None:
        calibrator = calibrator.with_prior(prior)
    return Calibration(calibrator=calibrator, reports=tuple(reports), fit_on=fit_on, seeds=tuple(seeds))


def measure(
    calibrator: Calibrator,
    scored: ScoredImages,
    best: BestScores,
    absent: NDArray[np.int64],
    gallery_images: int,
    false_accept_rates: tuple[float, ...],
) -> CalibrationReport:
    """Measure a calibrator on scored images of other classes.

    Args:
        calibrator: to be measured.
        scored: the held-out images.
        best: first hits in a gallery of `gallery_images` images without the classes `absent`.
        absent: classes that are missing from that gallery.
        gallery_images: its size.
        false_accept_rates: at which thresholds are measured.
    """
    missing = np.isin(best.class_q, absent)
    assert 0 < missing.sum() < len(best), (len(best), len(absent))
    chosen: LabelledScores = getattr(scored, calibrator.pairs)
    return CalibrationReport(
        candidates=reliability(_for_population(calibrator, scored, "candidates"), scored.candidates),
        random=reliability(_for_population(calibrator, scored, "random"), scored.random),
        hits=_reliability(calibrator.hit_probability(scored.lists)[np.isfinite(scored.lists)], scored.candidates),
        pairs=tuple(_pair_acceptance(calibrator, chosen, rate) for rate in false_accept_rates),
        open_set=tuple(_open_set_acceptance(calibrator, best, missing, rate) for rate in false_accept_rates),
        open_set_auc=_open_set_auc(best, missing),
        classes=scored.classes,
        images=scored.images,
        absent_classes=len(absent),
        gallery_images=gallery_images,
    )


def reliability(calibrator: Calibrator, pairs: LabelledScores) -> Reliability:
    """Compare the probabilities of scored pairs with their classes."""
    return _reliability(calibrator.probability(pairs.scores), pairs)


def _reliability(probability: Floats, pairs: LabelledScores) -> Reliability:
    error, predicted, observed = expected_calibration_error(probability, pairs.same, pairs.weights)
    return Reliability(
        ece=error,
        brier=float(np.average((probability - pairs.same) ** 2, weights=pairs.weights)),
        auc=auc(dataclasses.replace(pairs, scores=probability)),
        prior=pairs.prior,
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
    )


def expected_calibration_error(
    probability: Floats, same: NDArray[np.bool_], weights: Floats, bins: int = BINS
) -> tuple[float, Floats, Floats]:
    """Expected calibration error over bins of equal mass; mean probability and share of same-class pairs of each bin.

    Pairs of equal probability stand in one bin, so that their order does not matter.

    Source: Naeini et al., AAAI 2015; bins of equal mass, Nguyen and O'Connor, EMNLP 2015.
    """
    place = np.unique(probability, return_inverse=True)[1]
    mass = np.bincount(place, weights)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    number = np.minimum((middle * bins).astype(int), bins - 1)[place]
    total = np.bincount(number, weights, minlength=bins)
    filled = total > 0
    predicted = np.bincount(number, weights * probability, minlength=bins)[filled] / total[filled]
    observed = np.bincount(number, weights * same, minlength=bins)[filled] / total[filled]
    error = float((total[filled] * np.abs(predicted - observed)).sum() / total.sum())
    return error, predicted, observed


def _for_population(calibrator: Calibrator, scored: ScoredImages, population: PairsFrom) -> Calibrator:
    """The calibrator itself for the pairs that it was fitted on; with the prior of the others for the others."""
    if population == calibrator.pairs:
        return calibrator
    return calibrator.with_prior(getattr(scored, population).prior)


def _pair_acceptance(calibrator: Calibrator, pairs: LabelledScores, rate: float) -> PairAcceptance:
    threshold, promised = _threshold(calibrator.threshold, rate)
    others = pairs.subset(~pairs.same)
    accepted = others.scores >= threshold
    return PairAcceptance(
        named=rate,
        promised=promised,
        threshold=threshold,
        false_accept=float(accepted.mean()),
        interval=Dependence.of(others.class_q, others.class_g).interval(accepted),
        true_accept=float((pairs.scores[pairs.same] >= threshold).mean()),
    )


def _open_set_acceptance(
    calibrator: Calibrator, best: BestScores, missing: NDArray[np.bool_], rate: float
) -> OpenSetAcceptance:
    threshold, promised = _threshold(calibrator.not_in_gallery_threshold, rate)
    accepted = best.scores >= threshold
    right = best.class_q == best.class_g
    return OpenSetAcceptance(
        named=rate,
        promised=promised,
        threshold=threshold,
        false_accept=float(accepted[missing].mean()),
        interval=Dependence.of(best.class_q[missing]).interval(accepted[missing]),
        detected=float(accepted[~missing].mean()),
        identified=float((accepted & right)[~missing].mean()),
    )


def _threshold(find: Any, rate: float) -> tuple[float, bool]:
    """The promised threshold, or that of the calibration pairs where they are too few to promise the rate."""
    try:
        return float(find(rate)), True
    except ValueError:
        return float(find(rate, promised=False)), False


def _open_set_auc(best: BestScores, missing: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    return float(roc_auc_score(~missing, best.scores))


def _halves(images: ImageSet, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the images of two disjoint halves of the classes."""
    present = np.unique(images.labels)
    if len(present) < 4:
        raise ValueError(f"images: need 4 classes or more, to fit on half and measure on half, got {len(present)}")
    order = np.random.default_rng(seed).permutation(present)
    first = np.isin(images.labels, order[: len(order) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def _scored(
    regions: Regions | QuantizedRegions,
    images: ImageSet,
    rows: NDArray[np.int64],
    seed: int,
    scoring: Mapping[str, Any],
) -> ScoredImages:
    """Score the pairs among some of the images."""
    sides = {"queries": images.queries, "gallery": images.gallery}
    kept: dict[str, Any] = {name: None if side is None else _positions(side, rows) for name, side in sides.items()}
    kept["cameras"] = None if images.cameras is None else images.cameras[rows]
    return score_images(regions[torch.from_numpy(rows)], images.labels[rows], seed=seed, **kept, **scoring)


def _open_set(
    regions: Regions | QuantizedRegions,
    images: ImageSet,
    rows: NDArray[np.int64],
    seed: int,
    scoring: Mapping[str, Any],
) -> tuple[BestScores, NDArray[np.int64], int]:
    """First hits in a gallery without half of the classes of `rows`; those classes; the size of the gallery."""
    labels = images.labels[rows]
    present = np.unique(labels)
    absent = np.random.default_rng(seed).permutation(present)[: len(present) // 2]
    queries, gallery = (
        np.arange(len(rows)) if side is None else _positions(side, rows) for side in (images.queries, images.gallery)
    )
    gallery = gallery[~np.isin(labels[gallery], absent)]
    cameras = None if images.cameras is None else images.cameras[rows]
    split = QueryGallerySplit.from_labels(labels, queries=queries, gallery=gallery, cameras=cameras)
    # a query whose class is in the gallery, but only by itself and what it ignores, belongs to neither kind
    found = (split.relevant_count > 0).numpy() | np.isin(split.query_labels.numpy(), absent)
    counted = split.queries.numpy()[found]
    settings = {"matcher": scoring["matcher"], "depth": scoring["depth"], "cameras": cameras}
    best = best_scores(regions[torch.from_numpy(rows)], labels, counted, gallery, **settings)
    return best, absent, len(gallery)


def _positions(side: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the images of one side stand among `rows`; those outside are dropped."""
    return np.flatnonzero(np.isin(rows, side))
