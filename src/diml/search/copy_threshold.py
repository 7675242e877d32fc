"""From which agreement two images are copies of one photograph: learnt from the gallery itself, without labels.

Copies of some images are made (compressed again, brighter or darker, half the size, mirrored, cropped), embedded,
looked for in the index and compared like all others: how many are found is the recall. How many pairs of the gallery
reach a threshold without being copies is extrapolated from the pairs just below it, such as two shots of one scene:
with u = -log(1 - agreement) their number falls off exponentially, and the rate is that of the truncated exponential
distribution of those between 0.9 and 0.985. That number over the number of pairs found is what is
missing from a precision of 1.

Sources: the empirical null of Efron, JASA 2004, here for a tail; Wilson, JASA 1927, for the intervals of the recall.

Legend: M images of which copies are made, P pairs of the gallery.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from diml.data.image_files import opened_image
from diml.progress import ShowProgress, progress_bar
from diml.search.copies import CopyComparison

if TYPE_CHECKING:
    from diml.models import Embedder
    from diml.search.filters import Where
    from diml.search.store import Store

#: Threshold without a calibration, and where the precision is unknown (docs/duplicates.md).
DEFAULT_THRESHOLD: Final = 0.99
#: No threshold of a calibration is smaller.
_SMALLEST: Final = 0.985
#: Kinds of copies that are made.
KINDS: Final = ("jpeg", "brightness", "half", "mirror", "crop")
#: Agreement from which pairs of the gallery tell how many false pairs a threshold has.
_FROM: Final = 0.9
#: Fewer such pairs tell nothing.
_ENOUGH: Final = 15
#: Quantile of the agreements of the copies that were made above which the threshold is never.
_KEPT: Final = 0.2
_RESAMPLES: Final = 1000
#: How far below the smallest cosine of the copies that were made that of another copy may be.
_MARGIN: Final = 0.05


@dataclass(frozen=True)
class CopyEstimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class Trials:
    """Copies that were made of images of the gallery.

    Args:
        kinds: of each copy, among `KINDS`.
        cosine: pooled cosine of each to its original.
        reached: whether its original is among its neighbours.
        agreement: with its original.
        images: M.
    """

    kinds: tuple[str, ...]
    cosine: NDArray[np.float32]
    reached: NDArray[np.bool_]
    agreement: NDArray[np.float64]
    images: int

    def least_cosine(self) -> float:
        """The smallest cosine of a copy to its original, less a margin."""
        return float(self.cosine.min()) - _MARGIN if len(self.cosine) else -1.0

    def found(self, threshold: float, least: float = -1.0) -> NDArray[np.bool_]:
        """Which copies are found from a threshold on."""
        return self.reached & (self.agreement >= threshold) & (self.cosine >= least)

    def recall(self, threshold: float) -> dict[str, CopyEstimate]:
        """Share that is found, of each kind and of "all"; the interval of all counts each image once."""
        found, kinds = self.found(threshold, self.least_cosine()), np.array(self.kinds)
        shares = {kind: wilson(float(found[kinds == kind].mean()), self.images) for kind in dict.fromkeys(self.kinds)}
        return shares | {"all": wilson(float(found.mean()), self.images)}


@dataclass(frozen=True, eq=False)
class CopyThreshold:
    """A threshold, and what is known of it.

    Args:
        value: agreement from which two images are copies.
        source: "calibration", "given" or "default".
        recall: share of the copies made that are found, by kind and "all"; empty without copies.
        images: M.
        precision: share of the pairs found, exact copies left out, that are of one photograph; None where unknown.
        expected_false: pairs that reach the threshold without being copies; None where unknown.
        similar: pairs of the gallery that this was learnt from.
    """

    value: float
    source: str
    recall: dict[str, CopyEstimate]
    images: int = 0
    precision: CopyEstimate | None = None
    expected_false: CopyEstimate | None = None
    similar: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions."""
        return {
            "value": self.value,
            "source": self.source,
            "recall": {kind: share.to_dict() for kind, share in self.recall.items()},
            "images": self.images,
            "precision": None if self.precision is None else self.precision.to_dict(),
            "expected_false_pairs": None if self.expected_false is None else self.expected_false.to_dict(),
            "similar_pairs": self.similar,
        }

    def lines(self) -> list[str]:
        """What is known, for people."""
        lines = [f"Threshold: agreement {self.value:.4f} ({self.source})."]
        if self.recall:
            kinds = ", ".join(f"{kind} {_percent(share.value)}" for kind, share in self.recall.items() if kind != "all")
            made = f"copies made of {self.images} images of this index"
            lines.append(f"Recall: {_interval(self.recall['all'])} of {made} ({kinds}).")
        if self.expected_false is None:
            lines.append(
                f"Precision: unknown, as only {self.similar} pairs of this index are similar without being copies."
            )
        elif self.precision is None:
            lines.append(f"About {self.expected_false.value:.1f} false pairs are expected; no pair reaches it.")
        else:
            lines.append(
                f"Precision: {_interval(self.precision)} of the pairs that are no exact copies; about "
                f"{self.expected_false.value:.1f} false pairs are expected."
            )
        return lines


def copy_trials(
    store: Store,
    embedder: Embedder,
    compared: CopyComparison,
    *,
    images: int,
    neighbours: int,
    where: Where | None = None,
    seed: int = 0,
    progress: ShowProgress = False,
) -> Trials:
    """Make copies of some images of a gallery, and look for their originals.

    Args:
        store: the index.
        embedder: that of the index.
        compared: its images.
        images: M; fewer where fewer can be read.
        neighbours: as of `neighbour_pairs`.
        where: the condition of the gallery.
        seed: of the choice of images, kinds of change and places of crops.
        progress: as of `progress_bar`.
    """
    generator = np.random.default_rng(seed)
    kinds: list[str] = []
    cosine: list[float] = []
    reached: list[bool] = []
    agreements: list[float] = []
    used = 0
    gallery = compared.gallery
    with progress_bar(min(images, len(gallery)), show=progress, what="calibrating", unit="images") as advance:
        for row in generator.permutation(len(gallery)).tolist():
            if used == images:
                break
            original = compared.image(row)
            if original is None:
                continue
            used += 1
            copies = [made_copy(original, kind, generator) for kind in KINDS]
            pooled = embedder.embed(copies).to("cpu").pooled.float().numpy()
            own = store.regions([gallery.ids[row]]).pooled[0]
            near = store.nearest(pooled, neighbours + len(gallery.same(row)), where=where)
            names = {gallery.ids[other] for other in gallery.same(row)}
            for kind, copy, vector, hits in zip(KINDS, copies, pooled, near, strict=True):
                kinds.append(kind)
                cosine.append(float(vector @ own))
                reached.append(bool(names & set(hits.ids)))
                agreements.append(compared.with_image(row, copy).value)
            advance(1)
    return Trials(
        tuple(kinds), np.array(cosine, dtype=np.float32), np.array(reached, dtype=bool), np.array(agreements), used
    )


def made_copy(image: Image.Image, kind: str, generator: np.random.Generator) -> Image.Image:
    """A copy of an image as shops have them, stored as JPEG.

    Args:
        image: RGB.
        kind: "jpeg" (quality 50), "brightness" (times 0.7 or 1.3), "half" (of both sides), "mirror" or "crop" (90 % of
            both sides, anywhere).
        generator: of random numbers.
    """
    quality = 90
    if kind == "jpeg":
        quality = 50
    elif kind == "brightness":
        image = ImageEnhance.Brightness(image).enhance(float(generator.choice([0.7, 1.3])))
    elif kind == "half":
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)
    elif kind == "mirror":
        image = ImageOps.mirror(image)
    elif kind == "crop":
        width, height = max(1, round(0.9 * image.width)), max(1, round(0.9 * image.height))
        x, y = generator.integers(image.width - width + 1), generator.integers(image.height - height + 1)
        image = image.crop((int(x), int(y), int(x) + width, int(y) + height))
    else:
        raise ValueError(f"kind: need one of {', '.join(KINDS)}, got {kind!r}")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    with opened_image(stream.getvalue()) as opened:
        return opened.convert("RGB")


def choose_threshold(trials: Trials, agreements: NDArray[np.float64], precision: float) -> CopyThreshold:
    """The smallest threshold, from 0.985 on, whose estimated precision is at least the one wanted.

    It finds 80 % or more of the copies that were made: where none of these thresholds has that precision, it is the
    largest of them. Where the precision is unknown, it is the default.

    Args:
        trials: copies that were made.
        agreements: (P,) of the pairs of the gallery, without exact copies.
        precision: in (0, 1).
    """
    known = trials.agreement[trials.reached & (trials.agreement > _FROM)]
    if not len(known):
        return CopyThreshold(DEFAULT_THRESHOLD, "default", {}, trials.images)
    low, high = _SMALLEST, max(_SMALLEST, float(np.quantile(known, _KEPT, method="lower")))
    tried = np.unique(np.r_[low, known[(known >= low) & (known <= high)], high])
    told = [_described(trials, agreements, float(threshold), low) for threshold in tried]
    if told[0].expected_false is None:
        return replace(_described(trials, agreements, DEFAULT_THRESHOLD, low), source="default")
    if not (agreements >= low).any():
        return told[0]
    sound = [one for one in told if one.precision is not None and one.precision.value >= precision]
    return sound[0] if sound else told[-1]


def given_threshold(trials: Trials | None, agreements: NDArray[np.float64], value: float | None) -> CopyThreshold:
    """What is known of a threshold that is not chosen: the one that is given, or the default."""
    source, threshold = ("default", DEFAULT_THRESHOLD) if value is None else ("given", value)
    if trials is None or not len(trials.agreement):
        similar = int(((agreements >= _FROM) & (agreements < threshold)).sum())
        return CopyThreshold(threshold, source, {}, similar=similar)
    return replace(_described(trials, agreements, threshold, min(threshold, _SMALLEST)), source=source)


def _described(trials: Trials, agreements: NDArray[np.float64], threshold: float, low: float) -> CopyThreshold:
    """What is known of a threshold; pairs below `low` are taken to be no copies."""
    similar = agreements[(agreements >= _FROM) & (agreements < low)]
    expected = expected_false_pairs(similar, low, threshold)
    found = int((agreements >= threshold).sum())
    precision = None
    if expected is not None and found:
        shares = [max(0.0, 1 - number / found) for number in (expected.value, expected.high, expected.low)]
        precision = CopyEstimate(*shares)
    return CopyThreshold(
        threshold, "calibration", trials.recall(threshold), trials.images, precision, expected, len(similar)
    )


def expected_false_pairs(
    similar: NDArray[np.float64], low: float, threshold: float, seed: int = 0
) -> CopyEstimate | None:
    """How many pairs that are no copies reach a threshold, from those below it.

    Args:
        similar: agreements from 0.9 to below `low`.
        low: agreement below which pairs are no copies, above 0.9.
        threshold: at least `low`.
        seed: of the resampling.

    Returns:
        The number, with a bootstrap interval; None where there are too few pairs.
    """
    if len(similar) < _ENOUGH:
        return None
    start, end, wanted = (-math.log(1 - min(value, 1 - 1e-9)) for value in (_FROM, low, threshold))
    over = -np.log(1 - similar) - start
    generator = np.random.default_rng(seed)
    numbers = generator.poisson(len(over), _RESAMPLES)
    means = np.array([over[generator.integers(len(over), size=max(1, number))].mean() for number in numbers])
    rates = _rate(np.r_[over.mean(), means], end - start)
    counts = np.r_[len(over), numbers]
    # in a truncated exponential distribution, those above the end are to those below as exp(-rate) to 1 - exp(-rate)
    expected = counts * np.exp(-rates * (wanted - start)) / -np.expm1(-rates * (end - start))
    low_end, high_end = np.percentile(expected[1:], (2.5, 97.5))
    return CopyEstimate(float(expected[0]), float(low_end), float(high_end))


def _rate(mean: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Rate of exponential distributions on [0, length] with these means, at least 0.01, by bisection."""
    low, high = np.full(len(mean), 0.01), np.full(len(mean), 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        too_large = 1 / middle - length / np.expm1(np.minimum(middle * length, 500)) > mean
        low, high = np.where(too_large, middle, low), np.where(too_large, high, middle)
    rates: NDArray[np.float64] = (low + high) / 2
    return rates


def wilson(share: float, count: int) -> CopyEstimate:
    """A share of `count` independent cases with the 95 % interval of Wilson."""
    if not count:
        return CopyEstimate(share, 0.0, 1.0)
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return CopyEstimate(share, max(0.0, middle - half), min(1.0, middle + half))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(found: CopyEstimate) -> str:
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
