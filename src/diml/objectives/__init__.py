"""Training objectives: structural matching as a distance of pytorch-metric-learning (PML), and objectives by name.

Read in this order: `distances` (structural matching as a distance), `losses` and `miners` (what PML lacks), `objective`
(loss and miner as one module, built from PML's objects or by name).
"""

from diml.objectives.distances import StructuralDistance, StructuralSimilarity, pack_regions, unpack_regions
from diml.objectives.objective import Objective, build_objective, objective_names

__all__ = [
    "Objective",
    "StructuralDistance",
    "StructuralSimilarity",
    "build_objective",
    "objective_names",
    "pack_regions",
    "unpack_regions",
]
