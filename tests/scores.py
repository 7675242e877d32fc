"""Scores and evaluations with settings of the matcher as keywords, for short tests."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from torch import Tensor

from diml.evaluation import Report, evaluate_regions
from diml.matching import Matcher, QuantizedRegions, Regions

SETTINGS: Final = {field.name for field in dataclasses.fields(Matcher)}

#: Structural weights by which only one of the two parts, or both as in the paper, rank.
WEIGHT_OF: Final = {"both": 1.0, "structural": float("inf"), "pooled": 0.0}


def score(query: Regions, gallery: Regions | QuantizedRegions, candidates: Tensor, **settings: Any) -> Tensor:
    """(Q, K): `Matcher(**settings).score(query, gallery, candidates)`."""
    return Matcher(**settings).score(query, gallery, candidates)


def evaluated(regions: Regions | QuantizedRegions, labels: Any, **options: Any) -> Report:
    """`evaluate_regions`, settings of the matcher being taken from the options."""
    matcher = Matcher(**{name: options.pop(name) for name in SETTINGS & set(options)})
    return evaluate_regions(regions, labels, matcher=matcher, **options)
