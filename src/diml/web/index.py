"""An index of `diml index build` as a gallery, searched in place.

An image of the index is served only while its file has the content that was indexed, so that a manipulated index
cannot make the server reveal other files.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diml.data.images import read_file
from diml.data.listing import nfc
from diml.matching import Matcher, Regions
from diml.search.filters import And, ColumnComparison, ColumnMembership, ColumnPattern, Or, Where, parse_where
from diml.search.sources import OWN_COLUMNS, image_file
from diml.search.store import decode_regions
from diml.web.facets import Facet, facets_of
from diml.web.gallery import MOST_WORDS, GalleryAnswer, GalleryHit, GalleryItem, GalleryState, WhereError

#: Lists of ids for pages of the gallery that are kept, and their bytes together.
_LISTINGS, _LISTED_BYTES = 8, 64 * 2**20
#: How long such a list and counted values are used at most, for changes by others that Milvus does not tell of.
_LISTED_SECONDS, _COUNTED_SECONDS = 30.0, 600.0

if TYPE_CHECKING:
    from diml.search import Searcher
    from diml.search.store import Rows, Value


class IndexGallery:
    """The images of an index.

    Args:
        searcher: of the index; to be closed by the caller. Its matcher is that of the gallery.
        name: name of the index on the page.

    Raises:
        ValueError: the index is empty, or has pooled vectors only, so that there is nothing to explain.
    """

    def __init__(self, searcher: Searcher, name: str) -> None:
        if searcher.store.config.storage == "none":
            raise ValueError(
                f"index {name}: need regions to explain hits, got pooled vectors only; build one with --storage float16"
            )
        if not searcher.store.count():
            raise ValueError(f"index {name}: need at least one image in it, got none; add some with diml index build")
        self._searcher, self._name = searcher, name
        self._lock = threading.Lock()
        self._listed: dict[tuple[str, str | None, str], tuple[NDArray[np.bytes_], float]] = {}  # ids, and until when
        self._counting = threading.Lock()
        self._facets: tuple[Facet, ...] = ()
        self._counted_at: tuple[str, float] = ("", -math.inf)  # version of the index, and until when
        self.matcher, self.rerank_at = searcher.matcher, searcher.rerank_at

    def state(self) -> GalleryState:
        """Return the number of images; an index is always ready."""
        count = self._searcher.store.count()
        return GalleryState(kind="index", name=self._name, phase="ready", done=count, total=count, count=count)

    def items(self, offset: int, count: int, *, text: str = "", where: str | None = None) -> Sequence[GalleryItem]:
        """Return some of the images, in the order of the store."""
        ids = self._ids(text, where)[min(offset, sys.maxsize - count) :][:count].tolist()
        found = self._searcher.store.listed([key.decode() for key in ids])
        return [_item(key, metadata) for key, metadata in zip(found.ids, found.metadata, strict=True)]

    def count(self, *, text: str = "", where: str | None = None) -> int:
        """Return how many there are."""
        return len(self._ids(text, where))

    def item(self, key: str) -> GalleryItem:
        """Return the image of an id."""
        return _item(key, self._metadata(key))

    def named(self, name: str) -> GalleryItem:
        """Return the image of a path, as it is in the index; the first, where several sources have it."""
        found = self._with("path", name)
        if not found:
            raise KeyError(name)
        return found[0]

    def copies(self, content: bytes) -> Sequence[GalleryItem]:
        """Return the images whose file has this content, by its sha256."""
        return self._with("content", hashlib.sha256(content).hexdigest())

    def _with(self, column: str, value: str) -> list[GalleryItem]:
        """The images of one value in a column of names."""
        if column not in self._searcher.store.config.columns:
            return []
        parts = self._searcher.store.listing(ColumnComparison(column, "=", value))
        return [_item(key, entry) for part in parts for key, entry in zip(part.ids, part.metadata, strict=True)]

    def facets(self) -> tuple[Facet, ...]:
        """Return the values of the columns; counted again when the index has changed."""
        store = self._searcher.store
        version, now = store.version(), time.monotonic()
        with self._counting:  # one request counts, the others wait for it
            if version != self._counted_at[0] or now > self._counted_at[1]:
                columns = {name: kind for name, kind in store.config.columns.items() if name not in OWN_COLUMNS}
                self._facets = facets_of(store.listing(columns=list(columns)), columns)
                self._counted_at = version, now + _COUNTED_SECONDS
            return self._facets

    def search(
        self,
        query: Regions,
        *,
        hits: int,
        rerank_at: int,
        exclude: Collection[str] = (),
        matcher: Matcher | None = None,
        where: str | None = None,
    ) -> GalleryAnswer:
        """Return the most similar images: the nearest by pooled vectors, the best K of them by score."""
        condition = self._condition(where)
        found = self._searcher.search(
            query.to("cpu"), hits, rerank_at=rerank_at, where=where, matcher=matcher, exclude=exclude
        )
        shown = tuple(
            GalleryHit(_item(hit.id, hit.metadata), rank, hit.pooled_rank, hit.pooled, hit.structural, hit.score)
            for rank, hit in enumerate(found.hits, 1)
        )
        return GalleryAnswer(shown, found.scores, max(0, self._searcher.store.count(condition) - len(exclude)))

    def _condition(self, where: str | None) -> Where | None:
        """The condition as the store takes it; WhereError where it is invalid."""
        if where is None:
            return None
        try:
            return parse_where(where, self._searcher.store.config.columns)
        except ValueError as error:
            raise WhereError(str(error)) from error

    def regions(self, keys: Sequence[str]) -> Regions:
        """Return the stored regions of some images, in the given order, in float32."""
        return decode_regions(self._rows(keys), self._searcher.store.config)[torch.arange(len(keys))].to(torch.float32)

    def image(self, key: str) -> bytes:
        """Return the file of an image, if it is still the one that was indexed."""
        metadata = self._metadata(key)
        if not {"source", "path", "content"} <= metadata.keys():
            raise FileNotFoundError(f"image {key}: this index does not record where its images are")
        content = read_file(image_file(metadata))
        if hashlib.sha256(content).hexdigest() != metadata["content"]:
            raise FileNotFoundError(
                f"image {_item(key, metadata).name}: its file has changed since it was indexed; run diml index build"
            )
        return content

    def stop(self) -> None:
        """Do nothing: there is no background work."""

    def _ids(self, text: str, where: str | None) -> NDArray[np.bytes_]:
        """Ids in the order of the store; read again when it has changed, not for every page of a large index."""
        asked = (text, where, self._searcher.store.version())
        condition = self._looked_up(text, self._condition(where))
        with self._lock:
            found = self._listed.pop(asked, None)
            if found is None or time.monotonic() > found[1]:
                ids = np.array(self._listed_ids(condition), dtype=np.bytes_)
                found = ids, time.monotonic() + _LISTED_SECONDS
            self._listed[asked] = found
            while len(self._listed) > 1 and sum(ids.nbytes for ids, _ in self._listed.values()) > _LISTED_BYTES:
                self._listed.pop(next(iter(self._listed)))
            while len(self._listed) > _LISTINGS:
                self._listed.pop(next(iter(self._listed)))
            return found[0]

    def _listed_ids(self, condition: Where | None) -> list[bytes]:
        listing = self._searcher.store.listing(condition, columns=())
        try:
            return [key.encode() for part in listing for key in part.ids]
        except ValueError as error:  # Milvus: more texts match than fit into a request
            raise WhereError(str(error)) from error

    def _looked_up(self, text: str, where: Where | None) -> Where | None:
        """A condition, and that each word of a text is in the path or one of the texts."""
        columns = self._searcher.store.config.columns
        texts = [name for name, kind in columns.items() if kind == "text" and name not in ("source", "content")]
        for word in dict.fromkeys(text.split()[:MOST_WORDS]):
            found = _contains(texts, word)
            where = found if where is None else And(where, found)
        return where

    def _metadata(self, key: str) -> Mapping[str, Value]:
        """The metadata of an id, without its vectors; KeyError for an unknown one."""
        found = self._searcher.store.listed([key])
        if not found.ids:
            raise KeyError(key)
        return found.metadata[0]

    def _rows(self, keys: Sequence[str]) -> Rows:
        """The stored rows of some ids, in the given order; KeyError for an unknown id."""
        rows = self._searcher.store.regions(keys)
        if rows.ids != tuple(keys):
            raise KeyError(next(key for key in keys if key not in rows.ids))
        return rows


def _item(key: str, metadata: Mapping[str, Value]) -> GalleryItem:
    other = {name: value for name, value in metadata.items() if name not in ("source", "path", "content", "label")}
    label = metadata.get("label")
    return GalleryItem(key, str(metadata.get("path", key)), "" if label is None else str(label), other)


def _contains(columns: Sequence[str], word: str) -> Where:
    """That a word is in one of some columns, in any letter case."""
    pattern = "%" + re.sub(r"[\\%_]", r"\\\g<0>", nfc(word)) + "%"
    tests: list[Where] = [ColumnPattern(name, pattern, any_case=True) for name in columns]
    while len(tests) > 1:  # halved in turn, so that the condition is not deep
        pairs = zip(tests[::2], tests[1::2], strict=False)
        tests = [*(Or(left, right) for left, right in pairs), *tests[len(tests) & ~1 :]]
    return tests[0] if tests else ColumnMembership("id", ())
