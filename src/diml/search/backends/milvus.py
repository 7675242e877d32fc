"""A store in Milvus: a server or cluster by its address, or Milvus Lite in a `.db` folder, by the same calls.

Legend: N rows, Q queries, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diml.search.backends.milvus_place import (
    WORK_SECONDS,
    Connection,
    MilvusPlace,
    is_lite_folder,
    read_place,
    settings_of,
)
from diml.search.backends.milvus_rows import (
    among,
    coded_bytes,
    column_fields,
    from_records,
    in_parts,
    make_schema,
    metadata_of,
    region_fields,
    to_expression,
    to_records,
)
from diml.search.filters import Where
from diml.search.store import (
    IndexConfig,
    IndexNotFoundError,
    Listed,
    Neighbours,
    Rows,
    StoreInfo,
    check_queries,
    check_rows,
)

#: Most rows that a server gives in one answer, and the bytes that we let a message grow to.
MOST_ROWS: Final = 16_384
_MESSAGE_BYTES: Final = 16 * 2**20
_ANSWERS: Final = 100_000
_IDS: Final = 1024
_PAGE: Final = 4096
#: Cells of an IVF_FLAT index in each segment of a server, and how many of them a query looks into: docs/scale.md.
CELLS: Final = 256
PROBED: Final = 128


class MilvusStore:
    """Embedded images in a collection of Milvus; made by `diml.search.open_store` and `create_store`.

    Where Milvus promises less than the interface of a store: each row is written whole or not at all, and a call of
    `add` with up to some thousand rows too, but larger calls are several requests; rows that others write while a
    listing of a server goes on may be in it or not; and with IVF_FLAT, rows that the server has not indexed yet are
    searched by an approximation of its own, even where `exact` is asked for.

    Args:
        place: see `read_place`.

    Raises:
        IndexNotFoundError: there is no index.
        ConnectionError: nobody answers there.
        ValueError: the collection is something else, or the extra is missing.
    """

    def __init__(self, place: MilvusPlace) -> None:
        if place.folder is not None and not is_lite_folder(place.folder):
            raise IndexNotFoundError(place.shown)
        self.place = place
        self._connection = Connection(place)
        try:
            self._config = self._read_config()
            self._index = self._make_ready()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        """Open the index at a place."""
        return cls(read_place(uri))

    @classmethod
    def create(cls, uri: str, config: IndexConfig) -> MilvusStore:
        """Make an empty index, or open the one there; what is written next must know all that is there, so "Strong"."""
        place = dataclasses.replace(read_place(uri), consistency="Strong")
        _check_folder(place)
        connection = Connection(place)
        try:
            if not connection.call("has_collection", place.collection):
                _create_collection(connection, config)
            return cls(place)
        finally:
            connection.close()

    @property
    def config(self) -> IndexConfig:
        """What the index is of."""
        return self._config

    def add(self, rows: Rows) -> None:
        """Write rows; those whose id is there already are replaced."""
        check_rows(rows, self._config)
        records = to_records(rows, self._config)
        size = _rows_a_message(self._config)
        with self._connection.writing():
            for start in range(0, len(records), size):
                self._call("upsert", records[start : start + size])

    def nearest(
        self, pooled: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Neighbours]:
        """The k rows of the largest cosine to each query, best first."""
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
        short = [row for row, one in enumerate(found) if len(one.ids) < k]  # the cells looked into had too few
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

    def regions(self, ids: Sequence[str]) -> Rows:
        """All of these rows, in this order; ids that are not there are left out."""
        fields = ["id", "pooled", *region_fields(self._config), *column_fields(tuple(self._config.columns))]
        found: dict[str, Any] = {}
        for part in in_parts(ids, min(_IDS, _rows_a_message(self._config))):
            found.update((record["id"], record) for record in self._query(among(part), fields))
        return from_records([found[name] for name in dict.fromkeys(ids) if name in found], self._config)

    def remove(self, ids: Sequence[str]) -> int:
        """Take rows out; returns how many were there."""
        count = 0
        with self._connection.writing():
            for part in in_parts(ids, _IDS):
                known = self._query(among(part), ["id"], consistency_level="Strong")
                there = [record["id"] for record in known]
                if there:
                    self._call("delete", filter=among(there))  # given ids, pymilvus quotes them wrongly
                count += len(there)
        return count

    def count(self, where: Where | None = None) -> int:
        """How many rows there are, or fit."""
        return int(self._query(self._expression(where), ["count(*)"])[0]["count(*)"])

    def listing(self, where: Where | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Listed]:
        """All rows without their vectors, part by part, in the order of ids."""
        names = list(self._config.columns if columns is None else columns)
        condition = self._expression(where)
        for page in self._pages(condition, ["id", *column_fields(names)]):
            yield Listed(
                tuple(str(record["id"]) for record in page), tuple(metadata_of(record, names) for record in page)
            )

    def _pages(self, condition: str, fields: list[str]) -> Iterator[list[Any]]:
        """Records in the order of ids: of Milvus Lite all at once, of one state; of a server page by page."""
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

    def optimize(self) -> None:
        """Write what is in memory, so that it is indexed, and join small segments; a server takes its time for that."""
        with self._connection.writing():
            self._call("flush", timeout=WORK_SECONDS)
            self._call("compact", timeout=WORK_SECONDS)

    def info(self) -> StoreInfo:
        """Facts for people."""
        rows, folder = self.count(), self.place.folder
        told = self._call("describe_index", "pooled")
        covered = 0 if self._index == "FLAT" else min(rows, int(told.get("indexed_rows", 0)))
        files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
        return StoreInfo(
            kind="Milvus" if folder is None else "Milvus Lite",
            uri=self.place.shown,
            rows=rows,
            indexed=covered,
            index="none" if self._index == "FLAT" else self._index,
            disk_bytes=None if folder is None else sum(file.stat().st_size for file in files),
        )

    def close(self) -> None:
        """Let go of the connection; Milvus Lite ends with the last one of this process."""
        self._connection.close()

    def _read_config(self) -> IndexConfig:
        if not self._call("has_collection"):
            raise IndexNotFoundError(self.place.shown)
        about = settings_of(self._call("describe_collection"))
        if about is None:
            raise ValueError(f"index: {self.place.shown} is a collection that diml did not make; name another one")
        return IndexConfig.from_json(about)

    def _make_ready(self) -> str:
        """Build the index over pooled vectors, load the collection, where that has not been done; the kind of index."""
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
        return "" if where is None else to_expression(where, self._config.columns)


def _neighbours(hits: list[tuple[float, str]]) -> Neighbours:
    hits.sort(key=lambda hit: (-hit[0], hit[1]))
    return Neighbours(tuple(name for _, name in hits), np.array([cosine for cosine, _ in hits], np.float32))


def _rows_a_message(config: IndexConfig) -> int:
    """How many rows fit into one request or answer."""
    return max(1, _MESSAGE_BYTES // (4 * config.dim + coded_bytes(config) + 2048))


def _check_folder(place: MilvusPlace) -> None:
    """Refuse to make an index where something else is."""
    folder = place.folder
    if folder is None or not folder.exists() or is_lite_folder(folder):
        return
    if folder.is_file():
        raise FileExistsError(f"index: {folder} is a file (of an older Milvus Lite?), not a folder; name a new one")
    if any(folder.iterdir()):
        raise FileExistsError(f"index: {folder} has something else in it, and no index; name a new one")


def _create_collection(connection: Connection, config: IndexConfig) -> None:
    place = connection.place
    try:
        connection.call(
            "create_collection",
            place.collection,
            schema=make_schema(config),
            num_shards=place.shards,
            consistency_level=place.consistency,
            properties={"diml.settings": config.to_json()},
        )
    except OSError:
        if not connection.call("has_collection", place.collection):  # else another one was quicker
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
