"""What the server computes: two images compared, one image searched for, images as the model saw them.

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
from diml.matching import MatchSettings, Regions, match
from diml.models import Embedder
from diml.web.gallery import Gallery, GalleryHit, GalleryNotReadyError
from diml.web.uploads import Upload

Kind = Literal["view", "whole"]

MOST_HITS: Final = 24
_SCALE: Final = 2  # a view has twice the network's resolution: sharp on a large screen
_WHOLE: Final = 1280  # longest side of a whole image, pixels
_REMEMBERED: Final = 400  # small images, about 40 kB each
_ENTRIES: Final = 600_000  # of the plans of one answer; more choke a browser


class Engine:
    """An embedder and how it compares.

    Args:
        embedder: turns images into regions.
        matching: marginals, epsilon, tolerance, max_iterations of `diml.matching.match`.
        gallery: to search in; None where there is none.
        about: settings that answers tell, besides those of `matching`.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        matching: MatchSettings | None = None,
        gallery: Gallery | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.embedder, self.gallery = embedder, gallery
        self.matching: MatchSettings = matching or {}
        self.settings = {**(about or {}), **self.matching}
        self.image = lru_cache(_REMEMBERED)(self._image)

    def match(self, query: Upload, other: Upload) -> dict[str, Any]:
        """Compare two images: an `Explanation` as plain values."""
        began, shelf = time.perf_counter(), ImageShelf()
        regions = self.embedder.embed([query.image, other.image])
        found = match(regions[0], regions[1], **self.matching)
        places = [shelf.place(self._view(side.image), side.name) for side in (query, other)]
        pair = pair_numbers(found, (query.name, other.name)) | {"images": {"query": places[0], "gallery": places[1]}}
        return {"images": shelf.images, "pairs": [pair], "settings": self.settings, "seconds": _since(began)}

    def search(self, query: Upload | str, *, hits: int, rerank: int) -> dict[str, Any]:
        """Search for a image that came, or for one of the gallery by its id (which is then no hit of itself).

        Args:
            query: image or id.
            hits: how many to explain.
            rerank: K.

        Returns:
            An `Explanation` as plain values, with the hits best first.

        Raises:
            KeyError: there is no image of that id.
            GalleryNotReadyError: the gallery cannot be searched yet.
        """
        began = time.perf_counter()
        assert self.gallery is not None
        if isinstance(query, str):
            item, regions = self.gallery.item(query), self.gallery.regions([query])
            first, excluded = self._address(query, item.name), query
        else:
            shelf, excluded = ImageShelf(), ""
            regions = self.embedder.embed([query.image])
            shelf.place(self._view(query.image), query.name)
            first = shelf.images[0]
        found = self.gallery.search(regions, hits=hits, rerank=rerank, exclude=excluded, **self.matching)
        pairs = self._pairs(regions, found, first["name"]) if found else []
        images = [first, *(self._address(hit.item.id, hit.item.name) for hit in found)]
        about = {**self.settings, "rerank": rerank}
        return {"images": images, "pairs": pairs, "settings": about, "seconds": _since(began)}

    def check_gallery(self) -> None:
        """GalleryNotReadyError unless the gallery can be searched."""
        assert self.gallery is not None
        state = self.gallery.state()
        if state.phase != "ready":
            raise GalleryNotReadyError(state)

    def most_hits(self) -> int:
        """How many hits one answer may have, by the size of their plans."""
        regions = (self.embedder.grid or 14) ** 2
        return max(1, min(MOST_HITS, _ENTRIES // regions**2))

    def _pairs(self, query: Regions, found: Sequence[GalleryHit], name: str) -> list[dict[str, Any]]:
        """The hits as the viewer takes them."""
        assert self.gallery is not None
        matched = match(query, self.gallery.regions([hit.item.id for hit in found]), **self.matching)
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
        """A image of the gallery as a new JPEG file, which carries nothing (places, names) of the old one."""
        assert self.gallery is not None
        image = load_image(self.gallery.image(key), name=self.gallery.item(key).name)
        if kind == "view":
            image = self._view(image)
        else:
            image.thumbnail((_WHOLE, _WHOLE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return stream.getvalue()


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 4)
