"""An index of `diml index build` as a gallery, searched in place.

An image of the index is served only while its file has the content that was indexed, so that a manipulated index
cannot make the server reveal other files.
"""

from __future__ import annotations

import hashlib
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diml.data.images import read_file
from diml.matching import Matcher, Regions
from diml.search.filters import Where, parse_where
from diml.search.sources import image_file
from diml.search.store import decode_regions
from diml.web.gallery import GalleryAnswer, GalleryHit, GalleryItem, GalleryState, WhereError

#: How long the list of ids for pages of the gallery is used; images added to the index appear after it.
_LISTED_SECONDS = 30.0

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
        self._listed: NDArray[np.bytes_] = np.array([], dtype=np.bytes_)
        self._listed_at = -math.inf
        self.matcher = searcher.matcher

    def state(self) -> GalleryState:
        """Return the number of images; an index is always ready."""
        count = self._searcher.store.count()
        return GalleryState(kind="index", name=self._name, phase="ready", done=count, total=count, count=count)

    def items(self, offset: int, count: int) -> Sequence[GalleryItem]:
        """Return some of the images, in the order of the store."""
        ids = self._ids()[min(offset, sys.maxsize - count) :][:count].tolist()
        found = self._searcher.store.listed([key.decode() for key in ids])
        return [_item(key, metadata) for key, metadata in zip(found.ids, found.metadata, strict=True)]

    def item(self, key: str) -> GalleryItem:
        """Return the image of an id."""
        return _item(key, self._metadata(key))

    def search(
        self,
        query: Regions,
        *,
        hits: int,
        rerank_at: int,
        exclude: str = "",
        matcher: Matcher | None = None,
        where: str | None = None,
    ) -> GalleryAnswer:
        """Return the most similar images: the nearest by pooled vectors, the best K of them by score."""
        condition = self._condition(where)
        found = self._searcher.search(
            query.to("cpu"), hits, rerank_at=rerank_at, where=where, matcher=matcher, exclude=exclude or None
        )
        shown = tuple(
            GalleryHit(_item(hit.id, hit.metadata), rank, hit.pooled_rank, hit.pooled, hit.structural, hit.score)
            for rank, hit in enumerate(found.hits, 1)
        )
        return GalleryAnswer(shown, found.scores, max(0, self._searcher.store.count(condition) - bool(exclude)))

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

    def _ids(self) -> NDArray[np.bytes_]:
        """All ids in the order of the store; read again after some seconds, not for every page of a large index."""
        with self._lock:
            if time.monotonic() - self._listed_at > _LISTED_SECONDS:
                listing = self._searcher.store.listing(columns=())
                self._listed = np.array([key.encode() for part in listing for key in part.ids], dtype=np.bytes_)
                self._listed_at = time.monotonic()
            return self._listed

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
