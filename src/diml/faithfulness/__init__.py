"""How far explanations can be trusted, measured on pairs of a data set.

Read in this order: `additivity`, `deletion` (compared with `gradcam` and `controls`), `interaction` (regions of both
images together; `ledgers` says what a ledger claims about a pair), `correspondence` (with `warps`, and `parts` for
birds) and `stability`, one measure each; `measures` applies them all to chosen `pairs`; `report` summarises the results
with intervals; `tables` and `plots` display them. `randomised` is the control: a network with random weights, whose
explanations should fail.
"""

from diml.faithfulness.measures import Measures
from diml.faithfulness.report import FaithfulnessReport, faithfulness

__all__ = ["FaithfulnessReport", "Measures", "faithfulness"]
