"""Search: an index of images on disk or in a database, searched in two stages, with an explanation of every hit.

Read in this order: `names`, `filters`, `store`, `backends`, `cells`, `sources`, `columns`, `index`, `index_model`,
`whitening`, `tuned`, `removals`, `build`, `copying`, `searcher`, `labelled`, `pairs`.
"""

from diml.search.build import build_index
from diml.search.index import open_store
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
