"""What the server computes: comparisons, searches, and images as the model saw them.

Legend: H hits, Rq regions of the query.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from diml.allocator import return_freed_memory
from diml.calibration.calibrator import Calibrator
from diml.calibration.finding import FoundCalibration
from diml.calibration.hits import FALSE_ACCEPT_RATE, JudgedHits, judge_hits
from diml.data.images import BadImageError, load_image, opened_image
from diml.data.query_box import QueryBox
from diml.explain.explanation import Explanation
from diml.explain.hits import lift_of
from diml.explain.html import ImageShelf, hit_numbers, pair_numbers
from diml.matching import Matcher, Regions
from diml.models import Embedder
from diml.models.shares import with_shares
from diml.search.searcher import NOT_RERANKED
from diml.web.gallery import Gallery, GalleryAnswer, GalleryHit, GalleryNotReadyError
from diml.web.limits import Amount, Limits
from diml.web.uploads import Upload

Kind = Literal["view", "whole"]

MOST_HITS: Final = 24
_SCALE: Final = 2  # a view has twice the network's resolution: sharp on a large screen
_WHOLE: Final = 1280  # longest side of a whole image, pixels
_CACHED_IMAGES: Final = 400  # small images, about 40 kB each
_ENTRIES: Final = 600_000  # entries of the plans in one answer; browsers do not cope with more
_SHARES_BYTES: Final = 64 * 2**20  # of the regions of images explained before, with their shares
_LARGE: Final = 8_000_000  # pixels of an image whose memory is returned to the system
_KEPT: Final = "the gallery keeps no shares of the pooled vectors"
_OTHER_MATCHER: Final = "The calibration is of comparisons with other settings: hits have no probability."


class Engine:
    """An embedder, a matcher, and the gallery to search.

    Args:
        embedder: turns images into regions.
        matcher: how images are compared; that of the gallery when omitted, else that of the embedder.
        gallery: what is searched; None for no search.
        about: further settings reported with answers, besides those of the matcher.
        calibration: what the scores of this embedder and matcher mean.
        false_accept_rate: share of the queries missing from the gallery that may be taken to be there, in (0, 1).

    Raises:
        ValueError: the calibration is of another embedder or matcher, or there is no such rate.

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
        calibration: FoundCalibration | None = None,
        false_accept_rate: float = FALSE_ACCEPT_RATE,
    ) -> None:
        if not 0 < false_accept_rate < 1:
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {false_accept_rate}; 0.01 is 1 %")
        self.embedder, self.gallery, self.false_accept_rate = embedder, gallery, false_accept_rate
        if matcher is None:
            matcher = embedder.matcher if gallery is None else gallery.matcher
        embedder.check_matcher(matcher)
        self.matcher = matcher
        self.settings = {**(about or {}), **matcher.to_dict()}
        self.calibration = calibration or FoundCalibration()
        if self.calibration.calibrator is not None:
            self.calibration.calibrator.check(embedder.fingerprint(), matcher)
        self._shares = _ShareCache(_SHARES_BYTES)
        self._drawn: OrderedDict[tuple[bytes, Kind], bytes] = OrderedDict()
        self._drawing = threading.Lock()
        self._pixels = Amount(Limits().pixels)
        self.root_path = ""  # prefix of the addresses in answers

    @property
    def calibrator(self) -> Calibrator | None:
        """What the scores mean, where it is known."""
        return self.calibration.calibrator

    def limit_pixels(self, pixels: int) -> None:
        """Decode no more pixels than these at the same time; by default the limit of one upload."""
        self._pixels = Amount(pixels)

    @contextmanager
    def decoding(self, size: tuple[int, int]) -> Iterator[None]:
        """Wait until an image of this size (width, height) may be decoded; its memory is to be free in the end."""
        pixels = size[0] * size[1]
        with self._pixels.waited_for(pixels):
            try:
                yield
            finally:
                if pixels > _LARGE:  # each thread would keep as much for its next image (`diml.allocator`)
                    return_freed_memory()

    def prepare(self, image: Image.Image, box: QueryBox | None = None) -> tuple[Tensor, Image.Image]:
        """Return the network's input (3, H, W) of an RGB image or of a part of it, and that as it is shown."""
        image = image if box is None else box.crop(image)
        return self.embedder.preprocess(image), self._view(image)

    def match(self, query: Upload, other: Upload) -> dict[str, Any]:
        """Compare two images; returns an `ExplanationResponse` as plain values."""
        started, shelf = time.perf_counter(), ImageShelf()
        regions = self._embedded(query, other)
        found = self.matcher.match(regions[0], regions[1])
        places = [shelf.place(side.view, side.name) for side in (query, other)]
        explained = Explanation.of(found, calibrator=self.calibrator)
        numbers = pair_numbers(explained, (query.name, other.name))
        pair = numbers | {"images": {"query": places[0], "gallery": places[1]}}
        return self._answer({"images": shelf.images, "pairs": [pair]}, started)

    def search(
        self,
        query: Upload | str,
        *,
        hits: int,
        rerank_at: int | None = None,
        where: str | None = None,
        box: QueryBox | None = None,
        matcher: Matcher | None = None,
        without: bytes | None = None,
        explained: bool = True,
    ) -> dict[str, Any]:
        """Search for an uploaded image, or for one of the gallery by its id (which is then excluded from the hits).

        Args:
            query: image, of which `prepare` has cut out the box; or id.
            hits: number of hits to explain.
            rerank_at: K; when omitted that of the gallery.
            where: a condition on metadata that the hits satisfy; for an index.
            box: part of the query that is searched for.
            matcher: for this search; hits then have no probability, unless it is that of the engine.
            without: file whose copies in the gallery are left out.
            explained: False for ids, scores and metadata alone, in a fraction of the time.

        Returns:
            An `ExplanationResponse` as plain values, hits best first; not explained a `HitsResponse`.

        Raises:
            KeyError: there is no image of that id.
            GalleryNotReadyError: the gallery cannot be searched yet.
            WhereError: the condition cannot be applied.
            BoxError: the box has no place in the image.
        """
        started = time.perf_counter()
        assert self.gallery is not None
        matcher = matcher or self.matcher
        rerank_at = self.gallery.rerank_at if rerank_at is None else rerank_at
        own = [] if without is None else list(self.gallery.copies(without))
        excluded = {item.id for item in own}
        if isinstance(query, str):
            item, excluded = self.gallery.item(query), excluded | {query}
            own = [one for one in own if one.id != query]
            first, regions = self._address(query, item.name), None
            if box is not None:
                query = self._part(query, item.name, box)
            else:
                regions = self._divided([query])[0] if explained else self.gallery.regions([query])
        if not isinstance(query, str):
            regions = self._embedded(query)
            first = {"name": query.name}
            if explained:
                shelf = ImageShelf()
                shelf.place(query.view, query.name)
                first = shelf.images[0]
        assert regions is not None
        found = self.gallery.search(
            regions, hits=hits, rerank_at=rerank_at, exclude=excluded, matcher=matcher, where=where
        )
        judged = self._judged(found, rerank_at, matcher)
        settings = {"rerank_at": rerank_at} | ({} if where is None else {"where": where})
        settings |= matcher.to_dict() | ({} if box is None else {"box": str(box)})
        told = {"own": [vars(item) for item in own]}
        if not explained:
            facts = [_facts(hit, row, judged) for row, hit in enumerate(found.hits)]
            return self._answer({"hits": facts}, started, judged, **settings) | told
        pairs = self._pairs(regions, found.hits, first["name"], judged, matcher) if found.hits else []
        images = [first, *(self._address(hit.item.id, hit.item.name) for hit in found.hits)]
        return self._answer({"images": images, "pairs": pairs}, started, judged, **settings) | told

    def _part(self, key: str, name: str, box: QueryBox) -> Upload:
        """A part of a gallery image, from its file."""
        assert self.gallery is not None
        content = self.gallery.image(key)
        with opened_image(content, name=name) as unread:
            size = unread.size
        with self.decoding(size):
            return Upload(name, *self.prepare(load_image(content, name=name), box))

    def _answer(
        self, found: Mapping[str, Any], started: float, judged: JudgedHits | None = None, **settings: Any
    ) -> dict[str, Any]:
        judged = JudgedHits() if judged is None else judged
        notices = [self.calibration.notice, *judged.notices]
        return {
            **found,
            "in_gallery": None if judged.gallery is None else judged.gallery.to_dict(),
            "notices": [notice for notice in notices if notice],
            "settings": {**self.settings, **settings},
            "seconds": round(time.perf_counter() - started, 4),
        }

    def _judged(self, found: GalleryAnswer, rerank_at: int, matcher: Matcher) -> JudgedHits:
        """What the calibration says of the hits."""
        if self.calibrator is None or not found.hits:
            return JudgedHits()
        if matcher != self.matcher:
            return JudgedHits(notices=(_OTHER_MATCHER,))
        if not rerank_at:
            return JudgedHits(notices=(NOT_RERANKED,))
        return judge_hits(
            self.calibrator,
            found.scores,
            depth=rerank_at,
            gallery_images=max(1, found.searched),
            false_accept_rate=self.false_accept_rate,
        )

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

    def _pairs(
        self, query: Regions, found: Sequence[GalleryHit], name: str, judged: JudgedHits, matcher: Matcher
    ) -> list[dict[str, Any]]:
        """The hits in the form of the viewer."""
        gallery = self._divided([hit.item.id for hit in found])
        matched = [matcher.match(query.to("cpu"), regions) for regions in gallery]
        calibrator = self.calibrator if matcher == self.matcher else None
        lift = lift_of([match.ledger(0) for match in matched])
        pairs = []
        for row, (hit, match) in enumerate(zip(found, matched, strict=True)):
            chance = _chance(row, judged)
            explained = Explanation.of(match, calibrator=calibrator)
            explained = explained if chance is None else dataclasses.replace(explained, probability=chance)
            facts = _facts(hit, row, judged) | {
                "lift": lift[row].tolist(),
                "correct": None,
                "note": hit.item.label.rpartition("/")[2],
            }
            places = {"images": {"query": 0, "gallery": row + 1}, "hit": facts}
            pairs.append(hit_numbers(explained, (name, hit.item.name)) | places)
        return pairs

    def _divided(self, keys: Sequence[str]) -> list[Regions]:
        """The regions of gallery images, each by itself, with the shares of its pooled vector where available."""
        assert self.gallery is not None
        stored = self.gallery.regions(keys)
        known: dict[str, Regions] = {}
        for row, key in enumerate(keys):
            kept = self._shares.get(key, stored[[row]])
            if kept is not None:
                known[key] = kept
        new = [row for row, key in enumerate(keys) if key not in known]
        images = [self._gallery_file(keys[row]) for row in new]
        made = with_shares(stored[new].to("cpu"), images, self.embedder, kept=_KEPT) if new else []
        for row, regions in zip(new, made, strict=True):
            known[keys[row]] = regions
            if regions.shares is not None:
                self._shares.put(keys[row], regions)
        return [known[key] for key in keys]

    def gallery_content(self, key: str) -> bytes | None:
        """The file of a gallery image; None where it cannot be read any more."""
        found = self._gallery_file(key)
        return found if isinstance(found, bytes) else None

    def _gallery_file(self, key: str) -> bytes | str:
        """The file of a gallery image, or why it is not available."""
        assert self.gallery is not None
        try:
            return self.gallery.image(key)
        except (OSError, BadImageError) as error:
            return f"its file cannot be read ({error})"

    def _address(self, key: str, name: str) -> dict[str, Any]:
        side = self.embedder.preprocess.size * _SCALE
        return {
            "src": f"{self.root_path}/api/gallery/image?id={quote(key, safe='')}",
            "name": name,
            "width": side,
            "height": side,
        }

    def _embedded(self, *uploads: Upload) -> Regions:
        inputs = [upload.input for upload in uploads]
        return self.embedder.embed(DataLoader(inputs, batch_size=len(inputs)), shares=True)  # type: ignore[arg-type]

    def _view(self, image: Image.Image) -> Image.Image:
        return self.embedder.preprocess.view(image, _SCALE)

    def image(self, key: str, kind: Kind) -> bytes:
        """A gallery image re-encoded as JPEG, without the metadata (location, names) of its file.

        The latest ones are kept by the content of their files, as the image of an id may be replaced.

        Raises:
            KeyError: there is no image of that id.
            OSError, BadImageError: its file cannot be read any more.
        """
        assert self.gallery is not None
        content = self.gallery.image(key)
        known = hashlib.sha256(content).digest(), kind
        with self._drawing:
            drawn = self._drawn.pop(known, None)
            if drawn is not None:
                self._drawn[known] = drawn
                return drawn
        drawn = self._image(content, self.gallery.item(key).name, kind)
        with self._drawing:
            self._drawn[known] = drawn
            while len(self._drawn) > _CACHED_IMAGES:
                self._drawn.popitem(last=False)
        return drawn

    def _image(self, content: bytes, name: str, kind: Kind) -> bytes:
        with opened_image(content, name=name) as unread:
            size = unread.size
        with self.decoding(size):
            if kind == "view":
                image = self._view(load_image(content, name=name, at_least=self.embedder.preprocess.at_least))
            else:
                image = load_image(content, name=name, at_least=_WHOLE)
                image.thumbnail((_WHOLE, _WHOLE), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        return stream.getvalue()


def _chance(row: int, judged: JudgedHits) -> float | None:
    """Probability of a hit; those beyond the best K are not re-ranked, and have none."""
    return judged.probabilities[row] if row < len(judged.probabilities) else None


def _facts(hit: GalleryHit, row: int, judged: JudgedHits) -> dict[str, Any]:
    """What is known of a hit without its explanation."""
    return {
        "id": hit.item.id,
        "name": hit.item.name,
        "label": hit.item.label,
        "metadata": dict(hit.item.metadata),
        "rank": hit.rank,
        "pooled_rank": hit.pooled_rank,
        "reranked": hit.structural is not None,
        "score": hit.score,
        "pooled": hit.pooled,
        "structural": hit.structural,
        "probability": _chance(row, judged),
    }


class _ShareCache:
    """Regions with shares of images that were explained before, the latest ones, up to a number of bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[str, Regions] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, stored: Regions) -> Regions | None:
        """Those of an image, if it is still stored as it was; else None."""
        with self._lock:
            found = self._kept.get(key)
            if found is None or not torch.equal(found.pooled, stored.pooled.cpu()):
                return None
            self._kept.move_to_end(key)
            return found

    def put(self, key: str, regions: Regions) -> None:
        """Keep those of an image."""
        with self._lock:
            self._drop(key)
            self._kept[key] = regions
            self._bytes += _bytes_of(regions)
            while self._bytes > self._most:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        found = self._kept.pop(key, None)
        self._bytes -= 0 if found is None else _bytes_of(found)


def _bytes_of(regions: Regions) -> int:
    return 2 * regions.dense.nbytes + regions.pooled.nbytes
