"""Copies of one photograph in an index: the pairs that are compared, and how well they agree.

Images with the same content (sha256 of the file) are exact copies. The others are compared with their nearest
neighbours by pooled cosine, first as small versions and then, where these are alike, as images (`diml.data.alignment`).

Legend: N images, P pairs.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diml.data.alignment import SMALL, Agreement, agreement, align, small_image
from diml.data.images import BadImage, BadImageError, load_image
from diml.matching.retrieval import NOTHING, nearest
from diml.progress import ShowProgress, progress_bar
from diml.search.filters import Where
from diml.search.sources import known_file

if TYPE_CHECKING:
    from diml.search.store import Rows, Store, Value

#: Rows whose neighbours are looked up, and pairs of small versions that are laid over each other, at a time.
_ROWS, _PAIRS = 256, 256
#: Neighbours of an image at most that the index is asked for, however many exact copies it has.
_MOST: Final = 200
#: Images up to which all are compared with all.
_EXHAUSTIVE: Final = 100_000


@dataclass(frozen=True, eq=False)
class GalleryFiles:
    """The images of an index among which copies are looked for.

    Args:
        ids: N ids, in the order of the index.
        metadata: N mappings, column -> value.
    """

    ids: tuple[str, ...]
    metadata: tuple[Mapping[str, Value], ...]

    @classmethod
    def of(cls, store: Store, where: Where | None) -> GalleryFiles:
        """The images of an index that satisfy a condition."""
        parts = list(store.listing(where))
        return cls(
            tuple(name for part in parts for name in part.ids),
            tuple(entry for part in parts for entry in part.metadata),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def file(self, row: int) -> Path | None:
        """The file of an image, where the index records it."""
        return known_file(self.metadata[row])

    def name(self, row: int) -> str:
        """File of an image, else its id."""
        file = self.file(row)
        return self.ids[row] if file is None else str(file)

    def exact(self) -> list[list[int]]:
        """Rows of the same content, two or more each."""
        return [rows for rows in self._by_content.values() if len(rows) > 1]

    def same(self, row: int) -> list[int]:
        """Rows of the content of a row, itself included."""
        return self._by_content.get(self.metadata[row].get("content"), [row])

    @cached_property
    def _by_content(self) -> dict[Value, list[int]]:
        found: defaultdict[Value, list[int]] = defaultdict(list)
        for row, entry in enumerate(self.metadata):
            if entry.get("content") is not None:
                found[entry["content"]].append(row)
        return dict(found)


class CopyComparison:
    """Compares images of a gallery, each read as often as needed; those that cannot be read are copies of none.

    Small versions are kept in a temporary file (4 kB an image), so that memory does not grow with the index.

    Args:
        gallery: the images.
    """

    def __init__(self, gallery: GalleryFiles) -> None:
        self.gallery = gallery
        self.bad: dict[int, BadImage] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the comparison
        shape = (max(1, len(gallery)), SMALL, SMALL)
        self._small: NDArray[np.uint8] = np.memmap(self._file, dtype=np.uint8, mode="w+", shape=shape)
        self._known = np.zeros(len(gallery), dtype=bool)
        self._loaded = lru_cache(maxsize=32)(self._load)

    def read(self, rows: Sequence[int], progress: ShowProgress = False) -> None:
        """Make the small versions of some images."""
        missing = [row for row in rows if not self._known[row]]
        with progress_bar(len(missing), show=progress, what="reading", unit="images") as advance:
            for row in missing:
                self._known[row] = True
                try:
                    self._small[row] = small_image(self._named(row))
                except (OSError, BadImageError) as error:
                    self.bad[row] = BadImage(self.gallery.name(row), str(error))
                advance(1)

    def of(self, pairs: NDArray[np.int64], progress: ShowProgress = False) -> list[Agreement]:
        """How well P pairs of rows agree; a value of 0 where even their small versions are not alike."""
        self.read(np.unique(pairs).tolist(), progress)
        found = [Agreement(0.0, 1.0, False)] * len(pairs)
        with progress_bar(len(pairs), show=progress, what="comparing", unit="pairs") as advance:
            for start in range(0, len(pairs), _PAIRS):
                part = pairs[start : start + _PAIRS]
                laid = align(self._small[part[:, 0]], self._small[part[:, 1]])
                for place in np.flatnonzero(laid.alike).tolist():
                    a, b = part[place].tolist()
                    one = self._agreement(a, b, bool(laid.mirrored[place]), laid.view[place])
                    found[start + place] = one if one is not None else found[start + place]
                advance(len(part))
        return found

    def with_image(self, row: int, image: Image.Image) -> Agreement:
        """How well an image of the gallery agrees with another image."""
        self.read([row])
        laid = align(self._small[row][None], small_image(image)[None])
        first = self.image(row)
        if first is None or not laid.alike[0]:
            return Agreement(0.0, 1.0, False)
        return agreement(first, image, bool(laid.mirrored[0]), laid.view[0])

    def _agreement(self, a: int, b: int, mirrored: bool, view: NDArray[np.float32]) -> Agreement | None:
        first, second = self.image(a), self.image(b)
        return None if first is None or second is None else agreement(first, second, mirrored, view)

    def image(self, row: int) -> Image.Image | None:
        """An image of the gallery, or None where it cannot be read."""
        if row in self.bad:
            return None
        try:
            return self._loaded(row)
        except (OSError, BadImageError) as error:
            self.bad[row] = BadImage(self.gallery.name(row), str(error))
            return None

    def _load(self, row: int) -> Image.Image:
        return load_image(self._named(row))

    def _named(self, row: int) -> Path:
        file = self.gallery.file(row)
        if file is None:
            raise BadImageError(self.gallery.ids[row], "has no file in this index")
        return file

    def close(self) -> None:
        """Remove the temporary file."""
        del self._small
        self._file.close()

    def __enter__(self) -> CopyComparison:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def neighbour_pairs(
    store: Store,
    gallery: GalleryFiles,
    *,
    neighbours: int,
    least: float = -1.0,
    where: Where | None = None,
    progress: ShowProgress = False,
) -> NDArray[np.int64]:
    """(P, 2) rows of a gallery that are near each other, each pair once, a < b.

    Of exact copies the first stands for all. Up to 100,000 images all are compared with all, exactly; beyond, the
    index's own search finds the neighbours.

    Args:
        store: the index.
        gallery: its images.
        neighbours: of each image.
        least: only pairs of at least this pooled cosine.
        where: the condition of the gallery.
        progress: as of `progress_bar`.
    """
    first = np.arange(len(gallery))
    for rows in gallery.exact():
        first[rows] = rows[0]
    alone = np.flatnonzero(first == np.arange(len(gallery)))
    found = [np.zeros((0, 2), dtype=np.int64)]
    look_up = _exact if len(alone) <= _EXHAUSTIVE else _by_index
    with progress_bar(2 * len(alone), show=progress, what="neighbours", unit="steps") as advance:
        for own, others, cosine in look_up(store, gallery, alone, first, neighbours, where, advance):
            kept = others[(cosine >= least) & (others != own)][:neighbours]
            found.append(np.stack([np.minimum(own, kept), np.maximum(own, kept)], axis=1))
    return np.unique(np.concatenate(found), axis=0)


_Found = Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]


def _exact(
    store: Store,
    gallery: GalleryFiles,
    alone: NDArray[np.int64],
    first: NDArray[np.int64],
    neighbours: int,
    where: Where | None,
    advance: Callable[[float], None],
) -> _Found:
    """The neighbours of each image by comparing all with all."""
    pooled = np.zeros((len(alone), store.config.dim), dtype=np.float32)
    place = {gallery.ids[row]: at for at, row in enumerate(alone.tolist())}
    for asked, rows in _stored(store, gallery, alone):
        pooled[[place[name] for name in rows.ids]] = rows.pooled
        advance(asked)
    vectors = torch.from_numpy(pooled)
    for start in range(0, len(alone), _ROWS):
        part = torch.arange(start, min(start + _ROWS, len(alone)))
        order = nearest(vectors[part], vectors, neighbours, exclude=part).order
        for row, near in zip(part.tolist(), order, strict=True):
            near = near[near != NOTHING]
            cosine = (vectors[near] @ vectors[row]).numpy()
            yield int(alone[row]), alone[near.numpy()], cosine
        advance(len(part))


def _by_index(
    store: Store,
    gallery: GalleryFiles,
    alone: NDArray[np.int64],
    first: NDArray[np.int64],
    neighbours: int,
    where: Where | None,
    advance: Callable[[float], None],
) -> _Found:
    """The neighbours of each image by the search of the index, with places for exact copies, which are many hits."""
    place = {name: row for row, name in enumerate(gallery.ids)}
    largest = max((len(rows) for rows in gallery.exact()), default=1)
    for asked, rows in _stored(store, gallery, alone):
        found = store.nearest(rows.pooled, min(neighbours + largest, _MOST), where=where) if len(rows) else []
        for name, hits in zip(rows.ids, found, strict=True):
            known = [(first[place[other]], at) for at, other in enumerate(hits.ids) if other in place]
            best = dict(reversed(known))  # of exact copies the nearest counts
            others = np.array(sorted(best, key=best.__getitem__), dtype=np.int64)
            yield place[name], others, hits.cosine[[best[other] for other in others]]
        advance(2 * asked)


def _stored(store: Store, gallery: GalleryFiles, alone: NDArray[np.int64]) -> Iterator[tuple[int, Rows]]:
    """The stored rows of images in parts, each with the number that was asked for; removed ones are missing."""
    for start in range(0, len(alone), _ROWS):
        part = alone[start : start + _ROWS]
        yield len(part), store.regions([gallery.ids[row] for row in part])
