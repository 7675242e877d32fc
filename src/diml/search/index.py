"""An index on disk or on a server: open it, create it, verify it.

Legend: N images, B bytes of the encoded regions of one image.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from diml.data.images import BadImageError, opened_file
from diml.extending import registered, registered_names
from diml.matching import QuantizedRegions
from diml.progress import progress_bar
from diml.search.sources import image_file
from diml.search.store import IndexConfig, Rows, Store, Value, decode_regions, row_faults
from diml.spelling import did_you_mean

_PART: Final = 512
#: How far the length of a region in int8 may be from 1: its rounding.
_CODED_TOLERANCE: Final = 0.05


def is_milvus(uri: str) -> bool:
    """Whether a place is a Milvus server or a file of Milvus Lite; otherwise it is a folder of LanceDB."""
    return uri.startswith(("http://", "https://", "tcp://")) or Path(uri).suffix == ".db"


def is_index(place: str) -> bool:
    """Whether a place is one of Milvus or of a registered store, or a folder of LanceDB that holds an index."""
    return (
        is_milvus(place)
        or _scheme(place) in registered_names("stores")
        or (Path(_expanded(place)) / "images.lance").is_dir()
    )


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open an existing index.

    Args:
        uri: a folder (LanceDB), `NAME.db` (Milvus Lite), `http://host:port` (a Milvus server or cluster; see
            `diml.search.backends.milvus`), or `NAME://...` of a registered store (see `diml.extending`).

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
    if _scheme(place):
        opened: Store = _own_store(place).open(place)
        return opened
    from diml.search.backends.lance import LanceStore

    return LanceStore(Path(place))


def create_store(uri: str | os.PathLike[str], config: IndexConfig, texts: Mapping[str, str] | None = None) -> Store:
    """Create an empty index, or open the existing one; see `open_store`.

    Args:
        uri: of the index.
        config: its settings.
        texts: what is kept with a new index from its beginning, name -> text; see `Store.write_text`.

    Raises:
        ValueError: the existing index has another embedder, or stores something else; the message says what differs.
        FileExistsError: the place holds something else.
    """
    place = _expanded(uri)
    if is_milvus(place):
        from diml.search.backends.milvus import MilvusStore, read_place

        store: Store = MilvusStore.create(place, config, texts)
        shown = read_place(place).shown  # without a password
    elif _scheme(place):
        store, shown = _own_store(place).create(place, config, texts), place
    else:
        from diml.search.backends.lance import LanceStore

        store, shown = LanceStore.create(Path(place), config, texts), place
    try:
        _require_compatible(store.config, config, shown)
    except ValueError:
        store.close()
        raise
    return store


def _scheme(place: str) -> str:
    """What stands before "://"; empty where a place is a path."""
    scheme, separator, _ = place.partition("://")
    return scheme if separator else ""


def _own_store(place: str) -> Any:
    """The class of a registered store, with class methods `open(uri)` and `create(uri, config, texts)`."""
    own = registered("stores", _scheme(place))
    if own is None:
        near = did_you_mean(_scheme(place), ("http", "https", "tcp", *registered_names("stores")))
        raise ValueError(
            f"index: no store for {_scheme(place)}://; {near}; register it, or install the package that declares it"
        )
    return own


def _expanded(uri: str | os.PathLike[str]) -> str:
    return os.path.expanduser(os.fspath(uri))  # noqa: PTH111 - a URI is not a path


def _require_compatible(existing: IndexConfig, wanted: IndexConfig, shown: str) -> None:
    """Raise ValueError for an existing index of another embedder or storage."""
    if existing.embedder != wanted.embedder:
        raise ValueError(
            f"index: {shown} was built with another embedder ({existing.embedder[:12]}..., got "
            f"{wanted.embedder[:12]}...; its model: {dict(existing.model)}); use that model, or build a new index"
        )
    for name in ("dim", "num_regions", "grid", "storage"):
        if getattr(existing, name) != getattr(wanted, name):
            need, got = getattr(existing, name), getattr(wanted, name)
            raise ValueError(f"index: {shown} has {name} {need}, got {got}; omit {name}, or build a new index")


def content_of(file: Path) -> str:
    """Return the sha256 of a regular file, 64 hexadecimal digits; otherwise as `opened_file`."""
    with opened_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    """Read every row of an index, check it, and compare the image files with their indexed content.

    A row has to be as it was written, by its checksum, and its vectors of unit length.

    Args:
        store: the index.
        images: also read the image files.
        progress: show a progress bar.
    """
    listed = [name for part in store.listing(columns=[]) for name in part.ids]
    faults = [f"{name}: stored {count} times" for name, count in Counter(listed).items() if count > 1]
    faults += [*store.faults(), *_text_faults(store)]
    stale: list[str] = []
    names = list(dict.fromkeys(listed))
    with progress_bar(len(names), show=progress, what="verifying") as advance:
        for start in range(0, len(names), _PART):
            asked = names[start : start + _PART]
            rows = store.regions(asked, check=False)
            faults += _faults_of(rows, asked, store.config)
            if images:
                stale += [line for entry in rows.metadata if (line := _stale(entry)) is not None]
            advance(len(asked))
    return IndexCheck(len(names), tuple(faults), tuple(stale))


def _text_faults(store: Store) -> list[str]:
    """What is wrong with the head, the matcher and the sources' labels that are kept with an index."""
    from diml.search.index_model import head_faults
    from diml.search.labels import labels_of_sources
    from diml.search.tuned import index_matcher

    faults = head_faults(store)
    for read in (index_matcher, labels_of_sources):
        try:
            read(store)
        except ValueError as error:
            faults.append(str(error))
    return faults


def _faults_of(rows: Rows, asked: list[str], config: IndexConfig) -> list[str]:
    fetched = set(rows.ids)
    faults = [f"{name}: listed, but cannot be fetched" for name in asked if name not in fetched]
    damaged = row_faults(rows)
    if damaged or config.storage == "none":
        return faults + damaged
    try:
        regions = decode_regions(rows, config)
    except ValueError as error:  # vectors of another length
        return [*faults, f"{asked[0]} to {asked[-1]}: {error}"]
    if isinstance(regions, QuantizedRegions):
        length = regions[:].dense.norm(dim=2).numpy()
        wrong = ~((np.abs(length - 1) <= _CODED_TOLERANCE) | (length == 0)).all(axis=1)
        faults += [f"{rows.ids[row]}: a region is not of unit length" for row in np.flatnonzero(wrong)]
    return faults


def _stale(metadata: Mapping[str, Value]) -> str | None:
    if not {"source", "path", "content"} <= metadata.keys():
        return None
    file = image_file(metadata)
    try:
        return None if content_of(file) == metadata["content"] else f"{file}: changed since it was indexed"
    except FileNotFoundError:
        return f"{file}: missing"
    except BadImageError as error:
        return str(error)
    except OSError as error:
        return f"{file}: cannot be read ({error})"
