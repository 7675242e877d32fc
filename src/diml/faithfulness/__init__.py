"""How far an explanation can be trusted, measured on pairs of a data set.

Read in this order: `additivity`, `deletion`, `correspondence` (with `warps`, and `parts` for birds), `stability`: one
measure each; `study` takes them all on chosen `pairs`, `findings` sums up with intervals, `tables` and `plots` show it.
`randomised` is the check that an untrained network must fail, `gradcam` what the orders of deletion are held against.
"""

from diml.faithfulness.findings import Finding, Judgement, faithfulness
from diml.faithfulness.pairs import choose_pairs
from diml.faithfulness.plots import write_plots
from diml.faithfulness.randomised import randomised
from diml.faithfulness.study import Measures, Study, run_study
from diml.faithfulness.tables import tables
from diml.faithfulness.warps import WARPS, Warp, true_cells

__all__ = [
    "WARPS",
    "Finding",
    "Judgement",
    "Measures",
    "Study",
    "Warp",
    "choose_pairs",
    "faithfulness",
    "randomised",
    "run_study",
    "tables",
    "true_cells",
    "write_plots",
]
