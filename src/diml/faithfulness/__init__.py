"""How far explanations can be trusted, measured on pairs of a data set.

Read in this order: `additivity`, `deletion` (compared with `gradcam` and `controls`), `interaction` (regions of both
images together; `ledgers` says what a ledger claims about a pair, `removal` does all of this for some pairs),
`correspondence` (with `warps`, and `keypoints` for birds), `part_measures`, `unmatched` (with `occlusion`) and
`stability`; `settings` chooses among them, `measures` applies them to chosen `pairs`; `report` summarises the results
with intervals; `tables` and `plots` display them. `randomised` is the control: a network with random weights, whose
explanations should fail.
"""

from diml.faithfulness.report import FaithfulnessReport, faithfulness
from diml.faithfulness.settings import Measures

__all__ = ["FaithfulnessReport", "Measures", "faithfulness"]
