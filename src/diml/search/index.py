"""Bring an index up to date with its images: new ones, changed ones, those that are gone; again and again.

Legend: N images, B bytes of a image's coded regions.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from diml.data.images import BadImage
from diml.distributed import Share
from diml.progress import image_progress
from diml.search.coding import encode_regions
from diml.search.filters import Comparison
from diml.search.opening import create_store
from diml.search.remembered import config_of
from diml.search.sources import OWN_COLUMNS, Listing
from diml.search.store import Rows, Storage, Store, Value

if TYPE_CHECKING:
    from diml.matching import Regions
    from diml.models import Embedder

_SECONDS_UNWRITTEN: Final = 20.0


@dataclass(frozen=True)
class BuildReport:
    """What one run of `build_index` did, in all its processes.

    Attributes:
        embedded: images embedded: new ones, and those with another content than before.
        copied: images whose content was known under another name, or whose metadata alone is new.
        unchanged: images left as they were.
        removed: images gone from their source.
        bad: images that cannot be read, with the reason; where one was indexed before, that row stays.
        total: rows of the index now.
    """

    embedded: int
    copied: int
    unchanged: int
    removed: int
    bad: tuple[BadImage, ...]
    total: int


@dataclass
class _Plan:
    """What is to be done with the images of one process: row of the listing -> content."""

    embed: dict[int, str] = field(default_factory=dict)
    copy: dict[int, tuple[str, str]] = field(default_factory=dict)  # id to copy from, content
    unchanged: int = 0
    bad: list[BadImage] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """What the index has: id -> metadata of this source's rows; content -> an id that has it, of all rows."""

    rows: Mapping[str, Mapping[str, Value]]
    by_content: Mapping[str, str]


def build_index(
    listing: Listing,
    uri: str | os.PathLike[str],
    embedder: Embedder,
    *,
    model: str,
    architecture: str | None = None,
    storage: Storage = "float16",
    batch_size: int = 64,
    commit_every: int = 512,
    workers: int | None = None,
    progress: bool = False,
    keep_missing: bool = False,
    share: Share | None = None,
) -> BuildReport:
    """Make an index of images, or bring the one that is there up to date.

    Whatever is written stays, also when the process is killed; the next run goes on from there.

    Args:
        listing: the images, as of `list_source`.
        uri: of the index; see `open_store`.
        embedder: what makes the vectors.
        model, architecture: by which it was loaded, for the index to remember.
        storage: of the regions: "float16", "int8", or "none" for pooled vectors only.
        batch_size, workers, progress: as in `Embedder.embed`.
        commit_every: images written at once, at the latest after 20 seconds; so many may be embedded again after a
            crash.
        keep_missing: leave rows whose images are gone from the source.
        share: this process among others that index the same at once; see `join_share`.

    Returns:
        BuildReport, the same in every process.

    Raises:
        ValueError: the index there is of another embedder, storage or metadata; nothing is changed then.
    """
    if batch_size < 1 or commit_every < 1:
        raise ValueError(f"batch_size, commit_every: need at least 1, got {batch_size} and {commit_every}")
    share = Share() if share is None else share
    columns = {**OWN_COLUMNS, **listing.columns}
    store = create_store(uri, config_of(embedder, model, storage=storage, columns=columns, architecture=architecture))
    known = _known(store, listing)
    plan = _plan(listing, known, store, share, progress)
    share.gather(None)  # nobody writes before all have seen what is there
    written = _Writer(store, listing, commit_every)
    _copy(plan, written)
    copied = written.count
    _embed(plan, written, embedder, batch_size, workers, progress and share.is_first)
    parts = share.gather((written.count - copied, copied, plan.unchanged, [vars(bad) for bad in plan.bad]))
    removed = 0
    if share.is_first:
        present = {listing.name(row) for row in range(len(listing))}
        gone = [] if keep_missing else [name for name in known.rows if name not in present]
        removed = store.remove(gone)
        if removed or any(part[0] + part[1] for part in parts):
            store.optimize()
    removed = share.gather(removed)[0]
    embedded, copies, unchanged = (sum(part[place] for part in parts) for place in range(3))
    bad = sorted((BadImage(**one) for part in parts for one in part[3]), key=lambda one: one.path)
    return BuildReport(embedded, copies, unchanged, removed, tuple(bad), store.count())


def content_of(file: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _known(store: Store, listing: Listing) -> _Known:
    rows: dict[str, Mapping[str, Value]] = {}
    for part in store.listing(Comparison("source", "=", listing.source)):
        rows |= dict(zip(part.ids, part.metadata, strict=True))
    by_content: dict[str, str] = {}
    for part in store.listing(columns=["content"]):
        by_content |= {str(entry["content"]): name for name, entry in zip(part.ids, part.metadata, strict=True)}
    return _Known(rows, by_content)


def _plan(listing: Listing, known: _Known, store: Store, share: Share, progress: bool) -> _Plan:
    """Read every file of this process's share, and see what the index has of it."""
    plan, own = _Plan(), share.of(len(listing))
    with image_progress(len(own), show=progress and share.is_first, what="reading") as advance:
        for row in own:
            file, name = listing.file(row), listing.name(row)
            wanted = _metadata(listing, row, "", store)
            try:
                content = content_of(file)
            except (OSError, ValueError) as error:
                missing = isinstance(error, FileNotFoundError)
                plan.bad.append(BadImage(str(file), "no such file" if missing else f"cannot be read: {error}"))
                advance(1)
                continue
            before = known.rows.get(name)
            if before is not None and before["content"] == content:
                if _same(before, wanted | {"content": content}):
                    plan.unchanged += 1
                else:
                    plan.copy[row] = (name, content)
            elif content in known.by_content:
                plan.copy[row] = (known.by_content[content], content)
            else:
                plan.embed[row] = content
            advance(1)
    return plan


def _same(before: Mapping[str, Value], wanted: Mapping[str, Value]) -> bool:
    names = before.keys() | wanted.keys()
    return all(before.get(name) == wanted.get(name) for name in names)


def _metadata(listing: Listing, row: int, content: str, store: Store) -> dict[str, Value]:
    own: dict[str, Value] = {"source": listing.source, "path": listing.paths[row], "content": content}
    return own | listing.metadata(row, store.config.columns)


class _Writer:
    """Gathers rows and writes them by the batch; `count` of them are acknowledged."""

    def __init__(self, store: Store, listing: Listing, commit_every: int) -> None:
        self.store, self.listing, self.commit_every, self.count = store, listing, commit_every, 0
        self._waiting: list[Rows] = []
        self._since = time.monotonic()

    def take(self, rows: Iterable[int], contents: Iterable[str], pooled: np.ndarray, coded: np.ndarray) -> None:
        """Take rows of the listing with their vectors; write when enough are waiting."""
        rows = list(rows)
        ids = tuple(self.listing.name(row) for row in rows)
        pairs = zip(rows, contents, strict=True)
        metadata = tuple(_metadata(self.listing, row, content, self.store) for row, content in pairs)
        self._waiting.append(Rows(ids, pooled, coded, metadata))
        late = time.monotonic() - self._since > _SECONDS_UNWRITTEN
        if late or sum(len(part) for part in self._waiting) >= self.commit_every:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            parts = self._waiting
            rows = Rows(
                ids=tuple(name for part in parts for name in part.ids),
                pooled=np.concatenate([part.pooled for part in parts]),
                coded=np.concatenate([part.coded for part in parts]),
                metadata=tuple(entry for part in parts for entry in part.metadata),
            )
            self.store.add(rows)
            self.count += len(rows)
        self._waiting, self._since = [], time.monotonic()


def _copy(plan: _Plan, writer: _Writer) -> None:
    """Write images whose vectors the index has; those that vanished from it meanwhile are embedded after all."""
    rows = list(plan.copy)
    for start in range(0, len(rows), writer.commit_every):
        part = rows[start : start + writer.commit_every]
        found = writer.store.regions(list(dict.fromkeys(plan.copy[row][0] for row in part)))
        place = {name: at for at, name in enumerate(found.ids)}
        there = {
            row: place[origin]
            for row, (origin, content) in ((row, plan.copy[row]) for row in part)
            if origin in place and found.metadata[place[origin]]["content"] == content
        }
        plan.embed |= {row: plan.copy[row][1] for row in part if row not in there}
        if there:
            at = list(there.values())
            contents = [plan.copy[row][1] for row in there]
            writer.take(there, contents, found.pooled[at], found.coded[at])
    writer.flush()


def _embed(
    plan: _Plan, writer: _Writer, embedder: Embedder, batch_size: int, workers: int | None, progress: bool
) -> None:
    """Embed and write what is new, batch by batch."""
    rows = list(plan.embed)
    if not rows:
        return
    files = [str(writer.listing.file(row)) for row in rows]
    for regions, batch in embedder.embed_batches(files, batch_size, workers, progress, "skip"):
        plan.bad += batch.bad
        if regions is not None:
            taken = [rows[index] for index in batch.indices.tolist()]
            pooled, coded = _vectors(regions, writer.store)
            writer.take(taken, [plan.embed[row] for row in taken], pooled, coded)
    writer.flush()


def _vectors(regions: Regions, store: Store) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.ascontiguousarray(regions.pooled.cpu().float().numpy())
    return pooled, encode_regions(regions, store.config)
