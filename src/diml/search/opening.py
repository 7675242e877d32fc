"""Which store a place means: a folder is LanceDB's, `*.db` and `http://host:port` are Milvus's."""

from __future__ import annotations

import os
from pathlib import Path

from diml.search.store import IndexConfig, Store


def is_milvus(uri: str) -> bool:
    """Whether a place is a Milvus server, or a file of Milvus Lite."""
    return uri.startswith(("http://", "https://", "tcp://")) or Path(uri).suffix == ".db"


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open an index.

    Args:
        uri: a folder (LanceDB), `NAME.db` (Milvus Lite), or `http://host:port` (a Milvus server or cluster; see
            `diml.search.backends.milvus_place`).

    Raises:
        IndexNotFoundError: there is none.
        ConnectionError: no server answers there.
        ValueError: something else is there, or the extra for it is missing.

    Example:
        >>> open_store("photos.index").count()  # doctest: +SKIP
        5421
    """
    place = _place(uri)
    if is_milvus(place):
        from diml.search.backends.milvus import MilvusStore

        return MilvusStore.open(place)
    from diml.search.backends.lance import LanceStore

    return LanceStore(Path(place))


def create_store(uri: str | os.PathLike[str], config: IndexConfig) -> Store:
    """Make an empty index, or open the one that is there; see `open_store`.

    Raises:
        ValueError: the index there is of another embedder, or stores something else; the message says what differs.
        FileExistsError: something else is there.
    """
    place = _place(uri)
    store = _created(place, config)
    try:
        require_same(store.config, config, _shown(place))
    except ValueError:
        store.close()
        raise
    return store


def _created(place: str, config: IndexConfig) -> Store:
    if is_milvus(place):
        from diml.search.backends.milvus import MilvusStore

        return MilvusStore.create(place, config)
    from diml.search.backends.lance import LanceStore

    return LanceStore.create(Path(place), config)


def require_same(there: IndexConfig, wanted: IndexConfig, uri: str) -> None:
    """Refuse to go on with an index of another embedder, storage or columns."""
    if there.embedder != wanted.embedder:
        raise ValueError(
            f"index: {uri} was made with another embedder ({there.embedder[:12]}..., got {wanted.embedder[:12]}...; "
            f"its model: {dict(there.model)}); use that model, or build a new index"
        )
    for name in ("dim", "num_regions", "grid", "storage"):
        if getattr(there, name) != getattr(wanted, name):
            need, got = getattr(there, name), getattr(wanted, name)
            raise ValueError(f"index: {uri} has {name} {need}, got {got}; leave it as it is, or build a new index")
    for column, kind in wanted.columns.items():
        if there.columns.get(column) != kind:
            known = ", ".join(f"{name} ({kind})" for name, kind in there.columns.items())
            raise ValueError(f"index: {uri} has no column {column} ({kind}), only {known}; build a new index")


def _place(uri: str | os.PathLike[str]) -> str:
    return os.path.expanduser(os.fspath(uri))  # noqa: PTH111 - a URI is no path


def _shown(place: str) -> str:
    """A place as it may be printed: without a password."""
    if not is_milvus(place):
        return place
    from diml.search.backends.milvus_place import read_place

    return read_place(place).shown
