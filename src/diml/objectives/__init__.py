"""What training minimises: losses and miners of pytorch-metric-learning, and DIML as a distance for them.

Read in this order: `distances` (structural matching as a distance), `losses` and `miners` (what the library lacks),
`recipes` (how each objective is made), `registry` (what goes with what), `build`.
"""

from diml.objectives.build import Objective, build_objective
from diml.objectives.distances import StructuralDistance, StructuralSimilarity, pack_regions, unpack_regions
from diml.objectives.registry import allowed_miners, miner_names, objective_names, option_types

__all__ = ["Objective", "StructuralDistance", "StructuralSimilarity", "allowed_miners", "build_objective"]
__all__ += ["miner_names", "objective_names", "option_types", "pack_regions", "unpack_regions"]
