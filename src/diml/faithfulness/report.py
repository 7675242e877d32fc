"""The faithfulness of an embedder's explanations: means with bootstrap intervals, and differences from random orders.

Legend: B pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diml.data import ImageSet
from diml.evaluation.intervals import bootstrap_means, interval
from diml.faithfulness.collected import Key, Measurements
from diml.faithfulness.measures import measure_pairs
from diml.faithfulness.pairs import choose_pairs
from diml.faithfulness.randomised import randomised
from diml.faithfulness.settings import Measures
from diml.matching import Matcher
from diml.models import Embedder
from diml.progress import ShowProgress

Floats = NDArray[np.float64]

#: Resamples of the bootstrap.
RESAMPLES: Final = 1000

#: Names of the two networks of a report.
MODEL, RANDOM = "model", "random weights"


@dataclass(frozen=True)
class Estimate:
    """One quantity with its 95 % interval over pairs.

    Args:
        measure: "additivity", "deletion", "insertion", "interaction_deletion", "interaction_insertion",
            "correspondence", "stability", "parts" or "unmatched".
        case: kind of warp, perturbation or occlusion, or "".
        method: what was measured, or a baseline; "credit/shifted" is the control "shifted" of the method "credit".
        quantity: such as "mass" or "area"; "area_less_shifted" is the difference from the control of that name, paired
            by pair.
        value: mean over the pairs; for additivity the maximum.
        low, high: bootstrap interval of the mean; for additivity both equal `value`.
        pairs: number of pairs.
    """

    measure: str
    case: str
    method: str
    quantity: str
    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessReport:
    """The measurements of a model, and of the same network with random weights if measured.

    Args:
        measurements: name of the network -> values of all pairs.
        estimates: name of the network -> means with intervals.
    """

    measurements: Mapping[str, Measurements]
    estimates: Mapping[str, tuple[Estimate, ...]]

    def find(self, measure: str, case: str, method: str, quantity: str, network: str = MODEL) -> Estimate:
        """One estimate.

        Raises:
            KeyError: it was not measured.
        """
        for estimate in self.estimates[network]:
            key = (estimate.measure, estimate.case, estimate.method, estimate.quantity)
            if key == (measure, case, method, quantity):
                return estimate
        raise KeyError((measure, case, method, quantity))

    def to_dict(self) -> dict[str, Any]:
        """Plain values by network: estimates, mean curves, numbers of unconverged plans and of embedded images."""
        return {
            name: {
                "estimates": [asdict(estimate) for estimate in self.estimates[name]],
                "curves": [
                    {"measure": kind, "method": method, "share": found.shares.tolist(), "score": rows.mean(0).tolist()}
                    for (kind, method), rows in found.curves.items()
                ],
                "unconverged_plans": found.unconverged_plans,
                "embeddings": found.embeddings,
            }
            for name, found in self.measurements.items()
        }

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return max((estimate.pairs for estimates in self.estimates.values() for estimate in estimates), default=0)

    def __repr__(self) -> str:
        return f"FaithfulnessReport({' and '.join(self.estimates)}: {self.pairs} pairs; find(...) has the estimates)"

    def _repr_html_(self) -> str:
        """All estimates as a table, for notebooks."""
        head = "".join(f"<th>{name}</th>" for name in ("network", "measure", "case", "method", "quantity", "value"))
        rows = "".join(
            f"<tr><td>{name}</td><td>{e.measure}</td><td>{e.case}</td><td>{e.method}</td><td>{e.quantity}</td>"
            f"<td>{e.value:.4g} ({e.low:.4g} to {e.high:.4g})</td></tr>"
            for name, estimates in self.estimates.items()
            for e in estimates
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def faithfulness(
    embedder: Embedder,
    images: ImageSet,
    *,
    matcher: Matcher | None = None,
    pairs: int = 100,
    measures: Measures | None = None,
    sanity: bool = True,
    unfinished: Path | None = None,
    progress: ShowProgress = False,
) -> FaithfulnessReport:
    """Measure how faithful the explanations of an embedder are, on pairs of images of one class.

    Args:
        embedder: turns images into regions on a known grid.
        images: labelled, for instance `load_dataset("orl").test`.
        matcher: settings of the method; by default the embedder's own.
        pairs: number of random pairs; fewer if there are fewer queries.
        measures: what is measured, and the seed of everything random; `Measures()` when omitted.
        sanity: measure the same network with random weights as well.
        unfinished: a folder for the values of the pairs that are done, from which an interrupted call with the same
            arguments continues. The files (`unfinished_name`) stay there.
        progress: show progress bars.

    Returns:
        FaithfulnessReport.

    Raises:
        BadImageError: an image cannot be used.
        ValueError: there are no pairs, a setting is out of range, or Grad-CAM is impossible.

    Source: deletion and insertion, Petsiuk et al., BMVC 2018; random weights, Adebayo et al., NeurIPS 2018; changing
    both images together, Baniecki et al., "Explaining Similarity in Vision-Language Encoders with Weighted Banzhaf
    Interactions", NeurIPS 2025 (FIxLIP).

    Example:
        >>> report = faithfulness(load_embedder("mobilenetv2_100", grid=7), images)  # doctest: +SKIP
        >>> report.find("correspondence", "shift", "plan", "mass").value  # doctest: +SKIP
        0.27
    """
    measures = Measures() if measures is None else measures
    matcher = embedder.matcher if matcher is None else matcher
    embedder.check_matcher(matcher)
    chosen = choose_pairs(images, pairs, measures.seed)
    control = randomised(embedder, measures.seed) if sanity else None
    common: dict[str, Any] = {"matcher": matcher, "progress": progress}
    networks = {MODEL: (embedder, control, measures)}
    if control is not None:
        second = randomised(embedder, measures.seed + 1)
        networks[RANDOM] = (control, second, replace(measures, grad_cam=False))  # a baseline, which needs no control
    found = {}
    for name, (network, other, what) in networks.items():
        file = None if unfinished is None else unfinished / unfinished_name(name)
        found[name] = measure_pairs(
            network, images, chosen, measures=what, control=other, unfinished=file, what=name, **common
        )
    return FaithfulnessReport(found, {name: estimates_of(values, measures.seed) for name, values in found.items()})


def unfinished_name(network: str) -> str:
    """Name of the file with what was measured of a network so far."""
    return f"unfinished-{network.replace(' ', '-')}.json"


def estimates_of(found: Measurements, seed: int) -> tuple[Estimate, ...]:
    """All quantities with intervals, and differences from controls, paired.

    The areas of deletion and insertion are compared with those of random orders; every quantity of a ledger for which
    a control was measured ("credit/shifted" is one of "credit") with that of the control.
    """
    values_of = found.values
    estimates = [_estimate(key, values, seed) for key, values in values_of.items()]
    for (measure, case, method, quantity), values in values_of.items():
        has_own = (measure, case, f"{method}/random", quantity) in values_of
        compared = method != "random" and "/" not in method and not has_own
        if measure in ("deletion", "insertion") and quantity == "area" and compared:
            random = values_of[measure, case, "random", quantity]
            estimates.append(_estimate((measure, case, method, "area_less_random"), values - random, seed))
    for (measure, case, method, quantity), values in values_of.items():
        ledger, _, control = method.partition("/")
        if control:
            key = (measure, case, ledger, f"{quantity}_less_{control}")
            estimates.append(_estimate(key, values_of[measure, case, ledger, quantity] - values, seed))
    return tuple(estimates)


def _estimate(key: Key, values: Floats, seed: int) -> Estimate:
    if key[0] == "additivity":
        largest = float(values.max())
        return Estimate(*key, largest, largest, largest, len(values))
    low, high = interval(bootstrap_means(values[:, None], RESAMPLES, seed)[:, 0])
    return Estimate(*key, float(values.mean()), low, high, len(values))
