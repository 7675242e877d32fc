"""Images to regions: a backbone, a head and a grid make an `Embedder`.

Read in this order: `grids`, `heads`, `backbones`, `embedder`, `loading`.
"""

from diml.models.backbones import Backbone, Features
from diml.models.cache import embed_cached
from diml.models.config import EmbedderConfig
from diml.models.embedder import Embedded, Embedder
from diml.models.grids import resize_grid
from diml.models.loading import load_embedder
from diml.models.pretrained import OFFLINE, WeightsError
from diml.models.zoo import build_backbone, default_preprocess

__all__ = [
    "OFFLINE",
    "Backbone",
    "Embedded",
    "Embedder",
    "EmbedderConfig",
    "Features",
    "WeightsError",
    "build_backbone",
    "default_preprocess",
    "embed_cached",
    "load_embedder",
    "resize_grid",
]
