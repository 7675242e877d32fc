"""Additivity: the entries of the ledger sum to the structural score that ranks.

Legend: B pairs.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray

from diml.matching import Match, Regions

Floats = NDArray[np.float64]


def additivity_errors(match: Match) -> Floats:
    """(B,) |sum of all contributions, in float64 - structural score| of each pair."""
    ledgers = (match.ledger(pair) for pair in range(len(match)))
    sums = np.array([float(ledger.contributions.sum()) for ledger in ledgers])
    errors: Floats = np.abs(sums - match.structural.double().cpu().numpy())
    return errors


def ranking_errors(match: Match, query: Regions, gallery: Regions) -> Floats:
    """(B,) |sum of all contributions - structural score used for ranking|, by the compiled kernel on the CPU.

    Args:
        match: row i of `query` with row i of `gallery`; its matcher ranks.
        query, gallery: B images each.
    """
    candidates = torch.arange(len(query), device=query.pooled.device).unsqueeze(1)
    structural_only = dataclasses.replace(match.matcher, structural_weight=math.inf)
    scores = structural_only.score(query, gallery, candidates).squeeze(1).double().cpu().numpy()
    ledgers = (match.ledger(pair) for pair in range(len(match)))
    errors: Floats = np.abs(np.array([ledger.structural for ledger in ledgers]) - scores)
    return errors
