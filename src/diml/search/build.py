"""Building an index of images, or bringing it up to date: only what is new or changed is embedded.

Legend: N images.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from diml.data.images import BadImage, BadImageError
from diml.distributed import ProcessGroup
from diml.matching import LearnedMatcher
from diml.models.zoo import is_name
from diml.progress import progress_bar
from diml.search.codebooks import fit_codebooks
from diml.search.columns import FittedColumns, columns_of_index, columns_of_new_index
from diml.search.filters import ColumnComparison, ColumnType
from diml.search.index import content_of, create_store, is_milvus, open_store
from diml.search.index_model import HEAD_FILE, is_unfitted, kept_head, use_head
from diml.search.labels import keep_label_from, labels_of_sources
from diml.search.removals import Removals, find_removals
from diml.search.sources import SourceListing, list_source
from diml.search.store import IndexConfig, IndexNotFoundError, Rows, Storage, Store, Value, encode_regions, printed
from diml.search.tuned import index_matcher
from diml.search.whitening import FittedWhitening, fit_whitening

if TYPE_CHECKING:
    from diml.matching import Matcher, Regions
    from diml.models import Embedder

#: How regions are stored unless something else is said; what is lost is measured in docs/search.md.
DEFAULT_STORAGE: Final[Storage] = "int8"
#: Bytes of a text that every back end keeps; a server of Milvus takes 1.5 MB with all that belongs to a collection.
LARGEST_TEXT: Final = 1_000_000
#: Rows that are embedded but not yet written are written at the latest after this time.
_SECONDS_UNWRITTEN: Final = 20.0


@dataclass(frozen=True)
class BuildReport:
    """What one run of `build_index` did, in all its processes.

    Args:
        embedded: images embedded: new ones, and those whose content has changed.
        copied: images whose content is also that of another image, or of which only the metadata is new.
        moved: images known under another path that is gone: renamed, or with their whole source.
        unchanged: images already up to date.
        removed: images missing from their source.
        bad: images that cannot be read, with the reason; rows indexed before for them are kept.
        left_out: files of a folder that are no images: what -> how many, see `FoundImages`.
        notices: what was decided of columns and sources, one line each.
        total: rows of the index now.
    """

    embedded: int
    copied: int
    moved: int
    unchanged: int
    removed: int
    bad: tuple[BadImage, ...] = field(repr=False)
    left_out: Mapping[str, int] = field(repr=False)
    notices: tuple[str, ...] = field(repr=False)
    total: int


def build_index(
    images: str | os.PathLike[str] | SourceListing,
    uri: str | os.PathLike[str],
    embedder: Embedder,
    *,
    model: str,
    architecture: str | None = None,
    weights_file: str | os.PathLike[str] | None = None,
    matcher: Matcher | None = None,
    storage: Storage | None = None,
    types: Mapping[str, ColumnType] | None = None,
    batch_size: int = 64,
    commit_every: int = 512,
    workers: int | None = None,
    progress: bool = False,
    keep_missing: bool = False,
    allow_removals: bool = False,
    processes: ProcessGroup | None = None,
) -> BuildReport:
    """Build an index of images, or bring an existing one up to date.

    Everything written is kept, also when the process is killed; the next run continues from there.

    Args:
        images: a folder, a CSV file with a column `path`, or what `list_source` returns for one.
        uri: of the index; see `open_store`.
        embedder: turns the images into vectors. A head "whiten" that is not fitted (see `Embedder.with_whitening`) is
            fitted here, in place and without labels, on at most 2,000 images of a new index, and kept with it; that of
            an existing index is taken from it.
        model, architecture, weights_file: arguments of `load_embedder` that gave the embedder; the index records them.
        matcher: how images of the index are compared by default, saved when the index is created; that of the embedder
            when omitted.
        storage: of the regions: "float16", "int8", "1kb" for codes that are fitted on at most 2,000 images of a new
            index and kept with it, or "none" for pooled vectors only; when omitted that of the existing index, else
            "int8".
        types: of columns of a CSV file, in place of those that their cells have.
        batch_size, workers, progress: as in `Embedder.embed`.
        commit_every: number of images written together, at the latest after 20 seconds; at most this many are embedded
            again after a crash.
        keep_missing: keep rows whose images are missing from the source.
        allow_removals: also remove more than a tenth of the index (and more than 10 images), or all images of a folder.
        processes: this process among others that build the same index together; see `diml.distributed.process_group`.

    Returns:
        BuildReport, the same in every process.

    Raises:
        ValueError: the existing index has another embedder, storage, matcher or metadata, or too many images would be
            removed; nothing is changed then.

    Example:
        >>> build_index("photos", "photos.index", embedder, model="mobilenetv2_100").total  # doctest: +SKIP
        5421
    """
    if batch_size < 1 or commit_every < 1:
        raise ValueError(f"batch_size, commit_every: need at least 1, got {batch_size} and {commit_every}")
    processes = ProcessGroup() if processes is None else processes
    existing = _config_of(uri)
    if storage is None:
        storage = DEFAULT_STORAGE if existing is None else existing.storage
    if storage != "none":  # known before the source is listed
        embedder.check_matcher(embedder.matcher if matcher is None else matcher)
    _require_storage(storage, existing)
    listing = images
    if not isinstance(listing, SourceListing):
        listing = list_source(listing, types, kept=labels_of_sources(uri))
    whitening = None
    loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    if is_unfitted(embedder):
        whitening = _whitening(uri, existing, listing, embedder, processes, loading)
    texts = {} if whitening is None else {HEAD_FILE: whitening.text}
    codebooks = "" if existing is None else existing.codebooks
    if storage == "1kb" and existing is None:
        codebooks = _fitted_codebooks(uri, listing, embedder, whitening, processes, loading)
    store, fitted = _store_of(
        listing, uri, existing, embedder, model, architecture, weights_file, matcher, storage, codebooks, texts
    )
    known = _known_rows(store, listing)
    plan = _plan(listing, known, fitted.columns, processes, progress)
    removals = _agreed_removals(plan, store, listing, known, processes)
    if keep_missing:
        removals = Removals(removals.moved, (), removals.sources)
    elif removals.why_not is not None and not allow_removals:
        store.close()
        raise ValueError(
            f"index: {removals.why_not}. Nothing was changed; --allow-removals goes on, --keep-missing keeps them"
        )
    _require_labels(store, listing, removals.sources)
    rewritten = dict(store.config.columns) != dict(fitted.columns)
    _prepare(store, fitted, processes)
    if processes.is_first:
        keep_label_from(store, listing)
    writer = _RowWriter(store, listing, fitted.columns, commit_every)
    _copy(plan, writer)
    copied = writer.count
    if whitening is not None:
        _project(plan, writer, embedder, whitening, batch_size)
    _embed(plan, writer, embedder, batch_size, workers, progress and processes.is_first)
    own = (writer.count - copied, copied, plan.unchanged, [vars(bad) for bad in plan.bad])
    parts = processes.gather_objects(own)
    if processes.is_first:
        removed = store.remove([*removals.moved, *removals.lost])
        if removed or rewritten or any(part[0] + part[1] for part in parts):
            store.optimize(new=existing is None)
    processes.wait()
    embedded, copies, unchanged = (sum(part[place] for part in parts) for place in range(3))
    bad = sorted((BadImage(**one) for part in parts for one in part[3]), key=lambda one: one.path)
    return BuildReport(
        embedded=embedded,
        copied=max(0, copies - len(removals.moved)),
        moved=len(removals.moved),
        unchanged=unchanged,
        removed=len(removals.lost),
        bad=(*listing.bad, *bad),
        left_out=listing.left_out,
        notices=(
            *_told(whitening),
            *fitted.notices,
            *(f"{source} is now {listing.source}" for source in removals.sources),
        ),
        total=store.count(),
    )


def _store_of(
    listing: SourceListing,
    uri: str | os.PathLike[str],
    existing: IndexConfig | None,
    embedder: Embedder,
    model: str,
    architecture: str | None,
    weights_file: str | os.PathLike[str] | None,
    matcher: Matcher | None,
    storage: Storage,
    codebooks: str,
    texts: Mapping[str, str],
) -> tuple[Store, FittedColumns]:
    """Create the index of a build, or open the existing one; with the columns that it needs."""
    new = columns_of_new_index(listing) if existing is None else None
    used = embedder.matcher if matcher is None else matcher
    regions = embedder.embed(Image.new("RGB", (64, 64)))  # R of the backbone's own cells is known only afterwards
    config = IndexConfig(
        dim=regions.dim,
        num_regions=0 if storage == "none" else regions.num_regions,
        grid=regions.grid,
        storage=storage,
        codebooks=codebooks,
        masses=storage != "none" and regions.masses is not None,
        columns={} if new is None else new.columns,
        named_types=() if new is None else new.named_types,
        embedder=embedder.fingerprint(),
        model={
            "name_or_path": model if is_name(model) else str(Path(model).expanduser().resolve()),
            "architecture": architecture,
            "weights_file": None if weights_file is None else str(Path(weights_file).expanduser().resolve()),
            "config": embedder.config.to_dict(),
        },
        matcher=used,
        scorer=used.scorer_id if isinstance(used, LearnedMatcher) and storage != "none" else "",
    )
    store = create_store(uri, config, texts)
    try:
        _require_matcher(store, matcher, uri)
        return store, columns_of_index(store, listing) if new is None else new
    except ValueError:
        store.close()
        raise


def _config_of(uri: str | os.PathLike[str]) -> IndexConfig | None:
    """The settings of an existing index; None where there is none."""
    try:
        store = open_store(uri)
    except IndexNotFoundError:
        return None
    config = store.config
    store.close()
    return config


def _whitening(
    uri: str | os.PathLike[str],
    existing: IndexConfig | None,
    listing: SourceListing,
    embedder: Embedder,
    processes: ProcessGroup,
    loading: dict[str, Any],
) -> FittedWhitening | None:
    """Give the embedder its head: of a new index, fitted by the first process and returned; else the one kept."""
    if existing is not None:
        with contextlib.closing(open_store(uri)) as store:
            use_head(embedder, kept_head(store))
        return None
    fitted: FittedWhitening | None = None
    with processes.first_goes_ahead():
        if processes.is_first:
            fitted = fit_whitening(listing, embedder, **loading)
            if is_milvus(os.fspath(uri)) and len(fitted.text) > LARGEST_TEXT:
                raise ValueError(
                    f"dim: a head of {embedder.dim} channels takes {len(fitted.text):,} bytes, and Milvus keeps "
                    f"{LARGEST_TEXT:,} with a collection; use fewer channels, or a model that was saved with its head: "
                    "diml evaluate folder --data IMAGES --head whiten --save MODEL"
                )
    text, images = processes.gather_objects(None if fitted is None else (fitted.text, fitted.images))[0]
    if fitted is None:
        use_head(embedder, text)
        fitted = FittedWhitening(text, images, embedder.dim)
    return fitted


def _require_storage(storage: Storage, existing: IndexConfig | None) -> None:
    """Raise ValueError where codes are asked for, or are not, of an index that stores regions otherwise."""
    if existing is not None and storage != existing.storage and "1kb" in (storage, existing.storage):
        raise ValueError(f"storage: the index has {existing.storage}, got {storage}; omit it, or build a new index")


def _fitted_codebooks(
    uri: str | os.PathLike[str],
    listing: SourceListing,
    embedder: Embedder,
    whitening: FittedWhitening | None,
    processes: ProcessGroup,
    loading: dict[str, Any],
) -> str:
    """The text of the codebooks of a new index, fitted by the first process for all."""
    text: str | None = None
    with processes.first_goes_ahead():
        if processes.is_first:
            text = fit_codebooks(listing, embedder, whitening, **loading)
            if is_milvus(os.fspath(uri)) and len(text) > LARGEST_TEXT:
                raise ValueError(
                    f"storage: 1kb of {embedder.dim} channels has codebooks of {len(text):,} bytes, and Milvus keeps "
                    f"{LARGEST_TEXT:,} with a collection; use a head of fewer channels, or int8"
                )
    shared: str = processes.gather_objects(text)[0]
    return shared


def _told(whitening: FittedWhitening | None) -> tuple[str, ...]:
    if whitening is None:
        return ()
    return (f"head whiten, {whitening.dim} channels, fitted without labels on {whitening.images:,} of the images",)


def _require_matcher(store: Store, matcher: Matcher | None, uri: str | os.PathLike[str]) -> None:
    own = index_matcher(store).matcher
    if matcher is not None and own != matcher:
        raise ValueError(
            f"matcher: {uri} has {own}, got {matcher}; omit it and set it when searching, or build a new index"
        )


def _require_labels(store: Store, listing: SourceListing, moved: tuple[str, ...]) -> None:
    """Raise ValueError where a source has moved whose labels were chosen, as those of the new place are not."""
    known = {} if listing.label_from is not None else labels_of_sources(store)
    for source in moved:
        if source in known:
            store.close()
            raise ValueError(
                f"label_from: {source} is now {listing.source}, and its labels were from {known[source]}. Nothing was "
                f"changed; give --label-from {known[source]} for the new place"
            )


def _agreed_removals(
    plan: _BuildPlan, store: Store, listing: SourceListing, known: _KnownRows, processes: ProcessGroup
) -> Removals:
    """What is missing, found by the first process for all, after all have read the present state."""
    contents = [content for part in processes.gather_objects(plan.contents) for content in part]
    found = find_removals(store, listing, known.rows, contents) if processes.is_first else None
    agreed: Removals = processes.gather_objects(found)[0]
    return agreed


def _prepare(store: Store, fitted: FittedColumns, processes: ProcessGroup) -> None:
    """Make missing indexes and columns, in the first process; the others see them before they write."""
    if processes.is_first:
        if store.faults():
            store.optimize()
        store.set_columns(fitted.columns, fitted.named_types)
    processes.wait()
    if not processes.is_first:
        store.set_columns(fitted.columns, fitted.named_types)  # reads the settings again


@dataclass
class _BuildPlan:
    """The work on the images of one process: row of the listing -> content."""

    embed: dict[int, str] = field(default_factory=dict)
    copy: dict[int, tuple[str, str]] = field(default_factory=dict)  # id to copy from, content
    unchanged: int = 0
    bad: list[BadImage] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)


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
    listing: SourceListing,
    known: _KnownRows,
    columns: Mapping[str, ColumnType],
    processes: ProcessGroup,
    progress: bool,
) -> _BuildPlan:
    """Read every file of this process's share and compare it with the index."""
    plan, own = _BuildPlan(), processes.strided(len(listing))
    with progress_bar(len(own), show=progress and processes.is_first, what="reading") as advance:
        for row in own:
            advance(1)
            file, name = listing.file(row), listing.name(row)
            try:
                content = content_of(file)
            except (OSError, BadImageError) as error:
                reason = error.reason if isinstance(error, BadImageError) else f"cannot be read: {error}"
                missing = isinstance(error, FileNotFoundError)
                plan.bad.append(BadImage(str(file), "no such file" if missing else reason))
                continue
            plan.contents.append(content)
            before = known.rows.get(name)
            if before is not None and before["content"] == content:
                if _same(before, _metadata(listing, row, content, columns)):
                    plan.unchanged += 1
                else:
                    plan.copy[row] = (name, content)
            elif content in known.by_content:
                plan.copy[row] = (known.by_content[content], content)
            else:
                plan.embed[row] = content
    return plan


def _same(before: Mapping[str, Value], wanted: Mapping[str, Value]) -> bool:
    """Whether metadata is the same, whatever the types of its columns are now."""
    names = before.keys() | wanted.keys()
    return all(_text(before.get(name)) == _text(wanted.get(name)) for name in names)


def _text(value: Value) -> str | None:
    return None if value is None else printed(value)


def _metadata(listing: SourceListing, row: int, content: str, columns: Mapping[str, ColumnType]) -> dict[str, Value]:
    own: dict[str, Value] = {"source": listing.source, "path": listing.paths[row], "content": content}
    return own | listing.metadata(row, columns)


class _RowWriter:
    """Collects rows and writes them in batches; `count` of them are acknowledged by the store."""

    def __init__(
        self, store: Store, listing: SourceListing, columns: Mapping[str, ColumnType], commit_every: int
    ) -> None:
        self.store, self.listing, self.commit_every, self.count = store, listing, commit_every, 0
        self._columns = columns
        self._waiting: list[Rows] = []
        self._since = time.monotonic()

    def take(self, rows: Iterable[int], contents: Iterable[str], pooled: np.ndarray, coded: np.ndarray) -> None:
        """Take rows of the listing with their vectors; write when enough are waiting."""
        rows = list(rows)
        ids = tuple(self.listing.name(row) for row in rows)
        pairs = zip(rows, contents, strict=True)
        metadata = tuple(_metadata(self.listing, row, content, self._columns) for row, content in pairs)
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


def _project(
    plan: _BuildPlan, writer: _RowWriter, embedder: Embedder, whitening: FittedWhitening, batch_size: int
) -> None:
    """Write the images that the head was fitted on; they are not embedded again."""
    rows = [row for row in plan.embed if row in whitening.place]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        pooled, coded = _vectors(whitening.regions(part, embedder), writer.store, embedder)
        writer.take(part, [plan.embed.pop(row) for row in part], pooled, coded)
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
            pooled, coded = _vectors(regions, writer.store, embedder)
            writer.take(taken, [plan.embed[row] for row in taken], pooled, coded)
    writer.flush()


def _vectors(regions: Regions, store: Store, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.ascontiguousarray(regions.pooled.cpu().float().numpy())
    return pooled, encode_regions(regions, store.config, embedder.matcher)
