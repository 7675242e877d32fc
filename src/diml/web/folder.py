"""A folder of images as a gallery: embedded in the background, kept in memory.

Legend: N images that could be read, K candidates.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Unpack

import torch

from diml.data.images import BadImage
from diml.data.inventory import images_below
from diml.matching import MatchSettings, Regions, rerank
from diml.models import Embedded, Embedder, embed_cached
from diml.web.gallery import GalleryHit, GalleryItem, GalleryNotReadyError, GalleryState

#: The trouble of a gallery that was stopped before it was ready.
STOPPED: Final = "it was stopped"


class FolderGallery:
    """All images in a folder and below it; `start` embeds them in the background.

    A image's label is the folder that it lies in. Hidden files are left out, and so are links that lead out of the
    folder. Files are found once, when the gallery is made.

    Args:
        folder: to search.
        embedder: of the queries, too.
        cache: folder for embeddings by content, so that the same images are embedded once; None keeps none.
        batch_size: images at a time.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
        ValueError: there is no image in it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], embedder: Embedder, *, cache: Path | None = None, batch_size: int = 32
    ) -> None:
        self._folder = checked_folder(folder)
        self._embedder, self._cache, self._batch_size = embedder, cache, batch_size
        found = images_below(self._folder)
        self._paths = [path for path in found if _inside(path, self._folder)]
        self._bad = [
            BadImage(str(path.relative_to(self._folder)), "is a link that leads out of the folder")
            for path in found
            if not _inside(path, self._folder)
        ]
        if not self._paths:
            raise ValueError(f"folder {folder}: need at least one image in it, got none; jpg, png, webp and others")
        self._items = [_item(path, self._folder) for path in self._paths]
        self._row_of = {item.id: row for row, item in enumerate(self._items)}
        self._kept: dict[str, int] = {}  # id -> row of the regions
        self._order: list[int] = []  # row of the regions -> row of the items
        self._regions: Regions | None = None
        self._done, self._trouble = 0, ""
        self._began, self._seconds = time.monotonic(), 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._embed, name="diml-folder", daemon=True)

    def start(self) -> None:
        """Begin to embed, in a thread of its own."""
        self._began = time.monotonic()
        self._thread.start()

    def wait(self, timeout: float | None = None) -> GalleryState:
        """Wait until it is embedded, or the time is over."""
        self._thread.join(timeout)
        return self.state()

    def stop(self) -> None:
        """Have embedding end after the present batch."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def state(self) -> GalleryState:
        """How far it is."""
        ready, trouble = self._regions is not None, self._trouble
        return GalleryState(
            kind="folder",
            name=self._folder.name,
            phase="ready" if ready else "failed" if trouble else "embedding",
            done=self._done,
            total=len(self._paths),
            count=len(self._order) if ready else 0,
            seconds=self._seconds or time.monotonic() - self._began,
            bad=tuple(self._bad),
            trouble=trouble,
        )

    def items(self, offset: int, count: int) -> Sequence[GalleryItem]:
        """Some of the images that can be read, in the order of their paths; all of them until that is known."""
        if self._regions is None:
            return self._items[offset : offset + count]
        return [self._items[row] for row in self._order[offset : offset + count]]

    def item(self, key: str) -> GalleryItem:
        """The image of an id."""
        return self._items[self._row_of[key]]

    def search(
        self, query: Regions, *, hits: int, rerank: int, exclude: str = "", **matching: Unpack[MatchSettings]
    ) -> Sequence[GalleryHit]:
        """The images most alike: the whole gallery by pooled cosine, the best K of it by score."""
        gallery = self._ready()
        pooled = (gallery.pooled @ query.pooled[0]).float().cpu()
        order = torch.argsort(pooled, descending=True, stable=True)
        if exclude in self._kept:
            order = order[order != self._kept[exclude]]
        near: torch.Tensor = order
        structural: dict[int, float] = {}
        if rerank:
            near, structural = self._reranked(query, order, rerank, matching)
        place = {int(row): rank for rank, row in enumerate(order.tolist(), 1)}
        return [
            GalleryHit(self._items[self._order[row]], rank, place[row], float(pooled[row]), structural.get(row))
            for rank, row in enumerate(near[:hits].tolist(), 1)
        ]

    def _reranked(
        self, query: Regions, order: torch.Tensor, count: int, matching: MatchSettings
    ) -> tuple[torch.Tensor, dict[int, float]]:
        """The order with its best K by score, and the structural similarity of those."""
        gallery = self._ready()
        best = order[:count]
        structural = rerank(query, gallery, best[None].to(gallery.dense.device), score="structural", **matching)[0]
        scores = structural.cpu() + (gallery.pooled @ query.pooled[0]).float().cpu()[best]
        moved = torch.argsort(scores, descending=True, stable=True)
        found = dict(zip(best.tolist(), structural.tolist(), strict=True))
        return torch.cat([best[moved], order[count:]]), found

    def regions(self, keys: Sequence[str]) -> Regions:
        """Regions of some images, in the order asked for."""
        gallery = self._ready()
        return gallery[[self._kept[key] for key in keys]]

    def image(self, key: str) -> bytes:
        """The file of a image; that it lies in the folder is looked at anew each time."""
        path = self._paths[self._row_of[key]]
        if not _inside(path, self._folder):
            raise FileNotFoundError(f"image {self._items[self._row_of[key]].name}: it left the folder")
        return path.read_bytes()

    def _ready(self) -> Regions:
        if self._regions is None:
            raise GalleryNotReadyError(self.state())
        return self._regions

    def _embed(self) -> None:
        """Work of the thread; whatever goes wrong is told by `state`."""
        try:
            found = self._embedded()
        except InterruptedError:
            self._trouble = STOPPED
        except Exception as error:  # shown to the user, who cannot see this thread
            self._trouble = str(error) or type(error).__name__
        else:
            self._order = found.kept.tolist()
            self._kept = {self._items[row].id: place for place, row in enumerate(self._order)}
            names = (Path(bad.path).relative_to(self._folder) for bad in found.bad)
            self._bad += [BadImage(str(name), bad.reason) for name, bad in zip(names, found.bad, strict=True)]
            self._done = len(self._paths)
            self._regions = found.regions
        self._seconds = max(time.monotonic() - self._began, 1e-9)

    def _embedded(self) -> Embedded:
        if self._cache is None:
            return self._embedder.embed_checked(
                self._paths, batch_size=self._batch_size, progress=self._advance, on_bad_image="skip"
            )
        return embed_cached(
            self._embedder,
            self._paths,
            cache_dir=self._cache,
            batch_size=self._batch_size,
            progress=self._advance,
            on_bad_image="skip",
        )

    def _advance(self, images: int) -> None:
        self._done += images
        if self._stopping.is_set():
            raise InterruptedError("stopped")


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """The real path of a folder; an error that tells the remedy where it is none."""
    path = Path(folder).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"folder {folder}: no such folder; give one that has images in it or below it")
    if not path.is_dir():
        raise NotADirectoryError(f"folder {folder}: need a folder, got a file; give the folder that it lies in")
    return path.resolve()


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, lies in a folder (whose own path is real)."""
    try:
        return path.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to nowhere, or in a circle
        return False


def _item(path: Path, folder: Path) -> GalleryItem:
    """Its id depends on place, size and time of change, so that a browser may keep the image of an id."""
    relative = path.relative_to(folder)
    status = path.stat()
    key = f"{folder}\0{relative}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
    shown = relative.as_posix().encode("utf-8", "replace").decode()
    label = relative.parent.as_posix().encode("utf-8", "replace").decode() if relative.parent.parts else ""
    return GalleryItem(hashlib.sha256(key).hexdigest()[:20], shown, label, {"bytes": status.st_size})
