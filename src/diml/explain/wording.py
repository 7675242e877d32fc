"""Headline, sentence, warnings and hints of a summary: computed from its numbers, in plain words.

Legend: Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from diml.explain.formatting import percent, signed
from diml.explain.places import placed

if TYPE_CHECKING:
    from diml.explain.explanation import Explanation
    from diml.explain.summary import PartRow, Summary

_NUMBERS: Final = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
#: Mean cosine of all pairs of regions above which they all look alike: as measured, in 1440 of 1440 pairs of networks
#: with random weights (ResNet-18) and 6 of 480 of a pretrained one (docs/experiments/alike.md).
ALIKE: Final = 0.72
#: A share of the background above this is pointed out.
_MUCH_BACKGROUND: Final = 1 / 3
#: Shares of what is not matched, or not divided, that are worth a clause.
_WORTH_SAYING: Final = 0.01
#: Share of pairs of regions of different parts that is worth a clause.
_MUCH_BETWEEN: Final = 0.1


def headline_of(summary: Summary, kind: str = "class") -> str:
    """How likely both images are of one class; the similarity where there is no calibration."""
    if summary.probability is None:
        return f"Similarity {signed(summary.ranking, 2)}"
    return f"{likely(summary.probability)} likely the same {kind}"


def likely(probability: float) -> str:
    """A probability in whole percent that never claims certainty.

    Example:
        >>> likely(0.912), likely(0.9993), likely(0.002)
        ('91 %', 'more than 99 %', 'less than 1 %')
    """
    if probability > 0.99:
        return "more than 99 %"
    return "less than 1 %" if probability < 0.01 else whole_percent(probability)


def whole_percent(fraction: float) -> str:
    """A fraction in whole percent."""
    return f"{signed(100 * fraction, 0)} %"


def sentence_of(summary: Summary) -> str:
    """What the similarity consists of: the parts, the largest of them and its place, and what is not matched."""
    clauses = [clause for clause in (_parts_clause(summary), *_other_clauses(summary)) if clause]
    return "; ".join(clauses) + "."


def _parts_clause(summary: Summary) -> str:
    rows = [row for row in summary.parts if row.value > 0]
    if not rows:
        return "No part of the query resembles a part of the gallery image"
    largest = rows[0]
    if largest.share is None:
        parts = "One part adds" if len(rows) == 1 else f"{_counted(len(rows))} parts add"
        which = "it" if len(rows) == 1 else "the largest"
        return f"{parts} to a similarity of {signed(summary.ranking, 2)}; {which} joins {_joined(largest)}"
    carried = whole_percent(sum(row.share or 0.0 for row in rows))
    if len(rows) == 1:
        return f"One part carries {carried} of the similarity; it joins {_joined(largest)}"
    return (
        f"{_counted(len(rows))} parts carry {carried} of the similarity; the largest ({whole_percent(largest.share)}) "
        f"joins {_joined(largest)}"
    )


def _joined(row: PartRow) -> str:
    query = placed(row.place_q, len(row.regions_q), "query")
    return f"{query} with {placed(row.place_g, len(row.regions_g), 'gallery image')}"


def _other_clauses(summary: Summary) -> list[str]:
    """What is not divided, and what has no counterpart."""
    clauses = []
    between, pooled = summary.between.share, summary.pooled
    if between is not None and between >= _MUCH_BETWEEN:
        source = "is the overall look" if summary.overall else "comes from regions of different parts"
        clauses.append(f"another {whole_percent(between)} {source}")
    elif between is not None and between <= -_WORTH_SAYING:
        clauses.append(f"regions of different parts take away {whole_percent(-between)}")
    if pooled is not None and pooled.share is not None and pooled.share >= _WORTH_SAYING:
        clauses.append(f"{whole_percent(pooled.share)} compares the images as a whole and is not divided among parts")
    if summary.unmatched is not None:
        sides = ((summary.unmatched.query, "query"), (summary.unmatched.gallery, "gallery image"))
        said = [(whole_percent(side.mass), name) for side, name in sides if side.mass >= _WORTH_SAYING]
        if len(said) == 2 and said[0][0] == said[1][0]:
            clauses.append(f"{said[0][0]} of either image has no counterpart")
        elif said:
            shares = " and ".join(f"{share} of the {name}" for share, name in said)
            clauses.append(f"{shares} {'has' if len(said) == 1 else 'have'} no counterpart")
    return clauses


def _counted(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def warnings_of(summary: Summary, found: Explanation, pair: int) -> tuple[str, ...]:
    """What must be known before the explanation of a pair is trusted, most important first."""
    return tuple(
        text
        for text in (
            _separation(found),
            _alike(found, pair),
            _convergence(found, pair),
            _background(summary),
            _shares(summary),
            _pieces(summary),
        )
        if text
    )


def _separation(found: Explanation) -> str:
    if found.calibrator is None or found.calibrator.separates:
        return ""
    return (
        f"This model hardly tells one {found.noun} from another (area under ROC {found.calibrator.auc:.2f}; 0.50 is "
        "chance): what it finds similar means little."
    )


def _alike(found: Explanation, pair: int) -> str:
    """Where all regions have much the same features, any plan looks convincing."""
    mean = mean_cosine(found, pair)
    if mean <= ALIKE:
        return ""
    return (
        f"All regions look much alike to this model (mean cosine {signed(mean, 2)}), as they do to a network with "
        "random weights: which parts match then says little."
    )


def mean_cosine(found: Explanation, pair: int = 0) -> float:
    """The mean cosine of all pairs of regions of two images, each by the product of its weights."""
    weight_q, cosine, weight_g = (
        side[pair].detach().double() for side in (found.weight_q, found.cosine, found.weight_g)
    )
    return float(weight_q @ cosine @ weight_g)


def _convergence(found: Explanation, pair: int) -> str:
    if bool(found.converged[pair]):
        return ""
    error, steps = float(found.marginal_error[pair]), int(found.iterations[pair])
    return (
        f"Not converged: marginal error {error:.1e} after {steps} iterations, so that the score by which the pair is "
        "ranked is not exact; raise max_iterations or epsilon."
    )


def _background(summary: Summary) -> str:
    shares = summary.background
    if shares is None or shares.background <= _MUCH_BACKGROUND:
        return ""
    return f"{whole_percent(shares.background)} of the similarity comes from the backgrounds of both images."


def _shares(summary: Summary) -> str:
    if summary.between.share is not None:
        return ""
    return (
        "The similarity is close to zero or negative, or its terms cancel each other, so that percentages would "
        "mislead: only values are given."
    )


def _pieces(summary: Summary) -> str:
    """Parts that are not connected, in one sentence."""
    told: list[str] = []
    for image, apart in (
        ("query", [row.part for row in summary.parts if not row.connected_q]),
        ("gallery image", [row.part for row in summary.parts if not row.connected_g]),
    ):
        if apart:
            numbers = ", ".join(map(str, apart[:-1])) + (" and " if len(apart) > 1 else "") + str(apart[-1])
            part, consists = ("part", "consists") if len(apart) == 1 else ("parts", "consist")
            told.append(f"{part} {numbers}{'' if told else f' {consists} of separate pieces'} in the {image}")
    return f"P{', '.join(told)[1:]}." if told else ""


def hints_of(found: Explanation) -> tuple[str, ...]:
    """What else could be learned, and how."""
    if found.calibrator is None and found.probability is None:
        return (f"Run diml calibrate on labelled images to see how likely both show the same {found.noun}.",)
    if found.calibrator is None or found.probability is not None:
        return ()
    prior = percent(found.calibrator.prior)
    return (f"The probability is for pairs of which {prior} show the same {found.noun}; see diml calibrate --prior.",)
