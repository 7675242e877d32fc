"""An index on disk as a gallery: what `diml index build` made, searched where it lies.

A image of the index is served only while its file still has the content that was indexed: what stands in the index
can then never make the server hand out another file.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

import torch

from diml.matching import MatchSettings, Regions
from diml.search.coding import decode_regions
from diml.search.sources import image_file
from diml.web.gallery import GalleryHit, GalleryItem, GalleryState

if TYPE_CHECKING:
    from diml.search.searcher import Hit, Searcher
    from diml.search.store import Rows, Value


class IndexGallery:
    """The images of an index.

    Args:
        searcher: of the index; stays the caller's, who closes it.
        name: what to call the index on the page.

    Raises:
        ValueError: the index has pooled vectors only, and there would be nothing to explain; or it is empty.
    """

    def __init__(self, searcher: Searcher, name: str) -> None:
        if searcher.store.config.storage == "none":
            raise ValueError(
                f"index {name}: need regions to explain hits, got pooled vectors only; build one with --storage float16"
            )
        if not searcher.store.count():
            raise ValueError(f"index {name}: need at least one image in it, got none; diml index build adds some")
        self._searcher, self._name = searcher, name

    def state(self) -> GalleryState:
        """Always ready."""
        count = self._searcher.store.count()
        return GalleryState(kind="index", name=self._name, phase="ready", done=count, total=count)

    def items(self, offset: int, count: int) -> Sequence[GalleryItem]:
        """Some of the images, in the order of the store."""
        rows = (row for part in self._searcher.store.listing() for row in zip(part.ids, part.metadata, strict=True))
        return [_item(key, metadata) for key, metadata in itertools.islice(rows, offset, offset + count)]

    def item(self, key: str) -> GalleryItem:
        """The image of an id."""
        return _item(key, self._rows([key]).metadata[0])

    def search(
        self, query: Regions, *, hits: int, rerank: int, exclude: str = "", **matching: Unpack[MatchSettings]
    ) -> Sequence[GalleryHit]:
        """The images most alike: the nearest by the index of pooled vectors, the best K of them by score."""
        more = bool(exclude)  # one that is asked for in vain is found, too
        found = self._searcher.search_regions(
            query.to("cpu"), hits + more, rerank=rerank + more if rerank else 0, **matching
        )
        itself = [hit.pooled_rank for hit in found.hits if hit.id == exclude]
        others = [hit for hit in found.hits if hit.id != exclude][:hits]
        return [_hit(hit, rank, sum(place < hit.pooled_rank for place in itself)) for rank, hit in enumerate(others, 1)]

    def regions(self, keys: Sequence[str]) -> Regions:
        """Stored regions of some images, in the order asked for, in float32."""
        return decode_regions(self._rows(keys), self._searcher.store.config)[torch.arange(len(keys))].to(torch.float32)

    def image(self, key: str) -> bytes:
        """The file of a image, where it is still the one that was indexed."""
        metadata = self._rows([key]).metadata[0]
        if not {"source", "path", "content"} <= metadata.keys():
            raise FileNotFoundError(f"image {key}: this index does not say where its images lie")
        content = image_file(metadata).read_bytes()
        if hashlib.sha256(content).hexdigest() != metadata["content"]:
            raise FileNotFoundError(
                f"image {_item(key, metadata).name}: its file is another one by now; diml index build takes it in"
            )
        return content

    def stop(self) -> None:
        """Nothing runs in the background."""

    def _rows(self, keys: Sequence[str]) -> Rows:
        """The stored rows of some ids, in the order asked for; KeyError where one is not there."""
        rows = self._searcher.store.regions(keys)
        if rows.ids != tuple(keys):
            raise KeyError(next(key for key in keys if key not in rows.ids))
        return rows


def _item(key: str, metadata: Mapping[str, Value]) -> GalleryItem:
    told = {name: value for name, value in metadata.items() if name not in ("source", "path", "content", "label")}
    label = metadata.get("label")
    return GalleryItem(key, str(metadata.get("path", key)), "" if label is None else str(label), told)


def _hit(hit: Hit, rank: int, before: int) -> GalleryHit:
    """`before`: whether the image that is left out stood above this one by pooled cosine."""
    return GalleryHit(_item(hit.id, hit.metadata), rank, hit.pooled_rank - before, hit.pooled, hit.structural)
