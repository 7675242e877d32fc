"""Search: an index of images on disk or in a database, searched in two stages, with an explanation of every hit.

Read in this order: `filters`, `store`, `backends`, `sources`, `index`, `searcher`, `labelled`, `pairs`.
"""

from diml.search.index import build_index, open_store
from diml.search.pairs import alike_pairs
from diml.search.searcher import Searcher, SearchHit, SearchResult

__all__ = [
    "SearchHit",
    "SearchResult",
    "Searcher",
    "alike_pairs",
    "build_index",
    "open_store",
]
