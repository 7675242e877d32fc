"""The method: images as regions, compared by optimal transport. Needs torch only.

Read in this order: `regions`, `marginals`, `sinkhorn`, `similarity`, `scoring`, `ledger`, `contrast`.
"""

from diml.matching.contrast import Contrast
from diml.matching.ledger import Flow, Ledger
from diml.matching.regions import QuantizedRegions, Regions
from diml.matching.scoring import ConvergenceWarning, Score, rerank, score_pairs
from diml.matching.similarity import Marginals, Match, MatchSettings, match
from diml.matching.transport import TransportPlan, sinkhorn

__all__ = ["Contrast", "ConvergenceWarning", "Flow", "Ledger", "Marginals", "Match", "MatchSettings"]
__all__ += ["QuantizedRegions", "Regions", "Score", "TransportPlan", "match", "rerank", "score_pairs", "sinkhorn"]
