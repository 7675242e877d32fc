"""A folder of images as a gallery: embedded in the background, kept in memory.

Legend: N readable images, K candidates.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from diml.data.images import BadImage, BadImageError, printable, read_file
from diml.data.listing import find_images
from diml.matching import Matcher, Regions
from diml.models import Embedder
from diml.models.cache import embed_cached
from diml.models.embedder import Embedded
from diml.web.facets import Facet
from diml.web.gallery import GalleryAnswer, GalleryHit, GalleryItem, GalleryNotReadyError, GalleryState, WhereError

#: The error of a gallery that was stopped before it was ready.
STOPPED: Final = "it was stopped"
_NO_COLUMNS: Final = "where: need an index to filter by metadata, got a folder; diml index build makes one"


class FolderGallery:
    """All images of a folder and its subfolders; `start` embeds them in the background.

    The label of an image is the subfolder that contains it. Links are followed as everywhere (`data.listing`), also out
    of the folder. Files are listed once, when the gallery is created; `left_out` says, in a line, what is no image.

    Args:
        folder: to search.
        embedder: of the images and of the queries.
        matcher: how a query is compared with them; that of the embedder when omitted.
        cache: folder for embeddings by content, so that the same images are embedded once; None for no cache.
        batch_size: images per batch.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: it is a file.
        ValueError: it contains no image.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        embedder: Embedder,
        *,
        matcher: Matcher | None = None,
        cache: Path | None = None,
        batch_size: int = 32,
    ) -> None:
        self.matcher = embedder.matcher if matcher is None else matcher
        self.rerank_at = 100  # as in the evaluations of the paper
        self._folder = checked_folder(folder)
        self._embedder, self._cache, self._batch_size = embedder, cache, batch_size
        found = find_images(self._folder)
        self.left_out = printable(found.notice() or "")
        self._paths, self._bad = list(found.paths), list[BadImage]()
        if not self._paths:
            told = f" ({self.left_out})" if self.left_out else ""
            raise ValueError(f"folder {printable(folder)}: need at least one image in it, got none{told}")
        self._real = [os.path.realpath(path) for path in self._paths]
        self._items = [_item(path, self._folder) for path in self._paths]
        self._row_of = {item.id: row for row, item in enumerate(self._items)}
        self._kept: dict[str, int] = {}  # id -> row of the regions
        self._order: list[int] = []  # row of the regions -> row of the items
        self._regions: Regions | None = None
        self._done, self._error = 0, ""
        self._began, self._seconds = time.monotonic(), 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._embed, name="diml-folder", daemon=True)

    def start(self) -> None:
        """Start embedding, in a thread."""
        self._began = time.monotonic()
        self._thread.start()

    def wait(self, timeout: float | None = None) -> GalleryState:
        """Wait until embedding has ended, or `timeout` seconds."""
        self._thread.join(timeout)
        return self.state()

    def stop(self) -> None:
        """Stop embedding after the current batch."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def state(self) -> GalleryState:
        """Return the progress."""
        ready, error = self._regions is not None, self._error
        return GalleryState(
            kind="folder",
            name=printable(self._folder.name),
            phase="ready" if ready else "failed" if error else "embedding",
            done=self._done,
            total=len(self._paths),
            count=len(self._order) if ready else 0,
            seconds=self._seconds or time.monotonic() - self._began,
            bad=tuple(self._bad),
            error=error,
        )

    def items(self, offset: int, count: int, *, text: str = "", where: str | None = None) -> Sequence[GalleryItem]:
        """Return some of the readable images, in the order of their paths; of all images before they are embedded."""
        return self._listed(text, where)[offset : offset + count]

    def count(self, *, text: str = "", where: str | None = None) -> int:
        """Return how many there are."""
        return len(self._listed(text, where))

    def _listed(self, text: str, where: str | None) -> Sequence[GalleryItem]:
        """The readable images whose path contains each word."""
        if where is not None:
            raise WhereError(_NO_COLUMNS)
        items = self._items if self._regions is None else [self._items[row] for row in self._order]
        words = text.casefold().split()
        return [item for item in items if all(word in item.name.casefold() for word in words)] if words else items

    def facets(self) -> tuple[Facet, ...]:
        """Nothing: a folder has no columns."""
        return ()

    def named(self, name: str) -> GalleryItem:
        """Return the image of a path inside the folder."""
        found = next((item for item in self._items if item.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def copies(self, content: bytes) -> Sequence[GalleryItem]:
        """Return the readable images whose file has this content; only files of its size are read."""
        same = [item for item in self._listed("", None) if item.metadata["bytes"] == len(content)]
        return [item for item in same if self._content(item.id) == content]

    def _content(self, key: str) -> bytes | None:
        try:
            return self.image(key)
        except (OSError, BadImageError):
            return None

    def item(self, key: str) -> GalleryItem:
        """Return the image of an id."""
        return self._items[self._row_of[key]]

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
        """Return the most similar images: all of the gallery by pooled cosine, the best K of it by score."""
        if where is not None:
            raise WhereError(_NO_COLUMNS)
        gallery = self._ready()
        query = query.to(gallery.dense.device)
        pooled = (gallery.pooled @ query.pooled[0]).float().cpu()
        order = torch.argsort(pooled, descending=True, stable=True)
        left_out = [self._kept[key] for key in exclude if key in self._kept]
        if left_out:
            order = order[~torch.isin(order, torch.tensor(left_out))]
        rank_of = {int(row): rank for rank, row in enumerate(order.tolist(), 1)}
        scores, structural = pooled.clone(), torch.full_like(pooled, torch.nan)
        compared: tuple[float, ...] = ()
        if rerank_at:
            best, used = order[:rerank_at], self.matcher if matcher is None else matcher
            alone = replace(used, structural_weight=math.inf)
            structural[best] = alone.score(query, gallery, best[None].to(gallery.dense.device))[0].cpu()
            scores[best] = used.combine(pooled[best], structural[best])
            best = best[torch.argsort(scores[best], descending=True, stable=True)]
            compared, order = tuple(scores[best].tolist()), torch.cat([best, order[rerank_at:]])
        found = tuple(
            GalleryHit(
                item=self._items[self._order[row]],
                rank=rank,
                pooled_rank=rank_of[row],
                pooled=float(pooled[row]),
                structural=None if structural[row].isnan() else float(structural[row]),
                score=float(scores[row]),
            )
            for rank, row in enumerate(order[:hits].tolist(), 1)
        )
        return GalleryAnswer(found, compared, len(order))

    def regions(self, keys: Sequence[str]) -> Regions:
        """Return the regions of some images, in the given order."""
        gallery = self._ready()
        return gallery[[self._kept[key] for key in keys]]

    def image(self, key: str) -> bytes:
        """Return the file of an image, after checking again that its name leads to the same place as when listed."""
        row = self._row_of[key]
        if os.path.realpath(self._paths[row]) != self._real[row]:
            raise FileNotFoundError(f"image {self._items[row].name}: its name leads to another file than before")
        return read_file(self._real[row], name=self._items[row].name)

    def _ready(self) -> Regions:
        if self._regions is None:
            raise GalleryNotReadyError(self.state())
        return self._regions

    def _embed(self) -> None:
        """Work of the thread; `state` reports every error."""
        try:
            found = self._embedded()
        except InterruptedError:
            self._error = STOPPED
        except Exception as error:  # reported by `state`, as nobody sees the exceptions of this thread
            self._error = str(error) or type(error).__name__
        else:
            self._order = found.kept.tolist()
            self._kept = {self._items[row].id: place for place, row in enumerate(self._order)}
            names = (Path(bad.path).relative_to(self._folder) for bad in found.bad)
            self._bad += [BadImage(printable(name), bad.reason) for name, bad in zip(names, found.bad, strict=True)]
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

    def _advance(self, images: float) -> None:
        self._done += int(images)
        if self._stopping.is_set():
            raise InterruptedError("stopped")


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the real path of a folder; FileNotFoundError or NotADirectoryError where it is none."""
    path = Path(folder).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"folder {folder}: no such folder; give one that contains images")
    if not path.is_dir():
        raise NotADirectoryError(f"folder {folder}: need a folder, got a file; give the folder that contains it")
    return path.resolve()


def _item(path: Path, folder: Path) -> GalleryItem:
    """Its id depends on path, size and time of change, so that a browser may cache the image of an id."""
    relative = path.relative_to(folder)
    status = path.stat()
    key = f"{folder}\0{relative}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
    shown, label = (
        printable(relative.as_posix()),
        printable(relative.parent.as_posix()) if relative.parent.parts else "",
    )
    return GalleryItem(hashlib.sha256(key).hexdigest()[:20], shown, label, {"bytes": status.st_size})
