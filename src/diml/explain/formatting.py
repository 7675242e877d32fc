"""How the numbers of an explanation are written: scores as sums, signs and percentages.

`page/numbers.js` writes them in the same way. Needs no drawing library, so that tables, JSON and pages do not either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal

from diml.data.images import printable
from diml.matching import Contrast, Ledger
from diml.matching.cell_names import Grid, cell_name
from diml.matching.ledger import Flow

TIMES: Final = "\N{MULTIPLICATION SIGN}"
MINUS: Final = "\N{MINUS SIGN}"


def cell_of(region: int, grid: Grid | None) -> tuple[int, int] | None:
    """(row, column) of a region, both counted from 0; None where the regions form no known grid."""
    return None if grid is None else divmod(region, grid[1])


def signed(value: float, digits: int = 3) -> str:
    """A number with a true minus sign, and none before zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent(fraction: float) -> str:
    """A fraction in percent, with one digit after the point below ten: "31 %", "4.5 %"."""
    return f"{signed(100 * fraction, 0 if abs(fraction) >= 0.0995 else 1)} %"


def decimals(largest: float) -> int:
    """Digits after the point that show two significant digits of the largest value, 3 to 6."""
    return 3 if largest <= 0 else min(6, max(3, 1 - math.floor(math.log10(largest))))


def short_path(path: str) -> str:
    """The last folder and the name of a path, which tell one image from another, without control characters."""
    return printable("/".join(PurePath(path.replace("\\", "/")).parts[-2:]))


@dataclass(frozen=True)
class ScoreTerm:
    """One term of a score: `name`, the `text` that is written, such as "4 × structural 0.420", and its `value`."""

    name: Literal["pooled", "structural"]
    text: str
    value: float


def score_terms(pooled: float, structural: float, structural_weight: float) -> list[ScoreTerm]:
    """The terms that sum to the score; structural only where the weight is infinite."""
    if math.isinf(structural_weight):
        return [ScoreTerm("structural", f"structural {signed(structural)}", structural)]
    return [
        ScoreTerm("pooled", f"pooled {signed(pooled)}", pooled),
        ScoreTerm(
            "structural", f"{_factor(structural_weight)}structural {signed(structural)}", structural_weight * structural
        ),
    ]


def _factor(structural_weight: float) -> str:
    """The weight before the word "structural", nothing where it is 1 or the structural score counts alone."""
    return "" if structural_weight == 1 or math.isinf(structural_weight) else f"{structural_weight:g} {TIMES} "


def score_text(score: float, pooled: float, structural: float, structural_weight: float) -> str:
    """The score as a sum.

    Example:
        >>> score_text(2.29, 0.61, 0.42, 4.0)
        'score 2.290 = pooled 0.610 + 4 × structural 0.420'
    """
    terms = " + ".join(term.text for term in score_terms(pooled, structural, structural_weight))
    left_out = f" (pooled {signed(pooled)} not counted)" if math.isinf(structural_weight) else ""
    return f"score {signed(score)} = {terms}{left_out}"


def ledger_text(ledger: Ledger) -> str:
    """The score of a ledger as a sum."""
    return score_text(ledger.score, ledger.pooled, ledger.structural, ledger.structural_weight)


def share_text(ledger: Ledger, flows: Sequence[Flow]) -> str:
    """How much of the structural score the drawn flows account for."""
    carried = sum(flow.contribution for flow in flows)
    if not flows:
        return "No lines drawn" if float(ledger.contributions.max()) > 0 else "No pair of regions adds to the score"
    lines = "The line accounts" if len(flows) == 1 else f"The {len(flows)} lines account"
    is_part = ledger.structural >= carried * (1 - 1e-6)  # else other pairs of regions subtract more than rounding does
    share = f" ({percent(min(1.0, carried / ledger.structural))})" if is_part else ""
    return f"{lines} for {carried:.{decimals(carried)}f} of structural {signed(ledger.structural)}{share}"


def contrast_text(contrast: Contrast, top: int) -> str:
    """The difference of two scores as a sum, and the `top` regions with the largest differences.

    These are of the whole scores where they are known, else of the structural scores, and marked so.
    """
    whole = contrast.whole is not None or math.isinf(contrast.structural_weight)
    values = contrast.regions if contrast.whole is None else contrast.whole
    terms = [] if math.isinf(contrast.structural_weight) else [f"pooled {contrast.pooled:+.4f}"]
    terms.append(f"{_factor(contrast.structural_weight)}structural {contrast.structural:+.4f}")
    regions = [f"{cell_name(at, contrast.grid_q)} {float(values[at]):+.4f}" for at in contrast.top(top)]
    mainly = f", mainly by {', '.join(regions)}{'' if whole else ' (structural)'}" if regions else ""
    return f"{contrast.score:+.4f} = {' + '.join(terms)}{mainly}"
