"""Additivity: the entries of the ledger sum to the score that ranks.

Legend: B pairs.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from diml.matching import Match, MatchSettings, Regions, rerank

Floats = NDArray[np.float64]


def additivity_errors(match: Match) -> Floats:
    """(B,) |sum of all contributions, in float64 - structural score| of each pair."""
    ledgers = (match.ledger(pair) for pair in range(len(match)))
    sums = np.array([float(ledger.contributions.sum()) for ledger in ledgers])
    errors: Floats = np.abs(sums - match.structural.double().cpu().numpy())
    return errors


def ranking_errors(match: Match, query: Regions, gallery: Regions, **settings: Unpack[MatchSettings]) -> Floats:
    """(B,) |sum of all contributions - structural score of `rerank`|, which on the CPU is the compiled kernel's.

    Args:
        match: of row i of `query` with row i of `gallery`, made with the same settings.
        query, gallery: B images each.
        settings: as of `diml.matching.match`.
    """
    candidates = torch.arange(len(query), device=query.pooled.device).unsqueeze(1)
    scores = rerank(query, gallery, candidates, score="structural", **settings).squeeze(1).double().cpu().numpy()
    ledgers = (match.ledger(pair) for pair in range(len(match)))
    errors: Floats = np.abs(np.array([ledger.structural for ledger in ledgers]) - scores)
    return errors
