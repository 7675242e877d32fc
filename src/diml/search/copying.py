"""Copying an index to another place or another database, without embedding anything: whole, or not at all.

A copy is written under another name, read back, compared with its original, and then given its name. A process that is
killed before that leaves the place empty; what it had written is removed by the next copy.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diml.files import flush, require_writable, scratch_folder
from diml.progress import ShowProgress, progress_bar
from diml.search.build import LARGEST_TEXT
from diml.search.index import create_store, is_milvus, open_store
from diml.search.store import IndexConfig, Store

#: Bytes of vectors that are copied together.
_PART_BYTES: Final = 32 * 2**20
#: Rows that are searched for in both indexes, the number of hits that are compared, and how far cosines may differ.
_QUERIES: Final = 32
_HITS: Final = 10
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class CopyReport:
    """What `copy_index` did.

    Args:
        rows: number of images copied; all have been read back and have the checksums of the original.
        texts: names of what is kept with the index and was copied too, such as `calibration.json`.
        queries: number of searches that were compared.
        difference: largest difference of a cosine in them.
    """

    rows: int
    texts: tuple[str, ...]
    queries: int
    difference: float


def copy_index(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: ShowProgress = False
) -> CopyReport:
    """Copy an index: settings, rows with their checksums, calibration.

    Args:
        source: an index; see `open_store`. It is only read.
        destination: a place where nothing is yet, of any database.
        progress: show progress bars, as in `progress_bar`.

    Raises:
        IndexNotFoundError: there is no index at the source.
        FileExistsError: something is at the destination already.
        ValueError: the database of the destination cannot hold a value, or the source was changed meanwhile.
        DamagedIndexError: rows of the source are not as they were written.
        OSError: the copy is not what the original is, or the disk is too small.

    In every case of these nothing is at the destination.

    Example:
        >>> copy_index("photos.index", "http://127.0.0.1:19530/photos").rows  # doctest: +SKIP
        5421
    """
    original = open_store(source)
    try:
        with _new_store(destination, original) as copy:
            return _copy(original, copy, progress)
    finally:
        original.close()


def _copy(original: Store, copy: Store, progress: ShowProgress) -> CopyReport:
    version = original.version()
    ids = [name for part in original.listing(columns=[]) for name in part.ids]
    doubled = [name for name, count in Counter(ids).items() if count > 1]
    if doubled:
        raise ValueError(f"source: {doubled[0]} is stored more than once; build the index again")
    texts = {name: original.read_text(name) or "" for name in original.texts()}
    for name, text in texts.items():
        if copy.info().kind.startswith("Milvus") and len(text) > LARGEST_TEXT:
            raise ValueError(f"destination: {name} is {len(text):,} bytes, and Milvus keeps at most {LARGEST_TEXT:,}")
        copy.write_text(name, text)
    checksums = np.empty(len(ids), np.int64)
    with progress_bar(len(ids), show=progress, what="copying") as advance:
        for start, part in _parts(ids, original.config):
            rows = original.regions(part)
            if rows.ids != tuple(part):
                raise ValueError(_CHANGED)
            assert rows.checksums is not None
            checksums[start : start + len(part)] = rows.checksums
            copy.add(rows)
            advance(len(part))
    copy.optimize(new=True)
    queries = _read_back(copy, ids, checksums, progress)
    difference = _difference(original, copy, queries)
    if original.version() != version:
        raise ValueError(_CHANGED)
    if not difference <= _TOLERANCE:
        raise OSError(f"destination: searches differ by {difference:.1e} from those of the source; nothing was kept")
    return CopyReport(len(ids), tuple(texts), len(queries), difference)


_CHANGED: Final = "source: the index was changed while it was being copied; nothing was kept; copy it again"


def _parts(ids: Sequence[str], config: IndexConfig) -> Iterator[tuple[int, Sequence[str]]]:
    size = max(1, _PART_BYTES // (config.row_bytes + 4 * config.dim))
    yield from ((start, ids[start : start + size]) for start in range(0, len(ids), size))


def _read_back(
    copy: Store, ids: Sequence[str], checksums: NDArray[np.int64], progress: ShowProgress
) -> NDArray[np.float32]:
    """Compare every row with the checksum of its original; returns some of the pooled vectors, (Q, D)."""
    queries = []
    every = max(1, len(ids) // _QUERIES)
    if copy.count() != len(ids):
        raise OSError(f"destination: {copy.count():,} rows were kept of {len(ids):,}; nothing was kept; copy it again")
    with progress_bar(len(ids), show=progress, what="checking") as advance:
        for start, part in _parts(ids, copy.config):
            rows = copy.regions(part)  # checks that every row is what its own checksum says
            assert rows.checksums is not None
            if rows.ids != tuple(part) or not np.array_equal(rows.checksums, checksums[start : start + len(part)]):
                raise OSError("destination: rows came back as other than they were copied; nothing was kept")
            queries.append(rows.pooled[-start % every :: every])
            advance(len(part))
    return np.concatenate([np.empty((0, copy.config.dim), np.float32), *queries])[:_QUERIES]


def _difference(original: Store, copy: Store, queries: NDArray[np.float32]) -> float:
    """The largest difference of a cosine between searches in both; infinite where one finds fewer."""
    if not len(queries):
        return 0.0
    one, other = (store.nearest(queries, _HITS, exact=True) for store in (original, copy))
    if [len(near.ids) for near in one] != [len(near.ids) for near in other]:
        return float("inf")
    return max(float(np.abs(a.cosine - b.cosine).max()) for a, b in zip(one, other, strict=True))


@contextmanager
def _new_store(destination: str | os.PathLike[str], original: Store) -> Iterator[Store]:
    """Yield an empty index with the settings of another; it gets its place when the block succeeds, else is removed."""
    place = os.path.expanduser(os.fspath(destination))  # noqa: PTH111 - a URI is not a path
    if is_milvus(place) and "://" in place:
        from diml.search.backends.milvus import new_collection

        with new_collection(place, original.config) as collection:
            yield collection
        return
    if "://" in place:
        raise ValueError(
            f"destination: need a folder, NAME.db or a Milvus server, got {place}; for a registered store, build the "
            "index with `diml index build`"
        )
    target = Path(place)
    _require_nothing_at(target)
    config = original.config
    space = int(original.count() * (1.4 * config.row_bytes + 8 * config.dim))
    require_writable(target.parent, space=space)
    with scratch_folder(target) as scratch:
        new = scratch / f"new{target.suffix}"
        made: Store = create_store(new, config)
        try:
            yield made
        finally:
            made.close()
        _require_nothing_at(target)
        new.rename(target)
        flush(target.parent)


def _require_nothing_at(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"destination: {target} exists; copy to a new place, or delete it before")
