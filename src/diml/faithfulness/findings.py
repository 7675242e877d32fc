"""What a study found: means with bootstrap intervals, and paired differences against chance.

Legend: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Unpack

import numpy as np
from numpy.typing import NDArray

from diml.data import ImageSet
from diml.evaluation.intervals import bootstrap_means, interval
from diml.faithfulness.pairs import choose_pairs
from diml.faithfulness.randomised import randomised
from diml.faithfulness.study import Key, Measures, Study, run_study
from diml.matching import MatchSettings
from diml.models import Embedder

Floats = NDArray[np.float64]

#: Resamples of the bootstrap.
RESAMPLES: Final = 1000

#: Names of the two studies of a judgement.
MODEL, RANDOM = "model", "random weights"


@dataclass(frozen=True)
class Finding:
    """One number with its 95 % interval over pairs.

    Args:
        measure: "additivity", "deletion", "insertion", "correspondence" or "stability".
        case: kind of warp or disturbance, or "".
        method: what was measured, or what it is held against.
        quantity: which number of it.
        value: mean over the pairs; of additivity the largest.
        low, high: bootstrap interval of the mean; both the value itself where it is a largest or without spread.
        pairs: how many pairs it is of.
    """

    measure: str
    case: str
    method: str
    quantity: str
    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, eq=False)
class Judgement:
    """A model's study, and that of the same network with random weights where wanted.

    Args:
        studies: name -> what was measured.
        findings: name -> what it comes to.
    """

    studies: Mapping[str, Study]
    findings: Mapping[str, tuple[Finding, ...]]

    def find(self, measure: str, case: str, method: str, quantity: str, study: str = MODEL) -> Finding:
        """One finding; KeyError where there is none of that name."""
        for finding in self.findings[study]:
            if (finding.measure, finding.case, finding.method, finding.quantity) == (measure, case, method, quantity):
                return finding
        raise KeyError((measure, case, method, quantity))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: findings, mean curves of deletion and insertion, plans that were not finished."""
        return {
            name: {
                "findings": [asdict(finding) for finding in self.findings[name]],
                "curves": [
                    {"measure": kind, "method": method, "share": study.shares.tolist(), "score": rows.mean(0).tolist()}
                    for (kind, method), rows in study.curves.items()
                ],
                "unfinished_plans": study.unfinished,
            }
            for name, study in self.studies.items()
        }


def faithfulness(
    embedder: Embedder,
    images: ImageSet,
    *,
    pairs: int = 100,
    measures: Measures | None = None,
    sanity: bool = True,
    progress: bool = False,
    **settings: Unpack[MatchSettings],
) -> Judgement:
    """Measure how faithful the explanations of an embedder are, on pairs of one class.

    Args:
        embedder: turns images into regions on a known grid.
        images: for instance `load_dataset("orl").test`.
        pairs: how many, by chance; fewer where there are not as many queries.
        measures: what is measured, and the seed of all chance; `Measures()` when omitted.
        sanity: measure the same network with random weights as well.
        progress: show progress bars.
        settings: marginals, epsilon, tolerance, max_iterations as of `diml.matching.match`.

    Returns:
        Judgement.

    Raises:
        BadImageError: a image cannot be used.
        ValueError: no pairs; a setting out of range; Grad-CAM cannot be had.

    Example:
        >>> found = faithfulness(load_embedder("mobilenetv2_100", grid=7), images)  # doctest: +SKIP
        >>> found.find("correspondence", "shift", "plan", "mass").value  # doctest: +SKIP
        0.27
    """
    measures = Measures() if measures is None else measures
    chosen = choose_pairs(images, pairs, measures.seed)
    other = randomised(embedder, measures.seed) if sanity else None
    common: dict[str, Any] = {"measures": measures, "settings": settings, "progress": progress}
    studies = {MODEL: run_study(embedder, images, chosen, doubtful=other, what=MODEL, **common)}
    if other is not None:
        plain = replace(measures, grad_cam=False)  # an order that is no explanation of ours needs no check
        third = randomised(embedder, measures.seed + 1)
        common |= {"measures": plain}
        studies[RANDOM] = run_study(other, images, chosen, doubtful=third, what=RANDOM, **common)
    return Judgement(studies, {name: summed_up(found, measures.seed) for name, found in studies.items()})


def summed_up(study: Study, seed: int) -> tuple[Finding, ...]:
    """All numbers of a study with intervals, and those of deletion less chance, paired."""
    findings = [_finding(key, values, seed) for key, values in study.values.items()]
    for (measure, case, method, quantity), values in study.values.items():
        if measure in ("deletion", "insertion") and method != "random":
            chance = study.values[measure, case, "random", quantity]
            findings.append(_finding((measure, case, method, "area_less_random"), values - chance, seed))
    return tuple(findings)


def _finding(key: Key, values: Floats, seed: int) -> Finding:
    if key[0] == "additivity":
        most = float(values.max())
        return Finding(*key, most, most, most, len(values))
    low, high = interval(bootstrap_means(values[:, None], RESAMPLES, seed)[:, 0])
    return Finding(*key, float(values.mean()), low, high, len(values))
