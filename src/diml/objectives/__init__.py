"""Training objectives: structural matching as a distance of pytorch-metric-learning (PML), and objectives by name.

Read in this order: `distances` (structural matching as a distance), `losses` and `miners` (what PML lacks), `objective`
(loss and miner as one module, built from PML's objects or by name).
"""

from diml.extras import require

require("train", "objectives")

from diml.objectives.distances import StructuralDistance, StructuralSimilarity, pack_regions  # noqa: E402
from diml.objectives.knn import StructuralKNN  # noqa: E402
from diml.objectives.objective import Objective, build_objective, objective_names  # noqa: E402

__all__ = [
    "Objective",
    "StructuralDistance",
    "StructuralKNN",
    "StructuralSimilarity",
    "build_objective",
    "objective_names",
    "pack_regions",
]
