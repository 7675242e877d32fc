"""Images to regions: a backbone, a head and a grid make an `Embedder`.

Read in this order: `grids`, `heads`, `backbones` (`modules` for your own networks), `decomposition`,
`embedder`, `loading`.
"""

from diml.models.backbones import Backbone
from diml.models.config import EmbedderConfig
from diml.models.embedder import Embedder
from diml.models.loading import load_embedder

__all__ = [
    "Backbone",
    "Embedder",
    "EmbedderConfig",
    "load_embedder",
]
