"""An index on disk or on a server: open it, build it from images or bring it up to date, verify it.

Legend: N images, B bytes of the encoded regions of one image.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from diml.data.images import BadImage
from diml.distributed import ProcessGroup
from diml.models.zoo import is_backbone
from diml.progress import progress_bar
from diml.search.filters import ColumnComparison, ColumnType
from diml.search.sources import OWN_COLUMNS, SourceListing, image_file, list_source
from diml.search.store import IndexConfig, Rows, Storage, Store, Value, decode_regions, encode_regions

if TYPE_CHECKING:
    from diml.matching import Matcher, Regions
    from diml.models import Embedder

#: Rows that are embedded but not yet written are written at the latest after this time.
_SECONDS_UNWRITTEN: Final = 20.0
_PART: Final = 512


def is_milvus(uri: str) -> bool:
    """Whether a place is a Milvus server or a file of Milvus Lite; otherwise it is a folder of LanceDB."""
    return uri.startswith(("http://", "https://", "tcp://")) or Path(uri).suffix == ".db"


def is_index(place: str) -> bool:
    """Whether a place is one of Milvus, or a folder of LanceDB that holds an index."""
    return is_milvus(place) or (Path(_expanded(place)) / "images.lance").is_dir()


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open an existing index.

    Args:
        uri: a folder (LanceDB), `NAME.db` (Milvus Lite), or `http://host:port` (a Milvus server or cluster; see
            `diml.search.backends.milvus`).

    Returns:
        The store; close it after use.

    Raises:
        IndexNotFoundError: there is no index.
        ConnectionError: no server answers.
        ValueError: the place holds something else, or the extra for it is not installed.

    Example:
        >>> open_store("photos.index").count()  # doctest: +SKIP
        5421
    """
    place = _expanded(uri)
    if is_milvus(place):
        from diml.search.backends.milvus import MilvusStore

        return MilvusStore.open(place)
    from diml.search.backends.lance import LanceStore

    return LanceStore(Path(place))


def create_store(uri: str | os.PathLike[str], config: IndexConfig) -> Store:
    """Create an empty index, or open the existing one; see `open_store`.

    Raises:
        ValueError: the existing index has another embedder, or stores something else; the message says what differs.
        FileExistsError: the place holds something else.
    """
    place = _expanded(uri)
    if is_milvus(place):
        from diml.search.backends.milvus import MilvusStore, read_place

        store: Store = MilvusStore.create(place, config)
        shown = read_place(place).shown  # without a password
    else:
        from diml.search.backends.lance import LanceStore

        store, shown = LanceStore.create(Path(place), config), place
    try:
        _require_compatible(store.config, config, shown)
    except ValueError:
        store.close()
        raise
    return store


def _expanded(uri: str | os.PathLike[str]) -> str:
    return os.path.expanduser(os.fspath(uri))  # noqa: PTH111 - a URI is not a path


def _require_compatible(existing: IndexConfig, wanted: IndexConfig, shown: str) -> None:
    """Raise ValueError for an existing index of another embedder, storage or columns."""
    if existing.embedder != wanted.embedder:
        raise ValueError(
            f"index: {shown} was built with another embedder ({existing.embedder[:12]}..., got "
            f"{wanted.embedder[:12]}...; its model: {dict(existing.model)}); use that model, or build a new index"
        )
    for name in ("dim", "num_regions", "grid", "storage"):
        if getattr(existing, name) != getattr(wanted, name):
            need, got = getattr(existing, name), getattr(wanted, name)
            raise ValueError(f"index: {shown} has {name} {need}, got {got}; omit {name}, or build a new index")
    for column, kind in wanted.columns.items():
        if existing.columns.get(column) != kind:
            known = ", ".join(f"{name} ({kind})" for name, kind in existing.columns.items())
            raise ValueError(f"index: {shown} has no column {column} ({kind}), only {known}; build a new index")


@dataclass(frozen=True)
class BuildReport:
    """What one run of `build_index` did, in all its processes.

    Args:
        embedded: images embedded: new ones, and those whose content has changed.
        copied: images whose content was known under another name, or of which only the metadata is new.
        unchanged: images already up to date.
        removed: images missing from their source.
        bad: images that cannot be read, with the reason; rows indexed before for them are kept.
        total: rows of the index now.
    """

    embedded: int
    copied: int
    unchanged: int
    removed: int
    bad: tuple[BadImage, ...] = field(repr=False)
    total: int


def build_index(
    images: str | os.PathLike[str] | SourceListing,
    uri: str | os.PathLike[str],
    embedder: Embedder,
    *,
    model: str,
    architecture: str | None = None,
    matcher: Matcher | None = None,
    storage: Storage = "float16",
    batch_size: int = 64,
    commit_every: int = 512,
    workers: int | None = None,
    progress: bool = False,
    keep_missing: bool = False,
    processes: ProcessGroup | None = None,
) -> BuildReport:
    """Build an index of images, or bring an existing one up to date.

    Everything written is kept, also when the process is killed; the next run continues from there.

    Args:
        images: a folder, a CSV file with a column `path`, or what `list_source` returns for one.
        uri: of the index; see `open_store`.
        embedder: turns the images into vectors.
        model, architecture: arguments of `load_embedder` that gave the embedder; the index records them.
        matcher: how images of the index are compared by default, saved when the index is created; that of the embedder
            when omitted.
        storage: of the regions: "float16", "int8", or "none" for pooled vectors only.
        batch_size, workers, progress: as in `Embedder.embed`.
        commit_every: number of images written together, at the latest after 20 seconds; at most this many are embedded
            again after a crash.
        keep_missing: keep rows whose images are missing from the source.
        processes: this process among others that build the same index together; see `diml.distributed.process_group`.

    Returns:
        BuildReport, the same in every process.

    Raises:
        ValueError: the existing index has another embedder, storage, matcher or metadata; nothing is changed then.

    Example:
        >>> build_index("photos", "photos.index", embedder, model="mobilenetv2_100").total  # doctest: +SKIP
        5421
    """
    if batch_size < 1 or commit_every < 1:
        raise ValueError(f"batch_size, commit_every: need at least 1, got {batch_size} and {commit_every}")
    processes = ProcessGroup() if processes is None else processes
    listing = images if isinstance(images, SourceListing) else list_source(images)
    store = _store_of(listing, uri, embedder, model, architecture, matcher, storage)
    known = _known_rows(store, listing)
    plan = _plan(listing, known, store, processes, progress)
    processes.wait()  # no process writes before all have read the present state
    writer = _RowWriter(store, listing, commit_every)
    _copy(plan, writer)
    copied = writer.count
    _embed(plan, writer, embedder, batch_size, workers, progress and processes.is_first)
    own = (writer.count - copied, copied, plan.unchanged, [vars(bad) for bad in plan.bad])
    parts = processes.gather_objects(own)
    removed = 0
    if processes.is_first:
        present = {listing.name(row) for row in range(len(listing))}
        missing = [] if keep_missing else [name for name in known.rows if name not in present]
        removed = store.remove(missing)
        if removed or any(part[0] + part[1] for part in parts):
            store.optimize()
    removed = processes.gather_objects(removed)[0]
    embedded, copies, unchanged = (sum(part[place] for part in parts) for place in range(3))
    bad = sorted((BadImage(**one) for part in parts for one in part[3]), key=lambda one: one.path)
    return BuildReport(embedded, copies, unchanged, removed, tuple(bad), store.count())


def _store_of(
    listing: SourceListing,
    uri: str | os.PathLike[str],
    embedder: Embedder,
    model: str,
    architecture: str | None,
    matcher: Matcher | None,
    storage: Storage,
) -> Store:
    """Create the index of a build, or open the existing one."""
    columns: dict[str, ColumnType] = {**OWN_COLUMNS, **listing.columns}
    regions = embedder.embed(Image.new("RGB", (64, 64)))  # R of the backbone's own cells is known only afterwards
    config = IndexConfig(
        dim=regions.dim,
        num_regions=0 if storage == "none" else regions.num_regions,
        grid=regions.grid,
        storage=storage,
        columns=columns,
        embedder=embedder.fingerprint(),
        model={
            "name_or_path": model if is_backbone(model) else str(Path(model).expanduser().resolve()),
            "architecture": architecture,
            "config": embedder.config.to_dict(),
        },
        matcher=embedder.matcher if matcher is None else matcher,
    )
    store = create_store(uri, config)
    if matcher is not None and store.config.matcher != matcher:
        saved = store.config.matcher
        store.close()
        raise ValueError(
            f"matcher: {uri} was built with {saved}, got {matcher}; omit it and set it when searching, or build a new "
            "index"
        )
    return store


def content_of(file: Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class _BuildPlan:
    """The work on the images of one process: row of the listing -> content."""

    embed: dict[int, str] = field(default_factory=dict)
    copy: dict[int, tuple[str, str]] = field(default_factory=dict)  # id to copy from, content
    unchanged: int = 0
    bad: list[BadImage] = field(default_factory=list)


@dataclass(frozen=True)
class _KnownRows:
    """What the index holds: id -> metadata of this source's rows; content -> an id that has it, of all rows."""

    rows: Mapping[str, Mapping[str, Value]]
    by_content: Mapping[str, str]


def _known_rows(store: Store, listing: SourceListing) -> _KnownRows:
    rows: dict[str, Mapping[str, Value]] = {}
    for part in store.listing(ColumnComparison("source", "=", listing.source)):
        rows |= dict(zip(part.ids, part.metadata, strict=True))
    by_content: dict[str, str] = {}
    for part in store.listing(columns=["content"]):
        by_content |= {str(entry["content"]): name for name, entry in zip(part.ids, part.metadata, strict=True)}
    return _KnownRows(rows, by_content)


def _plan(
    listing: SourceListing, known: _KnownRows, store: Store, processes: ProcessGroup, progress: bool
) -> _BuildPlan:
    """Read every file of this process's share and compare it with the index."""
    plan, own = _BuildPlan(), processes.strided(len(listing))
    with progress_bar(len(own), show=progress and processes.is_first, what="reading") as advance:
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


def _metadata(listing: SourceListing, row: int, content: str, store: Store) -> dict[str, Value]:
    own: dict[str, Value] = {"source": listing.source, "path": listing.paths[row], "content": content}
    return own | listing.metadata(row, store.config.columns)


class _RowWriter:
    """Collects rows and writes them in batches; `count` of them are acknowledged by the store."""

    def __init__(self, store: Store, listing: SourceListing, commit_every: int) -> None:
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
        """Write the waiting rows."""
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


def _copy(plan: _BuildPlan, writer: _RowWriter) -> None:
    """Write images whose vectors the index has; those removed from it in the meantime are embedded instead."""
    rows = list(plan.copy)
    for start in range(0, len(rows), writer.commit_every):
        part = rows[start : start + writer.commit_every]
        found = writer.store.regions(list(dict.fromkeys(plan.copy[row][0] for row in part)))
        place = {name: at for at, name in enumerate(found.ids)}
        held = {
            row: place[origin]
            for row, (origin, content) in ((row, plan.copy[row]) for row in part)
            if origin in place and found.metadata[place[origin]]["content"] == content
        }
        plan.embed |= {row: plan.copy[row][1] for row in part if row not in held}
        if held:
            at = list(held.values())
            contents = [plan.copy[row][1] for row in held]
            writer.take(held, contents, found.pooled[at], found.coded[at])
    writer.flush()


def _embed(
    plan: _BuildPlan, writer: _RowWriter, embedder: Embedder, batch_size: int, workers: int | None, progress: bool
) -> None:
    """Embed and write new images, batch by batch."""
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


@dataclass(frozen=True)
class IndexCheck:
    """The result of `verify_index`.

    Args:
        rows: number of images checked.
        faults: defects of the index itself, one line each.
        stale: images changed or missing since they were indexed, one line each; `diml index build` updates them.
    """

    rows: int
    faults: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the index has no faults and is up to date."""
        return not self.faults and not self.stale

    def __repr__(self) -> str:
        return f"IndexCheck(rows={self.rows}, faults={len(self.faults)}, stale={len(self.stale)})"


def verify_index(store: Store, *, images: bool = True, progress: bool = False) -> IndexCheck:
    """Read every row of an index, and compare the image files with their indexed content.

    Args:
        store: the index.
        images: also read the image files.
        progress: show a progress bar.
    """
    listed = [name for part in store.listing(columns=[]) for name in part.ids]
    faults = [f"{name}: stored {count} times" for name, count in Counter(listed).items() if count > 1]
    stale: list[str] = []
    names = list(dict.fromkeys(listed))
    with progress_bar(len(names), show=progress, what="verifying") as advance:
        for start in range(0, len(names), _PART):
            asked = names[start : start + _PART]
            rows = store.regions(asked)
            faults += _row_faults(rows, asked, store.config)
            if images:
                stale += [line for entry in rows.metadata if (line := _stale(entry)) is not None]
            advance(len(asked))
    return IndexCheck(len(names), tuple(faults), tuple(stale))


def _row_faults(rows: Rows, asked: list[str], config: IndexConfig) -> list[str]:
    fetched = set(rows.ids)
    faults = [f"{name}: listed, but cannot be fetched" for name in asked if name not in fetched]
    length = np.linalg.norm(rows.pooled, axis=1)
    sound = (np.abs(length - 1) < 1e-3) | (length == 0)  # False for NaN
    faults += [f"{rows.ids[row]}: pooled vector of length {length[row]:.4g}" for row in np.flatnonzero(~sound)]
    if config.storage != "none":
        try:
            decode_regions(rows, config)
        except ValueError as error:
            faults.append(f"{asked[0]} to {asked[-1]}: {error}")
    return faults


def _stale(metadata: Mapping[str, Value]) -> str | None:
    if not {"source", "path", "content"} <= metadata.keys():
        return None
    file = image_file(metadata)
    try:
        return None if content_of(file) == metadata["content"] else f"{file}: changed since it was indexed"
    except FileNotFoundError:
        return f"{file}: missing"
    except OSError as error:
        return f"{file}: cannot be read ({error})"
