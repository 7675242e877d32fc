"""What there is to say about one pair to somebody who does not know the method: few numbers and one sentence.

Figures, pages, JSON and `diml explain` draw their view for everybody from a `Summary` and from nothing else.

Legend: Rq and Rg regions of the query and of the gallery image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from diml.explain.explanation import SAME_SCORE, Explanation, Foregrounds, checked_pair
from diml.explain.places import place_of
from diml.explain.scale import Scale, common_scale, highest_score
from diml.explain.wording import headline_of, hints_of, sentence_of, warnings_of
from diml.matching import Ledger

if TYPE_CHECKING:
    from diml.calibration import Calibrator
    from diml.matching.parts import Part, Parts

#: False-accept rate of the threshold that a score is compared with, where the calibration can promise it.
FALSE_ACCEPT_RATE: Final = 0.01
#: Shares would mislead below this fraction of the score of an image with itself, and where terms cancel each other:
#: where the sizes of the rows sum to more than this multiple of the score.
_TINY, _CANCELLING = 0.05, 2.0
#: Of a region with more than this share of its weight unmatched, it is said that it has no counterpart.
_MOSTLY: Final = 0.5


@dataclass(frozen=True)
class Term:
    """A term of the score, and its share of it; no share where the score is negative or close to zero,
    or mostly the difference of terms that cancel each other."""

    value: float
    share: float | None


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """A group of regions of both images that match.

    Args:
        part: its number, from 1, largest value first.
        value: of the whole score; of the weighted structural score where the pooled cosine is not divided.
        share: value as a fraction of the score; None where that is negative or close to zero.
        mass: that is transported inside the part, as a fraction of 1.
        cosine: mean cosine of it.
        regions_q, regions_g: row-major indices.
        connected_q, connected_g: whether they are one piece.
        place_q, place_g: where they are in the image, in words (see `place_of`).
    """

    part: int
    value: float
    share: float | None
    mass: float
    cosine: float
    regions_q: tuple[int, ...]
    regions_g: tuple[int, ...]
    connected_q: bool
    connected_g: bool
    place_q: str
    place_g: str


@dataclass(frozen=True)
class Unmatched:
    """What of one image has no counterpart.

    Args:
        mass: as a fraction of 1.
        regions: those of which it is more than half of the weight; row-major indices.
    """

    mass: float
    regions: tuple[int, ...]


@dataclass(frozen=True)
class UnmatchedSides:
    """What of either image has no counterpart."""

    query: Unmatched
    gallery: Unmatched


@dataclass(frozen=True)
class BackgroundShares:
    """Shares of the score from object to object, between object and background, and from background to background."""

    object: float
    mixed: float
    background: float


@dataclass(frozen=True)
class Threshold:
    """The score from which pairs are accepted at a false-accept rate, and whether this pair is."""

    score: float
    false_accept_rate: float
    above: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One pair in a few numbers and words; made by `summarise`.

    Args:
        headline: how likely the images are of one class; the similarity where there is no calibration.
        sentence: what the similarity consists of, computed from the parts.
        score: sum of what is shown.
        ranked_by: the score by which pairs are ranked, where it differs; None where it does not.
        plan: "exact", "entropic, epsilon 0.05", "MaxSim" or "one-sided MaxSim".
        whole: whether the parts divide the whole score; if not, `undivided` says why, and `pooled` is a row of its own.
        undivided: why the pooled cosine is not divided; else empty.
        parts: largest value first.
        between: pairs of regions of different parts; parts + between (+ pooled) = score.
        overall: whether the pooled cosine is divided, so that `between` is mainly the overall look of both images:
            every region of one with every region of the other.
        pooled: the pooled cosine, where it is not divided.
        unmatched: None where all mass is transported.
        background: None where foregrounds are not known, or the score is negative or close to zero.
        probability: P(same class); None without a calibration.
        threshold: None without a calibration, or where it has too few pairs to promise any.
        scale: for the score by which pairs are ranked.
        warnings, hints: sentences.
    """

    headline: str
    sentence: str
    score: float
    ranked_by: float | None
    plan: str
    whole: bool
    undivided: str
    parts: tuple[PartRow, ...]
    between: Term
    overall: bool
    pooled: Term | None
    unmatched: UnmatchedSides | None
    background: BackgroundShares | None
    probability: float | None
    threshold: Threshold | None
    scale: Scale
    warnings: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def ranking(self) -> float:
        """The score by which pairs are ranked, which is also that of probability, threshold and scale."""
        return self.score if self.ranked_by is None else self.ranked_by

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as fields are named; fractions, no percentages."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        return f"{self.headline}. {self.sentence}"


def summarise(found: Explanation, pair: int = 0, *, parts: int | Parts | None = None) -> Summary:
    """Say what the score of one pair consists of, in a few rows, numbers and words.

    Args:
        found: B pairs, read with the plan that they have (see `shown_plan`), their calibrator and foregrounds.
        pair: which of them, -B..B-1.
        parts: largest number of parts, 3 to 6 where omitted; or the parts of this ledger, where they are known.

    Raises:
        IndexError: there is no such pair.
        ValueError: `parts` is less than 1.

    Example:
        >>> print(summarise(shown_plan(diml.match("a.jpg", "b.jpg"))))  # doctest: +SKIP
    """
    ledger = found.ledger(checked_pair(found, pair))
    score, ranking = ledger.score, found.ranked_by(pair)
    groups = ledger.parts(parts) if parts is None or isinstance(parts, int) else parts
    rows = [*(part.value for part in groups.rows), groups.between, groups.pooled or 0.0]
    divides = score >= _TINY * highest_score(found.matcher) and sum(map(abs, rows)) <= _CANCELLING * score

    def term(value: float) -> Term:
        return Term(value, value / score if divides else None)

    bare = Summary(
        headline="",
        sentence="",
        score=score,
        ranked_by=ranking if abs(ranking - score) > SAME_SCORE else None,
        plan=found.plan_shown,
        whole=ledger.has_whole,
        undivided="" if ledger.has_whole else ledger.undivided,
        parts=tuple(_row(number, part, ledger, term(part.value).share) for number, part in enumerate(groups.rows, 1)),
        between=term(groups.between),
        overall=ledger.pooled_parts is not None and not math.isinf(ledger.structural_weight),
        pooled=None if groups.pooled is None else term(groups.pooled),
        unmatched=_unmatched(found, ledger, pair),
        background=_background(ledger, found.foregrounds, score) if divides else None,
        probability=found.probability_of(pair),
        threshold=None if found.calibrator is None else _threshold(found.calibrator, ranking),
        scale=common_scale(found.matcher, found.calibrator, found.noun),
        warnings=(),
        hints=(),
    )
    return replace(
        bare,
        headline=headline_of(bare, found.noun),
        sentence=sentence_of(bare),
        warnings=warnings_of(bare, found, pair),
        hints=hints_of(found),
    )


def _row(number: int, part: Part, ledger: Ledger, share: float | None) -> PartRow:
    return PartRow(
        part=number,
        value=part.value,
        share=share,
        mass=part.mass,
        cosine=part.cosine,
        regions_q=tuple(part.regions_q),
        regions_g=tuple(part.regions_g),
        connected_q=part.connected_q,
        connected_g=part.connected_g,
        place_q=place_of(part.regions_q, ledger.grid_q),
        place_g=place_of(part.regions_g, ledger.grid_g),
    )


def _unmatched(found: Explanation, ledger: Ledger, pair: int) -> UnmatchedSides | None:
    if ledger.unmatched_q is None or ledger.unmatched_g is None:
        return None
    sides = []
    for left, weights in ((ledger.unmatched_q, found.weight_q[pair]), (ledger.unmatched_g, found.weight_g[pair])):
        mostly = (left > _MOSTLY * weights) & (weights > 0)
        sides.append(Unmatched(float(left.double().sum()), tuple(mostly.nonzero().squeeze(1).tolist())))
    return UnmatchedSides(*sides)


def _background(ledger: Ledger, foregrounds: Foregrounds | None, score: float) -> BackgroundShares | None:
    """Shares of the score by what its two regions show: f_q f_g of a term is object, (1 - f_q) (1 - f_g) background."""
    if foregrounds is None or foregrounds[0] is None or foregrounds[1] is None:
        return None
    terms = divided_score(ledger).cpu()
    query, gallery = (torch.as_tensor(side, dtype=torch.float64) for side in foregrounds)
    inside, outside = float(query @ terms @ gallery), float((1 - query) @ terms @ (1 - gallery))
    return BackgroundShares(inside / score, (float(terms.sum()) - inside - outside) / score, outside / score)


def divided_score(ledger: Ledger) -> Tensor:
    """(Rq, Rg) float64: the score as far as it is divided among pairs of regions."""
    return ledger.whole if ledger.has_whole else ledger.structural_weight * ledger.contributions


def _threshold(calibrator: Calibrator, score: float) -> Threshold | None:
    """The threshold of the named rate, or of the smallest rate that the calibration can promise."""
    rate = max(FALSE_ACCEPT_RATE, calibrator.false_accept.smallest_rate)
    if rate >= 1:
        return None
    at = calibrator.threshold(rate)
    return Threshold(at, rate, score >= at)


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists."""
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    return [_plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
