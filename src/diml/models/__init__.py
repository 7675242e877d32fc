"""Images to regions: a backbone, a head and a grid make an `Embedder`.

Read in this order: `grids`, `heads`, `backbones` (`modules` for your own networks), `decomposition`,
`embedder`, `loading`; `region_files` for what other programs read.
"""

from diml.models.backbones import Backbone
from diml.models.config import EmbedderConfig
from diml.models.embedder import Embedder
from diml.models.loading import load_embedder
from diml.models.region_files import RegionTable, load_regions, save_regions

__all__ = [
    "Backbone",
    "Embedder",
    "EmbedderConfig",
    "RegionTable",
    "load_embedder",
    "load_regions",
    "save_regions",
]
