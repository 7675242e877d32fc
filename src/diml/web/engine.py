"""What the server computes: comparisons, searches, and images as the model saw them.

Legend: H hits, Rq regions of the query.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import quote

from PIL import Image

from diml.data.images import load_image
from diml.explain.hits import lift_of
from diml.explain.html import ImageShelf, pair_numbers
from diml.matching import Matcher, Regions
from diml.models import Embedder
from diml.web.gallery import Gallery, GalleryHit, GalleryNotReadyError
from diml.web.uploads import Upload

Kind = Literal["view", "whole"]

MOST_HITS: Final = 24
_SCALE: Final = 2  # a view has twice the network's resolution: sharp on a large screen
_WHOLE: Final = 1280  # longest side of a whole image, pixels
_CACHED_IMAGES: Final = 400  # small images, about 40 kB each
_ENTRIES: Final = 600_000  # entries of the plans in one answer; browsers do not cope with more


class Engine:
    """An embedder, a matcher, and the gallery to search.

    Args:
        embedder: turns images into regions.
        matcher: how images are compared; that of the gallery when omitted, else that of the embedder.
        gallery: what is searched; None for no search.
        about: further settings reported with answers, besides those of the matcher.

    Example:
        >>> engine = Engine(load_embedder("mobilenetv2_100"))  # doctest: +SKIP
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        matcher: Matcher | None = None,
        gallery: Gallery | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.embedder, self.gallery = embedder, gallery
        if matcher is None:
            matcher = embedder.matcher if gallery is None else gallery.matcher
        self.matcher = matcher
        self.settings = {**(about or {}), **matcher.to_dict()}
        self.image = lru_cache(_CACHED_IMAGES)(self._image)

    def match(self, query: Upload, other: Upload) -> dict[str, Any]:
        """Compare two images; returns an `ExplanationResponse` as plain values."""
        started, shelf = time.perf_counter(), ImageShelf()
        regions = self.embedder.embed([query.image, other.image])
        found = self.matcher.match(regions[0], regions[1])
        places = [shelf.place(self._view(side.image), side.name) for side in (query, other)]
        pair = pair_numbers(found, (query.name, other.name)) | {"images": {"query": places[0], "gallery": places[1]}}
        return {"images": shelf.images, "pairs": [pair], "settings": self.settings, "seconds": _since(started)}

    def search(self, query: Upload | str, *, hits: int, rerank_at: int) -> dict[str, Any]:
        """Search for an uploaded image, or for one of the gallery by its id (which is then excluded from the hits).

        Args:
            query: image or id.
            hits: number of hits to explain.
            rerank_at: K.

        Returns:
            An `ExplanationResponse` as plain values, hits best first.

        Raises:
            KeyError: there is no image of that id.
            GalleryNotReadyError: the gallery cannot be searched yet.
        """
        started = time.perf_counter()
        assert self.gallery is not None
        if isinstance(query, str):
            item, regions = self.gallery.item(query), self.gallery.regions([query])
            first, excluded = self._address(query, item.name), query
        else:
            shelf, excluded = ImageShelf(), ""
            regions = self.embedder.embed([query.image])
            shelf.place(self._view(query.image), query.name)
            first = shelf.images[0]
        found = self.gallery.search(regions, hits=hits, rerank_at=rerank_at, exclude=excluded, matcher=self.matcher)
        pairs = self._pairs(regions, found, first["name"]) if found else []
        images = [first, *(self._address(hit.item.id, hit.item.name) for hit in found)]
        settings = {**self.settings, "rerank_at": rerank_at}
        return {"images": images, "pairs": pairs, "settings": settings, "seconds": _since(started)}

    def require_ready(self) -> None:
        """Raise GalleryNotReadyError unless the gallery can be searched."""
        assert self.gallery is not None
        state = self.gallery.state()
        if state.phase != "ready":
            raise GalleryNotReadyError(state)

    def most_hits(self) -> int:
        """Return the maximum number of hits of one answer, given the size of their plans."""
        regions = (self.embedder.grid or 14) ** 2
        return max(1, min(MOST_HITS, _ENTRIES // regions**2))

    def _pairs(self, query: Regions, found: Sequence[GalleryHit], name: str) -> list[dict[str, Any]]:
        """The hits in the form of the viewer."""
        assert self.gallery is not None
        matched = self.matcher.match(query, self.gallery.regions([hit.item.id for hit in found]))
        lift = lift_of([matched.ledger(row) for row in range(len(matched))])
        pairs = []
        for row, hit in enumerate(found):
            facts = {
                "id": hit.item.id,
                "label": hit.item.label,
                "metadata": dict(hit.item.metadata),
                "rank": hit.rank,
                "pooled_rank": hit.pooled_rank,
                "reranked": hit.structural is not None,
                "lift": lift[row].tolist(),
                "correct": None,
                "note": hit.item.label.rpartition("/")[2],
            }
            places = {"images": {"query": 0, "gallery": row + 1}, "hit": facts}
            pairs.append(pair_numbers(matched, (name, hit.item.name), row) | places)
        return pairs

    def _address(self, key: str, name: str) -> dict[str, Any]:
        side = self.embedder.preprocess.size * _SCALE
        return {"src": f"/api/gallery/image?id={quote(key, safe='')}", "name": name, "width": side, "height": side}

    def _view(self, image: Image.Image) -> Image.Image:
        return self.embedder.preprocess.view(image, _SCALE)

    def _image(self, key: str, kind: Kind) -> bytes:
        """A gallery image re-encoded as JPEG, without the metadata (location, names) of its file."""
        assert self.gallery is not None
        image = load_image(self.gallery.image(key), name=self.gallery.item(key).name)
        if kind == "view":
            image = self._view(image)
        else:
            image.thumbnail((_WHOLE, _WHOLE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return stream.getvalue()


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)
