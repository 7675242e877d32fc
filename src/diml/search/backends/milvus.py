"""Milvus: a store in a server or cluster given by its address, or in a `.db` folder of Milvus Lite, by the same calls.

    http://[user:password@]host:port[/collection][?consistency=...&index=...&shards=...]
    images.db

The regions are base64 text, in as many fields as needed: every version of Milvus has text fields, and no supported one
has byte fields. A column of metadata is two fields, its value and whether there is one, as Milvus has missing values
only since 2.5.

Legend: N rows, Q queries, D channels.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import math
import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from diml.extras import require
from diml.search.backends.milvus_conditions import column_fields, prefix_of, quoted, to_expression
from diml.search.cells import widened_rows
from diml.search.filters import And, ColumnMembership, ColumnPattern, ColumnType, Or, Where, like_regex, quoted_column
from diml.search.store import (
    IndexConfig,
    IndexNotFoundError,
    ListedRows,
    Neighbours,
    Rows,
    StoreInfo,
    Value,
    check_queries,
    checked_rows,
    require_sound,
)
from diml.spelling import shown

Consistency = Literal["Strong", "Bounded", "Session", "Eventually"]
Index = Literal["FLAT", "IVF_FLAT"]

COLLECTION: Final = "images"
CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 60.0
#: For calls whose duration grows with the collection.
WORK_SECONDS: Final = 900.0
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_GRPC_UNREACHABLE: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED")

#: Maximum number of rows in one answer of a server, and the size of a message to stay below.
MOST_ROWS: Final = 16_384
_MESSAGE_BYTES: Final = 16 * 2**20
_ANSWERS: Final = 100_000
_IDS: Final = 1024
_PAGE: Final = 4096
#: Cells of an IVF_FLAT index in each segment of a server, and how many of them a query searches: docs/scale.md.
CELLS: Final = 256
PROBED: Final = 128

#: Maximum number of bytes in a text field of Milvus.
LONGEST_TEXT: Final = 65_535
_PIECE: Final = LONGEST_TEXT // 4 * 4
_LARGEST: Final = 2**63 - 1
_ABSENT: Final[Mapping[ColumnType, Value]] = {"text": "", "integer": 0, "number": 0.0, "boolean": False}


@dataclass(frozen=True, kw_only=True)
class MilvusPlace:
    """The place of an index, parsed and validated.

    Args:
        shown: for messages, without a password.
        address: `http://host:port`, or "" with Milvus Lite.
        folder: of Milvus Lite, or None.
        token: `user:password`, or "".
        collection: name of the collection with the images.
        consistency: of every read. "Strong" sees everything written before; the others may lag and are faster.
        index: vector index over pooled vectors, chosen when the collection is created. "FLAT" is exhaustive and exact.
        shards: write channels of the collection, chosen when it is created.
    """

    shown: str
    address: str = ""
    folder: Path | None = None
    token: str = ""
    collection: str = COLLECTION
    consistency: Consistency = "Strong"
    index: Index = "FLAT"
    shards: int = 1

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.collection):
            need = "at most 255 letters, digits and _, no digit first"
            raise ValueError(f"index: {self.shown}: need a collection named by {need}, got {self.collection!r}")
        for name, allowed in (("consistency", get_args(Consistency)), ("index", get_args(Index))):
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise ValueError(f"index: {self.shown}: {name} needs one of {', '.join(allowed)}, got {got!r}")
        if not 1 <= self.shards <= 16:
            raise ValueError(f"index: {self.shown}: shards needs 1 to 16, got {self.shards}")


def read_place(uri: str) -> MilvusPlace:
    """Parse the place of an index.

    Raises:
        ValueError: a part of it is invalid; the message says what is needed.

    Example:
        >>> read_place("http://localhost:19530/shelves?consistency=Bounded").collection
        'shelves'
    """
    if not uri.startswith(("http://", "https://", "tcp://")):
        return MilvusPlace(shown=uri, folder=Path(uri).resolve())
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 19530)
    except ValueError as error:
        raise ValueError(f"index: need http://host:port, got an invalid port: {error}") from None
    if not host:
        raise ValueError(f"index: need http://host:port, got no host in {parts.scheme}://{parts.path}")
    host = f"[{host}]" if ":" in host else host
    settings: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := settings.keys() - {"consistency", "index", "shards"}:
        raise ValueError(
            f"index: {host}: need consistency, index or shards after '?', got {', '.join(sorted(unknown))}"
        )
    if "shards" in settings:
        settings["shards"] = int(settings["shards"]) if settings["shards"].isdecimal() else 0
    address, collection = f"{parts.scheme}://{host}:{port}", parts.path.strip("/") or COLLECTION
    user = unquote(f"{parts.username}:{parts.password or ''}") if parts.username else ""
    return MilvusPlace(shown=f"{address}/{collection}", address=address, token=user, collection=collection, **settings)


def is_lite_folder(folder: Path) -> bool:
    """Whether this folder is one of Milvus Lite."""
    return (folder / "LOCK").is_file() and (folder / "collections").is_dir()


class Connection:
    """A client of a server, or of Milvus Lite, which runs in threads of this process while a client is connected.

    Args:
        place: of the index.

    Raises:
        ValueError: pymilvus or milvus-lite is not installed.
        ConnectionError: no server answers.
        OSError: another process has the folder of Milvus Lite open.
    """

    def __init__(self, place: MilvusPlace) -> None:
        pymilvus = _pymilvus(place)
        self.place = place
        address = place.address if place.folder is None else _lite_address(place.folder, self)
        with _translated_errors(place):
            self._client = pymilvus.MilvusClient(uri=address, token=place.token, timeout=CONNECT_SECONDS)

    def call(self, method: str, *args: Any, timeout: float = CALL_SECONDS, **settings: Any) -> Any:
        """Call a method of `MilvusClient`; errors are `ConnectionError` or `OSError`."""
        with _translated_errors(self.place):
            return getattr(self._client, method)(*args, timeout=timeout, **settings)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Admit one writer at a time, as Milvus Lite requires; a server orders writes itself."""
        if self.place.folder is None:
            yield
        else:
            with _writers(self.place.folder):
                yield

    def close(self) -> None:
        """Disconnect; with the last connection of this process Milvus Lite stops and releases its folder."""
        self._client.close()
        if self.place.folder is not None:
            _release(self.place.folder, self)


@contextmanager
def _translated_errors(place: MilvusPlace) -> Iterator[None]:
    """Raise errors of pymilvus as `ConnectionError` or `OSError` that name the index."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        text = str(getattr(error, "message", "")) or str(error) or type(error).__name__
        code = getattr(error, "code", None)
        status = str(code()) if callable(code) else str(code)
        lost = "fail connecting" in text.lower() or any(word in status + text for word in _GRPC_UNREACHABLE)
        if lost or isinstance(error, grpc.FutureTimeoutError):
            remedy = "is the server running, are host and port right, does a firewall block it?"
            raise ConnectionError(f"index: no Milvus answers at {place.shown} ({text}); {remedy}") from error
        raise OSError(f"index: {place.shown}: Milvus reports: {text}") from error


def _pymilvus(place: MilvusPlace) -> Any:
    require("milvus", f"index {place.shown}")
    import pymilvus

    if place.folder is not None:
        import milvus_lite.server_manager  # noqa: F401

    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they also print the errors that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus


_LOCK: Final = threading.RLock()
_CONNECTED: Final[dict[Path, weakref.WeakSet[Connection]]] = {}
_WRITERS: Final[dict[Path, threading.Lock]] = {}


def _lite_address(folder: Path, connection: Connection) -> str:
    from milvus_lite.server_manager import server_manager_instance

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK:
        address = server_manager_instance.start_and_get_uri(os.fspath(folder))
        if address is None:
            remedy = "stop that one, or use a folder of LanceDB or a server, which admit several"
            raise OSError(f"index: {folder}: another process has it open, and Milvus Lite admits one; {remedy}")
        _CONNECTED.setdefault(folder, weakref.WeakSet()).add(connection)
    return str(address)


def _release(folder: Path, connection: Connection) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _LOCK:
        connected: Any = _CONNECTED.get(folder, ())
        if connection in connected:
            connected.discard(connection)
            if not connected:
                server_manager_instance.release_server(os.fspath(folder))


def _writers(folder: Path) -> threading.Lock:
    with _LOCK:
        return _WRITERS.setdefault(folder, threading.Lock())


def settings_of(description: Mapping[str, Any]) -> str | None:
    """Return the settings of an index from the description of its collection, or None."""
    found = (description.get("properties") or {}).get("diml.settings")
    return None if found is None else str(found)


def _property_of(name: str) -> str:
    return f"diml.text.{name}"


class MilvusStore:
    """Embedded images in a collection of Milvus; created by `open_store` and `create_store` of `diml.search.index`.

    Milvus guarantees less than the contract of a store: single rows are written atomically, and so is a call of `add`
    with up to some thousand rows, but larger calls are several requests; a listing of a server may or may not contain
    rows written during it; and with IVF_FLAT, rows that the server has not indexed yet are searched by an approximation
    of its own, even with `exact`.

    Args:
        place: see `read_place`.

    Raises:
        IndexNotFoundError: there is no index.
        ConnectionError: no server answers.
        ValueError: the collection holds something else, or the extra is not installed.
    """

    def __init__(self, place: MilvusPlace) -> None:
        if place.folder is not None and not is_lite_folder(place.folder):
            raise IndexNotFoundError(place.shown)
        self.place = place
        self._changes = 0
        self._connection = Connection(place)
        try:
            self._config = self._read_config()
            self._index = self._make_ready()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        """Open the index at a place; see `read_place`."""
        return cls(read_place(uri))

    @classmethod
    def create(cls, uri: str, config: IndexConfig, texts: Mapping[str, str] | None = None) -> MilvusStore:
        """Create an empty index, or open the existing one."""
        place = dataclasses.replace(read_place(uri), consistency="Strong")  # as the writes depend on what is there
        _check_folder(place)
        connection = Connection(place)
        try:
            names = (place.collection, _spare(place, "new"))
            if not any(connection.call("has_collection", name) for name in names):
                kept = {_property_of(name): text for name, text in (texts or {}).items()}
                _create_collection(connection, config, texts=kept)
            return cls(place)
        finally:
            connection.close()

    @property
    def config(self) -> IndexConfig:
        """The settings of the index."""
        return self._config

    def add(self, rows: Rows) -> None:
        """Write rows, replacing those with the same id."""
        rows = checked_rows(rows, self._config)
        records = to_records(rows, self._config)
        size = _rows_a_message(self._config)
        with self._connection.writing():
            for start in range(0, len(records), size):
                self._call("upsert", records[start : start + size])
        self._changes += 1

    def nearest(
        self, pooled: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Neighbours]:
        """Return the k rows of largest cosine to each query, best first."""
        check_queries(pooled, k, self._config)
        if k > MOST_ROWS:
            raise ValueError(f"k: need at most {MOST_ROWS} with Milvus, got {k}; LanceDB has no such limit")
        condition = self._expression(where)
        step = max(1, min(_ANSWERS // k, MOST_ROWS))
        found: list[Neighbours] = []
        for start in range(0, len(pooled), step):
            part = pooled[start : start + step]
            found += self._nearest(part, k, condition, CELLS if exact else PROBED)
        if self._index == "FLAT" or exact:
            return found
        short = [row for row, one in enumerate(found) if len(one.ids) < k]  # the searched cells had too few
        for row in short:
            found[row] = self._nearest(pooled[row : row + 1], k, condition, CELLS)[0]
        return found

    def _nearest(self, pooled: NDArray[np.float32], k: int, condition: str, probed: int) -> list[Neighbours]:
        params = {} if self._index == "FLAT" else {"nprobe": probed}
        answers = self._call(
            "search",
            data=list(pooled),
            anns_field="pooled",
            limit=k,
            filter=condition,
            output_fields=["id"],
            search_params={"metric_type": "IP", "params": params},
            consistency_level=self.place.consistency,
        )
        return [_neighbours([(float(hit["distance"]), str(hit["id"])) for hit in hits]) for hits in answers]

    def regions(self, ids: Sequence[str], *, check: bool = True) -> Rows:
        """Return the rows of these ids, in this order; unknown ids are left out."""
        columns = column_fields(tuple(self._config.columns))
        fields = ["id", "pooled", "checksum", *region_fields(self._config), *columns]
        found: dict[str, Any] = {}
        for part in in_parts(ids, min(_IDS, _rows_a_message(self._config))):
            found.update((record["id"], record) for record in self._query(among(part), fields))
        rows = from_records([found[name] for name in dict.fromkeys(ids) if name in found], self._config)
        return require_sound(rows, self.place.shown) if check else rows

    def remove(self, ids: Sequence[str]) -> int:
        """Remove rows; returns how many existed."""
        count = 0
        with self._connection.writing():
            for part in in_parts(ids, _IDS):
                known = self._query(among(part), ["id"], consistency_level="Strong")
                there = [record["id"] for record in known]
                if there:
                    self._call("delete", filter=among(there))  # given ids, pymilvus quotes them wrongly
                count += len(there)
        self._changes += 1
        return count

    def count(self, where: Where | None = None) -> int:
        """Return the number of rows, or of those that satisfy `where`."""
        return int(self._query(self._expression(where), ["count(*)"])[0]["count(*)"])

    def listing(self, where: Where | None = None, *, columns: Sequence[str] | None = None) -> Iterator[ListedRows]:
        """Yield all rows without their vectors, in parts, in the order of ids."""
        names = list(self._config.columns if columns is None else columns)
        condition = self._expression(where)
        for page in self._pages(condition, ["id", *column_fields(names)]):
            yield ListedRows(tuple(str(record["id"]) for record in page), tuple(entries_of(page, names)))

    def listed(self, ids: Sequence[str]) -> ListedRows:
        """Return the rows of these ids without their vectors, in this order; unknown ids are left out."""
        names = tuple(self._config.columns)
        rows: dict[str, Any] = {}
        for part in in_parts(ids, _IDS):
            rows.update((str(one["id"]), one) for one in self._query(among(part), ["id", *column_fields(names)]))
        there = tuple(key for key in dict.fromkeys(ids) if key in rows)
        return ListedRows(there, tuple(entries_of([rows[key] for key in there], names)))

    def _pages(self, condition: str, fields: list[str]) -> Iterator[list[Any]]:
        """Records in the order of ids: of Milvus Lite in one query, of one state; of a server page by page."""
        if self.place.folder is not None:
            with self._connection.writing():
                everyone = sorted(self._query(condition or 'id != ""', fields), key=lambda record: record["id"])
            yield from (everyone[start : start + _PAGE] for start in range(0, len(everyone), _PAGE))
            return
        last = ""
        while True:
            after = f"id > {among([last])[len('id in [') : -1]}"
            page = self._query(f"{after} and {condition}" if condition else after, fields, limit=_PAGE, iterator="True")
            if page:
                page.sort(key=lambda record: record["id"].encode())
                last = page[-1]["id"]
                yield page
            if len(page) < _PAGE:
                return

    def set_columns(self, columns: Mapping[str, ColumnType], named_types: Sequence[str]) -> None:
        """Add columns or give them wider types: rows are copied to a new collection, which takes the old one's name.

        Milvus cannot change the fields of a collection everywhere. Nothing else may write to the index meanwhile; a
        process that is killed leaves the old collection, or the new one complete.
        """
        self._config = self._read_config()
        config = dataclasses.replace(self._config, columns=dict(columns), named_types=tuple(named_types))
        if config == self._config:
            return
        index: Index = "FLAT" if self._index == "FLAT" else "IVF_FLAT"
        new = dataclasses.replace(self.place, collection=_spare(self.place, "new"), index=index)
        self._drop(new.collection)
        _create_collection(self._connection, config, new, self._kept_texts())
        for part in self.listing(columns=[]):
            rows = widened_rows(self.regions(part.ids, check=False), config)
            records, size = to_records(rows, config), _rows_a_message(config)
            for start in range(0, len(records), size):
                self._connection.call("upsert", new.collection, records[start : start + size])
        self._connection.call("flush", new.collection, timeout=WORK_SECONDS)
        old = _spare(self.place, "old")
        self._drop(old)
        self._call("rename_collection", old)
        self._connection.call("rename_collection", new.collection, self.place.collection)
        self._drop(old)
        self._config, self._index = config, self._make_ready()
        self._changes += 1

    def _drop(self, collection: str) -> None:
        if self._connection.call("has_collection", collection):
            self._connection.call("drop_collection", collection)

    def require_free(self) -> None:
        """Do nothing: the server orders writes itself, and Milvus Lite belongs to one process."""

    def faults(self) -> tuple[str, ...]:
        """Nothing: Milvus keeps its own files."""
        return ()

    def optimize(self, *, new: bool = False) -> None:
        """Flush and index what is in memory and merge small segments; a server does so in the background."""
        with self._connection.writing():
            self._call("flush", timeout=WORK_SECONDS)
            self._call("compact", timeout=WORK_SECONDS)

    def info(self) -> StoreInfo:
        """Return size and state."""
        rows, folder = self.count(), self.place.folder
        described = self._call("describe_index", "pooled")
        covered = 0 if self._index == "FLAT" else min(rows, int(described.get("indexed_rows", 0)))
        files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
        return StoreInfo(
            kind="Milvus" if folder is None else "Milvus Lite",
            uri=self.place.shown,
            rows=rows,
            indexed=covered,
            index="none" if self._index == "FLAT" else self._index,
            disk_bytes=None if folder is None else sum(file.stat().st_size for file in files),
        )

    def version(self) -> str:
        """Return the number of rows and of changes by this object; Milvus tells of no others."""
        return f"{self.count()}/{self._changes}"

    def read_text(self, name: str) -> str | None:
        """Return a text that is kept with the index, a property of its collection, or None."""
        found = (self._call("describe_collection").get("properties") or {}).get(_property_of(name))
        return None if found is None else str(found)

    def write_text(self, name: str, text: str) -> None:
        """Keep a text with the index, as a property of its collection."""
        with self._connection.writing():
            self._call("alter_collection_properties", {_property_of(name): text})

    def texts(self) -> tuple[str, ...]:
        """Return the names of the texts that are kept with the index, sorted."""
        return tuple(sorted(name.removeprefix(_property_of("")) for name in self._kept_texts()))

    def _kept_texts(self) -> dict[str, str]:
        """The properties of the collection that are texts kept with the index."""
        found = self._call("describe_collection").get("properties") or {}
        return {name: str(text) for name, text in found.items() if name.startswith(_property_of(""))}

    def close(self) -> None:
        """Close the connection; Milvus Lite stops with the last one of this process."""
        self._connection.close()

    def _read_config(self) -> IndexConfig:
        if not self._call("has_collection"):
            new = _spare(self.place, "new")
            if not self._connection.call("has_collection", new):
                raise IndexNotFoundError(self.place.shown)
            # `set_columns` was interrupted after the old collection had given up its name: the new one is complete.
            self._connection.call("rename_collection", new, self.place.collection)
        about = settings_of(self._call("describe_collection"))
        if about is None:
            raise ValueError(f"index: {self.place.shown} is a collection that diml did not create; choose another one")
        return IndexConfig.from_json(about)

    def _make_ready(self) -> str:
        """Build the vector index and load the collection where that has not been done; returns the type of index."""
        if not self._call("list_indexes"):
            _create_index(self._connection)
        self._call("load_collection", timeout=WORK_SECONDS)
        return str(self._call("describe_index", "pooled")["index_type"])

    def _call(self, method: str, *args: Any, **settings: Any) -> Any:
        return self._connection.call(method, self.place.collection, *args, **settings)

    def _query(self, condition: str, fields: list[str], **settings: Any) -> list[Any]:
        settings = {"consistency_level": self.place.consistency, **settings}
        return list(self._call("query", filter=condition, output_fields=fields, **settings))

    def _expression(self, where: Where | None) -> str:
        return "" if where is None else to_expression(self._resolved(where))

    def _resolved(self, where: Where) -> Where:
        """The condition without `like`: versions of Milvus differ in what they can match, so texts are found here."""
        match where:
            case ColumnPattern(column, pattern, negated, any_case):
                return self._like(column, pattern, negated, any_case)
            case And(left, right):
                return And(self._resolved(left), self._resolved(right))
            case Or(left, right):
                return Or(self._resolved(left), self._resolved(right))
        return where

    def _like(self, column: str, pattern: str, negated: bool, any_case: bool) -> Where:
        """What a pattern comes to: a comparison, a range where it is text and a `%`, else the texts that match it."""
        start, known = prefix_of(column, "%" if any_case else pattern)
        if any_case:
            known = None
        if known is not None:
            return known.negative if negated else known.positive
        condition = to_expression(start.positive)
        value, _ = column_fields([column])
        texts = {str(record[value]) for page in self._pages(condition, ["id", value]) for record in page}
        matches = like_regex(pattern.lower() if any_case else pattern).fullmatch
        chosen = sorted(text for text in texts if matches(text.lower() if any_case else text))
        size = sum(len(text.encode()) + 4 for text in chosen)
        if size > _MESSAGE_BYTES:
            raise ValueError(
                f"where: {shown(pattern)} matches {len(chosen):,} different texts of {quoted_column(column)}, too many "
                "for a request to Milvus; begin the pattern with more text, or keep the index in LanceDB"
            )
        return ColumnMembership(column, tuple(chosen), negated)


@contextmanager
def new_collection(uri: str, config: IndexConfig) -> Iterator[MilvusStore]:
    """Yield an empty index on a server that takes its name when the block succeeds, and is dropped otherwise.

    Until then it has another name, under which the next call for the same place finds and drops what a process that was
    killed has left.

    Raises:
        FileExistsError: the collection exists.
    """
    place = dataclasses.replace(read_place(uri), consistency="Strong")
    spare = dataclasses.replace(place, collection=_spare(place, "copy"))
    connection = Connection(place)

    def drop() -> None:
        if connection.call("has_collection", spare.collection):
            connection.call("drop_collection", spare.collection)

    try:
        if any(connection.call("has_collection", name) for name in (place.collection, _spare(place, "new"))):
            raise FileExistsError(f"destination: {place.shown} exists; copy to a new place, or drop it before")
        drop()
        _create_collection(connection, config, spare)
        try:
            store = MilvusStore(spare)
            try:
                yield store
            finally:
                store.close()
            connection.call("rename_collection", spare.collection, place.collection)
        except BaseException:
            drop()
            raise
    finally:
        connection.close()


def _neighbours(hits: list[tuple[float, str]]) -> Neighbours:
    hits.sort(key=lambda hit: (-hit[0], hit[1]))
    return Neighbours(tuple(name for _, name in hits), np.array([cosine for cosine, _ in hits], np.float32))


def _rows_a_message(config: IndexConfig) -> int:
    """Number of rows that fit into one request or answer."""
    return max(1, _MESSAGE_BYTES // (4 * config.dim + coded_bytes(config) + 2048))


def _check_folder(place: MilvusPlace) -> None:
    """Raise FileExistsError where something else is."""
    folder = place.folder
    if folder is None or not folder.exists() or is_lite_folder(folder):
        return
    if folder.is_file():
        raise FileExistsError(f"index: {folder} is a file (of an older Milvus Lite?), not a folder; choose a new one")
    if any(folder.iterdir()):
        raise FileExistsError(f"index: {folder} contains something else and no index; choose a new one")


def _spare(place: MilvusPlace, what: str) -> str:
    """Name of a collection that exists only while columns are changed."""
    return f"{place.collection}_diml_{what}"


def _create_collection(
    connection: Connection,
    config: IndexConfig,
    place: MilvusPlace | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    place = connection.place if place is None else place
    try:
        connection.call(
            "create_collection",
            place.collection,
            schema=make_schema(config),
            num_shards=place.shards,
            consistency_level=place.consistency,
            properties={"diml.settings": config.to_json(), **(texts or {})},
        )
    except OSError:
        if not connection.call("has_collection", place.collection):  # otherwise another process has created it
            raise


def _create_index(connection: Connection) -> None:
    from pymilvus import MilvusClient

    place = connection.place
    params = MilvusClient.prepare_index_params()
    settings = {} if place.index == "FLAT" else {"nlist": CELLS}
    params.add_index("pooled", index_name="pooled", index_type=place.index, metric_type="IP", params=settings)
    try:
        connection.call("create_index", place.collection, params, sync=False)
    except OSError:
        if not connection.call("list_indexes", place.collection):
            raise


def make_schema(config: IndexConfig) -> Any:
    """Return the schema of a collection."""
    from pymilvus import DataType, MilvusClient

    types = {
        "text": DataType.VARCHAR,
        "integer": DataType.INT64,
        "number": DataType.DOUBLE,
        "boolean": DataType.BOOL,
    }
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_TEXT)
    schema.add_field("pooled", DataType.FLOAT_VECTOR, dim=config.dim)
    schema.add_field("checksum", DataType.INT64)
    for name in region_fields(config):
        schema.add_field(name, DataType.VARCHAR, max_length=LONGEST_TEXT)
    for name, kind in config.columns.items():
        length = {"max_length": LONGEST_TEXT} if kind == "text" else {}
        value, has = column_fields([name])
        schema.add_field(value, types[kind], **length)
        schema.add_field(has, DataType.BOOL)
    return schema


def region_fields(config: IndexConfig) -> list[str]:
    """Return the names of the fields that hold the regions, in order."""
    return [f"regions_{part}" for part in range(math.ceil(coded_bytes(config) / _PIECE))]


def coded_bytes(config: IndexConfig) -> int:
    """Return the number of bytes of the regions of one image in base64."""
    return 4 * math.ceil(config.row_bytes / 3)


def to_records(rows: Rows, config: IndexConfig) -> list[dict[str, Any]]:
    """Convert rows to records of Milvus.

    Raises:
        ValueError: an id or a text is too long for Milvus, or an integer too large.
    """
    records = []
    for row, (name, entry) in enumerate(zip(rows.ids, rows.metadata, strict=True)):
        record: dict[str, Any] = {"id": _storable("id", name), "pooled": rows.pooled[row]}
        if rows.checksums is not None:
            record["checksum"] = int(rows.checksums[row])
        text = base64.b64encode(rows.coded[row].tobytes()).decode("ascii")
        for part, field in enumerate(region_fields(config)):
            record[field] = text[part * _PIECE : (part + 1) * _PIECE]
        for column, kind in config.columns.items():
            value = entry.get(column)
            of_value, has = column_fields([column])
            record[has] = value is not None
            stored = _ABSENT[kind] if value is None else _storable(column, value)
            record[of_value] = float(stored) if kind == "number" and stored is not None else stored
        records.append(record)
    return records


def from_records(records: Sequence[Mapping[str, Any]], config: IndexConfig) -> Rows:
    """Convert records of Milvus to rows, in the same order."""
    pooled, coded = (
        np.empty((len(records), config.dim), np.float32),
        np.empty((len(records), config.row_bytes), np.uint8),
    )
    checksums = np.empty(len(records), np.int64)
    fields = region_fields(config)
    for row, record in enumerate(records):
        checksums[row] = record["checksum"]
        pooled[row] = record["pooled"]
        coded[row] = np.frombuffer(base64.b64decode("".join(record[field] for field in fields)), np.uint8)
    ids = tuple(str(record["id"]) for record in records)
    metadata = tuple(entries_of(records, tuple(config.columns)))
    return Rows(ids, pooled, coded, metadata, checksums)


def entries_of(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Value]]:
    """Return some columns of records."""
    fields = {name: column_fields([name]) for name in columns}
    return [
        {name: record[value] if record[has] else None for name, (value, has) in fields.items()} for record in records
    ]


def among(ids: Sequence[str]) -> str:
    """Return the condition that an id is one of these."""
    return f"id in [{', '.join(quoted(name) for name in ids)}]"


def in_parts(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the distinct ids in parts of at most `size`."""
    distinct = list(dict.fromkeys(ids))
    yield from (distinct[start : start + size] for start in range(0, len(distinct), size))


def _storable(column: str, value: Value) -> Value:
    """Return a value that Milvus can store; otherwise raise ValueError."""
    if isinstance(value, str) and (size := len(value.encode())) > LONGEST_TEXT:
        raise ValueError(
            f"{column}: need at most {LONGEST_TEXT} bytes of text in Milvus, got {size} in {value[:40]!r}..."
        )
    if type(value) is int and abs(value) > _LARGEST:
        raise ValueError(f"{column}: need whole numbers of 64 bits in Milvus, got {value}")
    return value
