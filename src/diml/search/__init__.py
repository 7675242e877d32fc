"""From a folder of images to an index, and from a image to its hits, each with the reason.

Read in this order: `where`, `store`, `coding`, `lance_store`, `milvus_place`, `milvus_rows`, `milvus_store`,
`opening`, `sources`, `indexing`, `searcher`, `pairs`.
"""

from diml.distributed import Share, join_share
from diml.search.checking import Check, check_index
from diml.search.filters import Where, parse_where
from diml.search.index import BuildReport, build_index
from diml.search.opening import create_store, open_store
from diml.search.pairs import Pair, alike_pairs
from diml.search.remembered import load_remembered
from diml.search.searcher import Found, Hit, Searcher
from diml.search.sources import Listing, image_file, list_source
from diml.search.store import IndexConfig, IndexNotFoundError, Listed, Neighbours, Rows, Store, StoreInfo

__all__ = [
    "BuildReport",
    "Check",
    "Found",
    "Hit",
    "IndexConfig",
    "IndexNotFoundError",
    "Listed",
    "Listing",
    "Neighbours",
    "Pair",
    "Rows",
    "Searcher",
    "Share",
    "Store",
    "StoreInfo",
    "Where",
    "alike_pairs",
    "build_index",
    "check_index",
    "create_store",
    "image_file",
    "join_share",
    "list_source",
    "load_remembered",
    "open_store",
    "parse_where",
]
