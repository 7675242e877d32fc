"""From a folder of pictures to an index, and from a picture to its hits, each with the reason.

Read in this order: `where`, `store`, `coding`, `lance_store`, `opening`.
"""

from diml.search.opening import create_store, open_store
from diml.search.store import (
    IndexConfig,
    IndexNotFoundError,
    Listed,
    Neighbours,
    Rows,
    Store,
    StoreInfo,
)
from diml.search.where import Where, parse_where

__all__ = [
    "IndexConfig",
    "IndexNotFoundError",
    "Listed",
    "Neighbours",
    "Rows",
    "Store",
    "StoreInfo",
    "Where",
    "create_store",
    "open_store",
    "parse_where",
]
