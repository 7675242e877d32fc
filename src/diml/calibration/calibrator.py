"""From a score to the probability that both images are of one class, and thresholds for a named false-accept rate."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args, overload

import numpy as np
from numpy.typing import NDArray

from diml.calibration.pairs import Floats, LabelledScores, ScoredImages
from diml.calibration.rates import RateTable
from diml.checksums import sealed, unsealed
from diml.documents import dataclass_of, parse_json
from diml.extras import require
from diml.files import write_text
from diml.matching import Matcher

FILE: Final = "calibration.json"
_FORMAT: Final = 1
#: Values that `hit_features` gives for a hit.
HIT_FEATURES: Final = 5
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)

Method = Literal["isotonic", "logistic"]
PairsFrom = Literal["candidates", "random"]

#: Same-class pairs, and different-class pairs, from which isotonic regression is chosen.
_ENOUGH_FOR_ISOTONIC: Final = 1000
#: Groups of classes that are left out in turn for the interval of the AUC.
_GROUPS: Final = 40
#: Settings of the matcher that change scores by less than their rounding.
_NUMERICAL: Final = ("tolerance", "max_iterations")
#: A model separates the classes where the interval of its AUC lies above this.
SEPARATES: Final = 0.75


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Scores by which a new score can be placed on a scale.

    Args:
        same, different: quantiles 5, 25, 50, 75 and 95 % of random same-class and different-class pairs.
        self_match: score of an image against itself.
    """

    same: tuple[float, ...]
    different: tuple[float, ...]
    self_match: float

    def __post_init__(self) -> None:
        if len(self.same) != len(QUANTILES) or len(self.different) != len(QUANTILES):
            raise ValueError(
                f"landmarks: need {len(QUANTILES)} quantiles, got {len(self.same)} and {len(self.different)}"
            )


@dataclass(frozen=True, kw_only=True)
class HitMap:
    """P(same class) of a hit among the other hits of its query.

    What a score means differs from query to query: 1.6 is little for a milk carton among milk cartons. The best, the
    mean and the spread of the scores of a query's candidates say much of that.

    Args:
        coefficients: of a linear function of `hit_features`.
        values, probabilities: nodes of a monotone map of that function.
    """

    coefficients: tuple[float, ...]
    values: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.coefficients) != HIT_FEATURES:
            raise ValueError(f"hits: need {HIT_FEATURES} coefficients, got {len(self.coefficients)}")
        _check_map("hits: values, probabilities", self.values, self.probabilities)

    def probability(self, scores: Floats) -> Floats:
        """P(same class) of (Q, K) scores, a row a query; 0 at -infinity."""
        value = hit_features(scores) @ np.array(self.coefficients)
        found: Floats = _expit(np.interp(value, self.values, _logit(np.array(self.probabilities))))
        return np.where(np.isfinite(scores), found, 0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class Calibrator:
    """What the scores of one embedder and matcher mean, learned from labelled images; plain numbers.

    Args:
        fingerprint: `Embedder.fingerprint()` of the embedder whose scores these are.
        matcher: settings of the comparison.
        model, data: names of the embedder and of the images, for messages.
        method: how the map was fitted.
        pairs: which pairs it was fitted on: "candidates", the re-ranked candidates of retrieval; "random", any.
        depth: K, candidates of each query.
        prior: share of same-class pairs that the probabilities refer to.
        images, classes, same_pairs, different_pairs: how many of each the calibration saw.
        gallery_images: gallery images that each query of `not_in_gallery` was compared with, on average.
        scores, probabilities: nodes of the monotone map, linear in the log-odds between them and constant outside.
        hits: map for the hits of a search, which takes all scores of a query together.
        false_accept: rates at which different-class pairs reach a score.
        not_in_gallery: rates at which the first hit of a query whose class is missing from the gallery reaches a score.
        auc, auc_interval: probability that a random same-class pair scores above a different-class pair; 95 % interval.
        landmarks: typical scores.
        kind: what images of one class have in common, one noun for sentences: "class", "product", "person".
        present: quantiles 0 to 100 % of the score of the first hit of queries whose class is in the gallery; empty
            where they are not known.

    Example:
        >>> calibrator = load_calibration("runs/mine", embedder)  # doctest: +SKIP
        >>> calibrator.probability(1.394)  # doctest: +SKIP
        0.91
    """

    fingerprint: str
    matcher: Matcher
    model: str
    data: str
    method: Method
    pairs: PairsFrom
    depth: int
    prior: float
    images: int
    classes: int
    same_pairs: int
    different_pairs: int
    gallery_images: float
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    hits: HitMap
    false_accept: RateTable
    not_in_gallery: RateTable
    auc: float
    auc_interval: tuple[float, float]
    landmarks: Landmarks
    kind: str = "class"
    present: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.kind.strip() or len(self.kind) > 40:
            raise ValueError(f"kind: need a noun of up to 40 letters, such as 'product', got {self.kind!r}")
        if self.method not in get_args(Method) or self.pairs not in get_args(PairsFrom):
            raise ValueError(f"method, pairs: need {get_args(Method)} and {get_args(PairsFrom)}")
        _check_map("scores, probabilities", self.scores, self.probabilities)
        if not 0 < self.prior < 1:
            raise ValueError(f"prior: need a fraction in (0, 1), got {self.prior}")

    @overload
    def probability(self, score: float) -> float: ...
    @overload
    def probability(self, score: NDArray[Any]) -> NDArray[np.float64]: ...
    def probability(self, score: float | NDArray[Any]) -> float | NDArray[np.float64]:
        """P(same class) of a score, or of an array of scores; it never decreases with the score.

        It refers to a population in which a share `prior` of the pairs is of one class; see `with_prior`.
        """
        found = _expit(np.interp(score, self.scores, _logit(np.array(self.probabilities))))
        return float(found) if np.ndim(score) == 0 else found

    def hit_probability(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """P(same class) of the hits of a search, which depends on the scores of all re-ranked candidates of a query.

        It is better calibrated than `probability`, which sees one score alone. Within a query it never decreases with
        the score. It refers to the candidates of a gallery like that of the calibration; `with_prior` does not move it.

        Args:
            scores: (K,) scores of all re-ranked candidates of a query, in any order, or (Q, K) of several; K should be
                `depth`, as in the calibration. -infinity stands for no candidate.
        """
        rows = np.asarray(scores, dtype=np.float64)
        return self.hits.probability(np.atleast_2d(rows)).reshape(rows.shape)

    def with_prior(self, prior: float) -> Calibrator:
        """The same calibration for a population with another share of same-class pairs.

        The odds are multiplied by the ratio of the prior odds, which is exact where same-class pairs score as before
        and different-class pairs too, only more or fewer of them.

        Raises:
            ValueError: the prior is not inside (0, 1).
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior: need a fraction in (0, 1), got {prior}")
        shifted = _expit(_logit(np.array(self.probabilities)) + _logit(prior) - _logit(self.prior))
        return dataclasses.replace(self, prior=prior, probabilities=tuple(shifted.tolist()))

    def threshold(self, false_accept_rate: float, *, promised: bool = True) -> float:
        """The smallest score at which different-class pairs are accepted at most at this rate.

        Args:
            false_accept_rate: in (0, 1), of the different-class pairs among `pairs`.
            promised: with 95 % confidence for other classes of the same kind; else on the calibration pairs only.

        Raises:
            ValueError: a rate too small to be promised from the calibration's pairs; the message names the smallest.
        """
        return self.false_accept.threshold(false_accept_rate, promised=promised)

    def not_in_gallery_threshold(
        self, false_accept_rate: float, *, gallery_images: int | None = None, promised: bool = True
    ) -> float:
        """The score below which the first hit of a search means "not in the gallery".

        Args:
            false_accept_rate: share of the queries whose class is missing that may still be accepted, in (0, 1).
            gallery_images: size of the gallery that is searched; that of the calibration when omitted. In a larger
                gallery the best wrong hit scores higher: the rate is divided as for independent draws.
            promised: as of `threshold`.

        Raises:
            ValueError: a rate too small to be promised, or no gallery.
        """
        rate = false_accept_rate
        if gallery_images is not None and 0 < rate < 1:
            rate = self.rate_in_own_gallery(rate, gallery_images)
        return self.not_in_gallery.threshold(rate, promised=promised)

    def detected(self, threshold: float) -> float | None:
        """Share of the queries whose class is in the gallery whose first hit reaches a score; None where unknown.

        In a gallery like that of the calibration, on whose own queries it is measured.
        """
        if not self.present:
            return None
        return float(1 - np.interp(threshold, self.present, np.linspace(0, 1, len(self.present))))

    def rate_in_own_gallery(self, false_accept_rate: float, gallery_images: int) -> float:
        """The rate in a gallery as large as the calibration's that becomes this rate in one of `gallery_images`.

        Raises:
            ValueError: no gallery.
        """
        if gallery_images < 1:
            raise ValueError(f"gallery_images: need at least 1, got {gallery_images}")
        return float(1 - (1 - false_accept_rate) ** (self.gallery_images / gallery_images))

    @property
    def separates(self) -> bool:
        """Whether scores tell classes apart: the 95 % interval of the AUC of random pairs lies above 0.75."""
        return self.auc_interval[0] > SEPARATES

    def check(self, fingerprint: str, matcher: Matcher) -> None:
        """Raise ValueError unless scores of this embedder (its fingerprint) and matcher are those calibrated."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"calibration: belongs to {self.model} with fingerprint {self.fingerprint[:12]}..., got an embedder "
                f"with {fingerprint[:12]}... (weights, grid or preprocessing differ); calibrate it with: diml calibrate"
            )
        own, given = self.matcher.to_dict(), matcher.to_dict()
        changed = [name for name in own if name not in _NUMERICAL and own[name] != given[name]]
        if changed:
            listed = ", ".join(f"{name} {given[name]} instead of {own[name]}" for name in changed)
            raise ValueError(
                f"calibration: belongs to another matcher, got {listed}; use its settings, or calibrate with these"
            )

    def save(self, folder: str | os.PathLike[str], *, measured: Mapping[str, Any] | None = None) -> Path:
        """Write `calibration.json` atomically into the folder of an embedder, run or index; returns its path.

        Args:
            folder: created when missing; a calibration saved before is replaced.
            measured: further plain values to keep in the file, such as `CalibrationReport.to_dict()`.
        """
        return write_text(Path(folder) / FILE, self.to_json(measured=measured))

    def to_json(self, *, measured: Mapping[str, Any] | None = None) -> str:
        """The text of `calibration.json`; `parse_calibration` reads it."""
        document = {"format": _FORMAT, "calibration": self.to_dict(), "measured": dict(measured or {})}
        return json.dumps(sealed(document), indent=1, allow_nan=False) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return dataclasses.asdict(self) | {"matcher": self.matcher.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """Build from plain values.

        Raises:
            ValueError: keys are missing or unknown, or a value does not fit.
        """
        found: Calibrator = dataclass_of(values, cls, "calibration")
        return found

    def __repr__(self) -> str:
        return (
            f"Calibrator({self.model} on {self.data}, {self.method} on {self.same_pairs:,} same-class and "
            f"{self.different_pairs:,} different-class {self.pairs} pairs, prior {self.prior:.3f}, AUC {self.auc:.3f})"
        )

    def _repr_html_(self) -> str:
        import html

        shown = {"P(same class)": "score"} | {
            f"{chance:.0%}": f"{score:.3f}" for chance, score in zip(*self._at((0.1, 0.5, 0.9)), strict=True)
        }
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in shown.items())
        return f"<table><caption>{html.escape(repr(self))}</caption>{rows}</table>"

    def _at(self, wanted: tuple[float, ...]) -> tuple[list[float], list[float]]:
        """Probabilities, and the scores at which they are reached, those that are."""
        grid = np.linspace(self.scores[0], self.scores[-1], 500)
        found = self.probability(grid)
        reached = [chance for chance in wanted if found[-1] >= chance]
        return reached, [float(grid[np.argmax(found >= chance)]) for chance in reached]


def fit_calibrator(
    scored: ScoredImages,
    *,
    fingerprint: str,
    matcher: Matcher,
    model: str = "",
    data: str = "",
    pairs: PairsFrom = "candidates",
    method: Method | Literal["auto"] = "auto",
    prior: float | None = None,
    kind: str = "class",
) -> Calibrator:
    """Fit a calibrator to scored images.

    Args:
        scored: from `score_images`.
        fingerprint, matcher, model, data, kind: of the embedder and images, to be recorded.
        pairs: which of the scored pairs to fit on.
        method: "isotonic" or "logistic" regression; "auto" takes isotonic from 1,000 pairs of either kind.
        prior: share of same-class pairs that probabilities refer to; that of the pairs when omitted.

    Raises:
        ValueError: there are no same-class or no different-class pairs.
        MissingExtraError: scikit-learn is not installed.

    Sources: isotonic, Zadrozny and Elkan, KDD 2002; logistic, Platt 1999; when to use which, Niculescu-Mizil and
    Caruana, ICML 2005.
    """
    require("train", "calibration")
    if pairs not in get_args(PairsFrom) or method not in (*get_args(Method), "auto"):
        raise ValueError(f"pairs, method: need {get_args(PairsFrom)} and {get_args(Method)}, got {pairs!r}, {method!r}")
    for name in get_args(PairsFrom):
        same = getattr(scored, name).same
        if same.all() or not same.any():
            got = f"{int(same.sum())} and {int((~same).sum())}"
            raise ValueError(f"labels: need same-class and different-class pairs among the {name} pairs, got {got}")
    chosen = getattr(scored, pairs)
    same = chosen.same
    kinds = int(same.sum()), int((~same).sum())
    if method == "auto":
        method = "isotonic" if min(kinds) >= _ENOUGH_FOR_ISOTONIC else "logistic"
    scores, probabilities = (_isotonic if method == "isotonic" else _logistic)(chosen)
    random, others = scored.random, chosen.subset(~same)
    area, interval = auc_with_interval(random)
    calibrator = Calibrator(
        fingerprint=fingerprint,
        matcher=matcher,
        model=model,
        data=data,
        method=method,
        pairs=pairs,
        depth=scored.depth,
        prior=chosen.prior,
        images=scored.images,
        classes=scored.classes,
        same_pairs=kinds[0],
        different_pairs=kinds[1],
        gallery_images=scored.absent_gallery,
        scores=tuple(scores.tolist()),
        probabilities=tuple(probabilities.tolist()),
        hits=_hit_map(scored, method),
        false_accept=RateTable.of(others.scores, others.class_q, others.class_g),
        not_in_gallery=RateTable.of(scored.absent.scores, scored.absent.class_q),
        auc=area,
        auc_interval=interval,
        landmarks=Landmarks(
            same=tuple(np.quantile(random.scores[random.same], QUANTILES).tolist()),
            different=tuple(np.quantile(random.scores[~random.same], QUANTILES).tolist()),
            self_match=scored.self_match,
        ),
        kind=kind,
        present=tuple(np.quantile(scored.present, np.linspace(0, 1, 101)).tolist()) if len(scored.present) else (),
    )
    return calibrator if prior is None else calibrator.with_prior(prior)


def _check_map(name: str, values: tuple[float, ...], probabilities: tuple[float, ...]) -> None:
    x, p = np.array(values), np.array(probabilities)
    rising = len(x) == len(p) >= 1 and bool((np.diff(x) > 0).all() and (np.diff(p) >= 0).all())
    if not rising or not 0 < p[0] <= p[-1] < 1:
        raise ValueError(f"{name}: need ascending nodes with probabilities inside (0, 1)")


def hit_features(scores: Floats) -> Floats:
    """(Q, K, 5) score, log of the rank, best, mean and spread of the scores of the query; 0 where there is no hit.

    Args:
        scores: (Q, K), -infinity for no candidate.
    """
    there = np.isfinite(scores)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    plain = np.where(there, scores, 0.0)
    ordered = -np.sort(-scores, axis=1)
    # equal scores share the best rank among them, so that their order does not matter
    rank = np.stack([np.searchsorted(-row, -own, side="left") for row, own in zip(ordered, scores, strict=True)]) + 1
    mean = plain.sum(axis=1, keepdims=True) / count
    spread = np.sqrt((np.where(there, scores - mean, 0.0) ** 2).sum(axis=1, keepdims=True) / count)
    of_query = [np.broadcast_to(value, scores.shape) for value in (plain.max(axis=1, keepdims=True), mean, spread)]
    features: Floats = np.stack([plain, np.log(rank), *of_query], axis=2)
    return features * there[:, :, None]


def load_calibration(
    folder: str | os.PathLike[str], *, fingerprint: str | None = None, matcher: Matcher | None = None
) -> Calibrator:
    """Read the calibration in the folder of an embedder, run or index.

    Args:
        folder: that has `calibration.json`, or that file.
        fingerprint: of the embedder whose scores are to be read, `Embedder.fingerprint()` or that of an index; not
            checked when omitted.
        matcher: that they are computed with; not checked when omitted.

    Raises:
        FileNotFoundError: there is no calibration.
        ValueError: the file is damaged, or the calibration belongs to another embedder or matcher.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() or path.suffix != ".json" else path
    if not path.is_file():
        raise FileNotFoundError(
            f"calibration: no {path}; create it with: diml calibrate DATASET --output {path.parent}"
        )
    found = parse_calibration(path.read_bytes(), str(path))
    found.check(fingerprint or found.fingerprint, matcher or found.matcher)
    return found


def parse_calibration(text: str | bytes, name: str) -> Calibrator:
    """Read the text of a `calibration.json`; `name` is its place, for messages.

    Raises:
        ValueError: it is damaged.
    """
    try:
        document = parse_json(text, FILE)
        _check_format(document)
        whole = unsealed(document, FILE, "run diml calibrate again")
        return Calibrator.from_dict(whole["calibration"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: not a calibration: {error}") from error


def _check_format(document: Mapping[str, Any]) -> None:
    if document["format"] != _FORMAT:
        raise ValueError(f"need format {_FORMAT}, got {document['format']!r}; written by a newer diml? Update diml")


def auc_with_interval(pairs: LabelledScores) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve of scored pairs, and its 95 % interval by leaving out groups of classes in turn."""
    from scipy import stats  # type: ignore[import-untyped]

    whole = auc(pairs)
    known = np.unique(np.concatenate([pairs.class_q, pairs.class_g]))
    groups = np.array_split(np.random.default_rng(0).permutation(known), min(_GROUPS, len(known)))
    without = []
    for group in groups:
        kept = pairs.subset(~(np.isin(pairs.class_q, group) | np.isin(pairs.class_g, group)))
        if kept.same.any() and not kept.same.all():
            without.append(auc(kept))
    if len(without) < 2:
        return whole, (0.0, 1.0)
    count = len(without)
    error = float(np.sqrt((count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum()))
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return whole, (max(0.0, whole - reach), min(1.0, whole + reach))


def auc(pairs: LabelledScores) -> float:
    """Probability that a same-class pair scores above a different-class pair, ties counted half."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    return float(roc_auc_score(pairs.same, pairs.scores, sample_weight=pairs.weights))


def _hit_map(scored: ScoredImages, method: Method) -> HitMap:
    """Logistic regression of the features of hits, and a monotone map of its outcome.

    A coefficient that would let the probability fall with the score, or rise with the rank, is left out.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    there, same = np.isfinite(scored.lists), scored.candidates.same
    features = hit_features(scored.lists)[there]
    spread = features.std(axis=0)
    used = spread > 0
    while True:
        centre = features[:, used].mean(axis=0)
        model = LogisticRegression(C=1e3, max_iter=1000).fit((features[:, used] - centre) / spread[used], same)
        found = np.zeros(len(spread))
        found[used] = model.coef_[0] / spread[used]
        wrong = np.array([found[0] < 0, found[1] > 0, False, False, False])
        if not wrong.any():
            break
        used &= ~wrong
        if not used.any():
            found[:] = 0.0
            break
    value = features @ found
    pairs = dataclasses.replace(scored.candidates, scores=value)
    values, probabilities = (_isotonic if method == "isotonic" else _logistic)(pairs)
    return HitMap(
        coefficients=tuple(found.tolist()), values=tuple(values.tolist()), probabilities=tuple(probabilities.tolist())
    )


def _isotonic(pairs: LabelledScores) -> tuple[Floats, Floats]:
    """Nodes of isotonic regression, one a block at its mean score.

    A pair of the other kind is added at either end, so that no probability is 0 or 1: Laplace's rule for the first and
    the last block, before neighbours are pooled.
    """
    from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]

    low, high = pairs.scores.min(), pairs.scores.max()
    x = np.concatenate([[low], pairs.scores, [high]])
    y = np.concatenate([[1.0], pairs.same, [0.0]])
    w = np.concatenate([[1.0], pairs.weights, [1.0]])
    fitted = IsotonicRegression().fit(x, y, sample_weight=w).predict(x)
    levels, block = np.unique(fitted, return_inverse=True)
    means = np.bincount(block, w * x) / np.bincount(block, w)
    return means, levels.astype(np.float64)


def _logistic(pairs: LabelledScores) -> tuple[Floats, Floats]:
    """Two nodes, at the smallest and the largest score seen: the line of log-odds, not continued beyond them."""
    from sklearn.linear_model import LogisticRegression

    low, high = float(pairs.scores.min()), float(pairs.scores.max())
    middle, spread = float(pairs.scores.mean()), float(pairs.scores.std()) or 1.0
    x = ((pairs.scores - middle) / spread)[:, None]
    # Platt's targets, as weights of both outcomes: they stand in for 0 and 1, which no finite sample shows
    same = int(pairs.same.sum())
    target = np.where(pairs.same, (same + 1) / (same + 2), 1 / (len(pairs) - same + 2))
    outcomes = np.repeat([1, 0], len(pairs))
    weights = np.concatenate([target, 1 - target]) * np.tile(pairs.weights, 2)
    model = LogisticRegression(C=1e6).fit(np.concatenate([x, x]), outcomes, sample_weight=weights)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0 or high == low:  # scores say nothing, or the contrary: the best monotone map is constant
        return np.array([middle]), np.array([pairs.prior])
    # the line ends where it leaves what that many pairs can show
    limit = float(_logit(1 - 1 / (len(pairs) + 2)))
    odds = np.clip(slope * (np.array([low, high]) - middle) / spread + intercept, -limit, limit)
    return middle + spread * (odds - intercept) / slope, cast(Floats, _expit(odds))


def _logit(p: Any) -> Any:
    return np.log(p) - np.log1p(-np.asarray(p))


def _expit(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))
