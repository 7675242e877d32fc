"""The method: images as regions, compared by optimal transport. Needs torch only.

Read in this order: `regions`, `weights`, `transport` (and `exact`), `maxsim`, `matcher`, `learned` (and `readings`),
`retrieval`, `ledger`; `pairs` lists unordered pairs, `planned` is the differentiable form for training, `native` binds
the compiled kernel.
"""

from diml.matching.learned import LearnedMatcher
from diml.matching.ledger import Contrast, Ledger
from diml.matching.matcher import ConvergenceWarning, Match, Matcher, match, rerank
from diml.matching.regions import QuantizedRegions, Regions
from diml.matching.retrieval import Ranking, nearest
from diml.matching.transport import TransportPlan, sinkhorn

__all__ = [
    "Contrast",
    "ConvergenceWarning",
    "LearnedMatcher",
    "Ledger",
    "Match",
    "Matcher",
    "QuantizedRegions",
    "Ranking",
    "Regions",
    "TransportPlan",
    "match",
    "nearest",
    "rerank",
    "sinkhorn",
]
