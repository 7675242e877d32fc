"""The method: images as regions, compared by optimal transport. Needs torch only.

Read in this order: `regions`, `marginals`, `sinkhorn`, `similarity`, `ledger`.
"""

from diml.matching.ledger import Flow, Ledger
from diml.matching.regions import QuantizedRegions, Regions
from diml.matching.similarity import ConvergenceWarning, Marginals, Match, MatchSettings, Score, match, rerank
from diml.matching.sinkhorn import TransportPlan, sinkhorn

__all__ = ["ConvergenceWarning", "Flow", "Ledger", "Marginals", "Match", "MatchSettings", "QuantizedRegions"]
__all__ += ["Regions", "Score", "TransportPlan", "match", "rerank", "sinkhorn"]
