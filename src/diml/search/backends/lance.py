"""LanceDB: a store in a folder, without a server. One table holds everything, so that a commit is atomic.

Legend: N rows, Q queries, D channels, B bytes of the encoded regions of one image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from diml.checksums import sealed
from diml.extras import require
from diml.files import exclusive_lock, require_unlocked, write_text
from diml.lean_imports import import_lancedb
from diml.search.cells import widened_value
from diml.search.filters import ColumnType, Where, sql_value, to_sql
from diml.search.names import field_name
from diml.search.store import (
    UNIT_TOLERANCE,
    DamagedIndexError,
    IndexConfig,
    IndexNotFoundError,
    ListedRows,
    Neighbours,
    Rows,
    StoreInfo,
    Value,
    check_queries,
    checked_rows,
    kept_document,
    require_sound,
)

if TYPE_CHECKING:
    import pyarrow as pa

_TABLE: Final = "images"
_KEY: Final = b"diml"
#: Number of rows from which a vector index is built; below, exhaustive comparison takes a few milliseconds.
INDEX_FROM: Final = 10_000
#: Fraction of the cells of the vector index that a query searches until `optimize` has measured how many it takes, and
#: their minimum number.
PROBED: Final = 1 / 3
LEAST_PROBED: Final = 20
#: `optimize` measures what share of the `_NEAREST` nearest images a query finds, with `_QUERIES` images of the index as
#: queries. The fewest cells that find at least this share on average are kept.
RECALL: Final = 0.998
_QUERIES: Final = 100
_NEAREST: Final = 200
#: Each number of cells that is tried, as a multiple of the one before.
_MORE: Final = 1.4
#: It is measured again where the number of images has changed by this factor.
_CHANGED: Final = 1.5
#: Name of the file that keeps it; of this store alone, so it is no text of the index.
CELLS_FILE: Final = "cells.json"
_CELLS_FORMAT: Final = 1
#: Bytes of pooled vectors that LanceDB keeps in memory, 512 an image at 128 channels: all of two million images. Beyond
#: that cells are read from the disk again and again, and queries get slower.
CACHED_VECTORS: Final = 1 << 30
CACHED_METADATA: Final = 64 << 20
_HINTS: Final = 100_000
#: How long old versions are kept, which readers may still be using.
_KEPT_VERSIONS: Final = datetime.timedelta(seconds=30)
#: The same of an index that was created a moment ago, which few can be reading, and nobody for long.
_READING: Final = datetime.timedelta(seconds=1)
_PART: Final = 4096
_REMADE: Final = "is missing or damaged; `diml index optimize` makes it again"


class LanceStore:
    """Embedded images in a LanceDB folder; created by `open_store` and `create_store` of `diml.search.index`.

    Writers take turns by a lock in the folder; readers never wait and see the last commit. Rows are fetched by id: the
    row numbers seen by `nearest` are only a hint, and a row found by its number is used only if it has the right id.

    Args:
        folder: of the index.

    Raises:
        IndexNotFoundError: there is no index.
        ValueError: the folder holds something else, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not any((folder / f"{_TABLE}.lance" / "_versions").glob("*.manifest")):  # nothing has been committed
            raise IndexNotFoundError(str(folder))
        self._table: Any = _connect(folder).open_table(_TABLE)
        about = (self._table.schema.metadata or {}).get(_KEY)
        if about is None:
            raise ValueError(f"index: {folder} is a LanceDB folder that diml did not create; choose another one")
        self._about: bytes = about
        self._config = IndexConfig.from_json(about)
        self._columns: list[str] = list(_schema(self._config).names)
        self._hints: dict[str, int] = {}

    @classmethod
    def create(cls, folder: Path, config: IndexConfig, texts: Mapping[str, str] | None = None) -> LanceStore:
        """Create an empty index, or open the existing one; FileExistsError where the folder holds something else."""
        texts = texts or {}
        _check_folder(folder, ("writer.lock", *texts))
        with exclusive_lock(folder / "writer.lock"):
            try:
                return cls(folder)
            except IndexNotFoundError:
                for name, text in texts.items():  # before the table: an index is never without them
                    write_text(folder / name, text)
                _connect(folder).create_table(_TABLE, schema=_schema(config))
                return cls(folder)

    @property
    def config(self) -> IndexConfig:
        """The settings of the index."""
        return self._config

    def add(self, rows: Rows) -> None:
        """Write rows in one commit, replacing those with the same id."""
        self._refresh()
        rows = checked_rows(rows, self._config)
        if not len(rows):
            return
        table = _to_arrow(rows, self._config)
        with self._writing(), self._told_if_damaged():
            upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            upsert.execute(table)

    def nearest(
        self, pooled: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Neighbours]:
        """Return the k rows of largest cosine to each query, best first."""
        self._refresh()
        check_queries(pooled, k, self._config)
        rows = self._table.count_rows()
        probed = None if exact else self._probed(rows, k if where is None else rows)
        with self._told_if_damaged():
            return [self._nearest(vector, max(1, min(k, rows)), where, probed) for vector in pooled]

    def _nearest(self, vector: NDArray[np.float32], k: int, where: Where | None, probed: int | None) -> Neighbours:
        """`probed`: number of cells of the vector index to search; None: compare with every row."""
        search = self._table.search(vector, vector_column_name="pooled").distance_type("dot")
        search = search.select(["id", "_distance"]).with_row_id(True).limit(k)
        if where is not None:
            search = search.where(to_sql(where), prefilter=True)
        if probed is None:
            found = search.bypass_vector_index().to_arrow()
        else:
            # a search that may go on takes longer, whether it does or not
            limited = where is None
            found = search.minimum_nprobes(probed).maximum_nprobes(probed if limited else 0).to_arrow()
            if limited and found.num_rows < k:
                found = search.maximum_nprobes(0).to_arrow()
        ids = found["id"].to_pylist()
        self._remember(ids, found["_rowid"].to_pylist())
        cosine = 1 - found["_distance"].to_numpy()
        if not (np.abs(cosine) <= 1 + 2 * UNIT_TOLERANCE).all():  # a stored vector is not of unit length, or NaN
            self.regions(ids)  # raises, and names the rows
        order = sorted(range(len(ids)), key=lambda place: (-cosine[place], ids[place]))
        return Neighbours(tuple(ids[place] for place in order), cosine[order].astype(np.float32))

    def _probed(self, rows: int, k: int) -> int:
        """How many cells a query for the k nearest searches. With a condition k counts all rows: these lie far away."""
        kept = self._kept_cells() if k <= _NEAREST else None
        cells = _cells(rows)
        return min(cells, max(LEAST_PROBED, math.ceil(cells * PROBED))) if kept is None else kept["probed"]

    def _kept_cells(self) -> dict[str, Any] | None:
        """What `_measure_cells` has found; None where it has not been called, or its file is damaged (see `faults`)."""
        with contextlib.suppress(ValueError):
            return self._read_cells()
        return None

    def _read_cells(self) -> dict[str, Any] | None:
        """The file of `_measure_cells`; ValueError where it is damaged."""
        text = self.read_text(CELLS_FILE)
        if text is None:
            return None
        found = kept_document(text, CELLS_FILE, _CELLS_FORMAT, "run diml index optimize")
        if not all(isinstance(found.get(name), int) and found[name] > 0 for name in ("probed", "rows")):
            raise ValueError(f"index: {CELLS_FILE}: need numbers of cells and rows; run diml index optimize")
        return found

    def _measure_cells(self, rows: int) -> None:
        """Find how few cells a query may search, with images of the index as queries, and keep the number."""
        cells = _cells(rows)
        places = np.random.default_rng(0).choice(rows, min(rows, _QUERIES), replace=False)
        chosen = self._table.take_offsets(sorted(map(int, places))).select(["id", "pooled"]).to_arrow()
        images = list(zip(chosen["id"].to_pylist(), chosen["pooled"].to_pylist(), strict=True))

        def others(cells: int | None) -> list[set[str]]:
            """The images that a search finds for each, without itself."""
            return [set(self._nearest(np.array(v, np.float32), k, None, cells).ids) - {own} for own, v in images]

        k = min(rows, _NEAREST + 1)
        nearest, probed = others(None), LEAST_PROBED
        while probed < cells:
            found = np.array([len(true & near) / len(true) for true, near in zip(nearest, others(probed), strict=True)])
            if found.mean() >= RECALL:
                break
            probed = math.ceil(probed * _MORE)
        else:
            probed, found = cells, np.ones(1)
        kept = {
            "format": _CELLS_FORMAT,
            "probed": probed,
            "cells": cells,
            "rows": rows,
            "recall": round(float(found.mean()), 4),
            "worst": round(float(found.min()), 4),
        }
        self.write_text(CELLS_FILE, json.dumps(sealed(kept), indent=1))

    def _cells_are_measured(self, rows: int) -> bool:
        """Whether the number of cells was measured when the index had about as many rows as now."""
        kept = self._kept_cells()
        return kept is not None and 1 / _CHANGED <= rows / kept["rows"] <= _CHANGED

    def regions(self, ids: Sequence[str], *, check: bool = True) -> Rows:
        """Return the rows of these ids, in this order; unknown ids are left out."""
        wanted = dict.fromkeys(ids)
        with self._told_if_damaged():
            found = self._found(wanted)
        rows = _from_arrow([found[name] for name in wanted if name in found], self._config)
        return require_sound(rows, str(self.folder)) if check else rows

    def _found(self, wanted: Mapping[str, None]) -> dict[str, tuple[Any, int]]:
        """Place (batch, row) of each of these ids that is there."""
        found: dict[str, tuple[Any, int]] = {}
        hinted = [self._hints[name] for name in wanted if name in self._hints]
        if hinted:
            _index_by_id(self._table.take_row_ids(hinted).select(self._columns).to_arrow(), wanted, found)
        left = [name for name in wanted if name not in found]
        if left:
            search = self._table.search().where(_among(left)).select(self._columns)
            _index_by_id(search.limit(len(left)).to_arrow(), wanted, found)
        return found

    def remove(self, ids: Sequence[str]) -> int:
        """Remove rows in one commit; returns how many existed."""
        if not ids:
            return 0
        with self._writing(), self._told_if_damaged():
            there = int(self._table.count_rows(_among(ids)))
            if there:
                self._table.delete(_among(ids))
        return there

    def count(self, where: Where | None = None) -> int:
        """Return the number of rows, or of those that satisfy `where`."""
        return int(self._table.count_rows(None if where is None else to_sql(where)))

    def listing(self, where: Where | None = None, *, columns: Sequence[str] | None = None) -> Iterator[ListedRows]:
        """Yield all rows of one state without their vectors, in parts, in the order of ids."""
        names = list(self._config.columns if columns is None else columns)
        fields = [field_name(name) for name in names]
        search = self._table.search().select(["id", *fields])
        if where is not None:
            search = search.where(to_sql(where))
        whole = search.to_arrow().sort_by("id")
        for start in range(0, whole.num_rows, _PART):
            part = whole.slice(start, _PART)
            yield ListedRows(tuple(part["id"].to_pylist()), tuple(_entries(part, names)))

    def listed(self, ids: Sequence[str]) -> ListedRows:
        """Return the rows of these ids without their vectors, in this order; unknown ids are left out."""
        wanted, names = list(dict.fromkeys(ids)), list(self._config.columns)
        if not wanted:
            return ListedRows((), ())
        fields = [field_name(name) for name in names]
        search = self._table.search().where(_among(wanted)).select(["id", *fields]).limit(len(wanted))
        found = search.to_arrow()
        rows = dict(zip(found["id"].to_pylist(), _entries(found, names), strict=True))
        there = tuple(key for key in wanted if key in rows)
        return ListedRows(there, tuple(rows[key] for key in there))

    def set_columns(self, columns: Mapping[str, ColumnType], named_types: Sequence[str]) -> None:
        """Add columns or give them wider types, in one commit."""
        with self._writing():
            self._refresh()
            config = dataclasses.replace(self._config, columns=dict(columns), named_types=tuple(named_types))
            if config == self._config:
                return
            import pyarrow as pa

            schema = _schema(config)
            batches = self._table.search().to_batches(_PART)
            new = pa.RecordBatchReader.from_batches(schema, (_with_columns(one, schema, config) for one in batches))
            self._table = _connect(self.folder).create_table(_TABLE, data=new, schema=schema, mode="overwrite")
        self._hints.clear()
        self._refresh()

    def _refresh(self) -> None:
        """Read the settings again where another process has added or widened columns."""
        about = (self._table.schema.metadata or {}).get(_KEY)
        if about is not None and about != self._about:
            self._about, self._config = about, IndexConfig.from_json(about)
            self._columns = list(_schema(self._config).names)

    def require_free(self) -> None:
        """Raise InUseError while another process is writing."""
        require_unlocked(self.folder / "writer.lock", "index")

    def faults(self) -> tuple[str, ...]:
        """What is missing or damaged beside the rows: indexes over columns, the number of cells that a query searches.
        `optimize` makes them again."""
        faults = [f"the index over {_over(index)} {_REMADE}" for index in self._broken_indexes()]
        try:
            self._read_cells()
        except ValueError:
            faults.append(f"the number of cells that a query searches ({CELLS_FILE}) {_REMADE}")
        return tuple(faults)

    def _broken_indexes(self) -> list[Any]:
        """The indexes over columns that cannot answer."""
        probes = {
            "id": lambda: self._table.count_rows(_among(["nobody"])),
            "pooled": lambda: (
                self._table.search(np.zeros(self._config.dim, np.float32), vector_column_name="pooled")
                .distance_type("dot")
                .select(["id", "_distance"])
                .limit(1)
                .to_arrow()
            ),
        }
        broken = []
        for index in self._table.list_indices():
            try:
                probes[_over(index)]()
            except Exception:  # LanceDB raises what it likes on damaged files
                broken.append(index)
        return broken

    @contextmanager
    def _told_if_damaged(self) -> Iterator[None]:
        """Explain an error of LanceDB where it comes from the files of an index over a column."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            faults = self.faults()
            if not faults:
                raise
            raise DamagedIndexError(f"index: {self.folder}: {faults[0]}") from error

    def optimize(self, *, new: bool = False) -> None:
        """Merge small files, build or extend the indexes, drop versions that no reader can still be using."""
        from lancedb.index import BTree, IvfFlat

        with self._writing():
            for index in self._broken_indexes():
                self._table.drop_index(index.name)
            rows = self._table.count_rows()
            there = {_over(index) for index in self._table.list_indices()}
            if rows and "id" not in there:
                self._table.create_index("id", config=BTree())
            made = rows >= INDEX_FROM and "pooled" not in there
            if made:
                self._table.create_index("pooled", config=IvfFlat(distance_type="dot", num_partitions=_cells(rows)))
            merged = self._table.stats()["fragment_stats"]["num_fragments"] > 1
            self._table.optimize(cleanup_older_than=_KEPT_VERSIONS)
            if new and merged:
                time.sleep(_READING.total_seconds())
                self._table.optimize(cleanup_older_than=_READING)
            if _cells(rows) > LEAST_PROBED and (made or ("pooled" in there and not self._cells_are_measured(rows))):
                self._measure_cells(rows)
        self._hints.clear()

    def info(self) -> StoreInfo:
        """Return size and state."""
        rows = self.count()
        found = [index for index in self._table.list_indices() if _over(index) == "pooled"]
        covered = min(rows, found[0].num_indexed_rows) if found else 0
        kept = self._kept_cells() if found else None
        return StoreInfo(
            kind="LanceDB",
            uri=str(self.folder),
            rows=rows,
            indexed=covered,
            index=str(found[0].index_type) if found else "none",
            searched=None if kept is None else _in_words(kept),
            disk_bytes=sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()),
        )

    def version(self) -> str:
        """Return the number of the last commit."""
        return str(self._table.version)

    def read_text(self, name: str) -> str | None:
        """Return a text that is kept with the index, a file of its folder, or None."""
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def write_text(self, name: str, text: str) -> None:
        """Keep a text with the index, as a file of its folder."""
        write_text(self.folder / name, text)

    def texts(self) -> tuple[str, ...]:
        """Return the names of the texts that are kept with the index, the JSON files of its folder."""
        files = (file for file in self.folder.glob("*.json") if file.is_file())
        return tuple(sorted(file.name for file in files if file.name != CELLS_FILE))

    def close(self) -> None:
        """Forget the hints; LanceDB needs no closing."""
        self._hints.clear()

    def _writing(self) -> Any:
        return exclusive_lock(self.folder / "writer.lock")

    def _remember(self, ids: Sequence[str], numbers: Sequence[int]) -> None:
        if len(self._hints) > _HINTS:
            self._hints = {}
        self._hints.update(zip(ids, numbers, strict=True))


def _connect(folder: Path) -> Any:
    require("search", "an index in a folder")
    lancedb = import_lancedb()
    # Each connection has caches of its own, as another index may have taken the place of one at the same path.
    session = lancedb.Session(index_cache_size_bytes=CACHED_VECTORS, metadata_cache_size_bytes=CACHED_METADATA)
    # Without an interval a table would keep showing the state in which it was opened.
    return lancedb.connect(folder, read_consistency_interval=datetime.timedelta(0), session=session)


def _check_folder(folder: Path, allowed: Sequence[str]) -> None:
    """Raise FileExistsError for a folder that holds something else than an index."""
    if folder.is_file():
        raise FileExistsError(f"index: {folder} is a file; choose a new folder")
    if folder.is_dir() and not (folder / f"{_TABLE}.lance").exists():
        inside = sorted(entry.name for entry in folder.iterdir() if entry.name not in allowed)
        if inside:
            raise FileExistsError(f"index: {folder} contains {', '.join(inside[:3])} and no index; choose a new folder")


def _over(index: Any) -> str:
    """The column of an index over a column."""
    return str(index.columns[0])


def _cells(rows: int) -> int:
    """Number of cells of the vector index: about the square root of the number of rows."""
    return int(2 ** round(math.log2(max(1, rows)) / 2))


def _in_words(kept: Mapping[str, Any]) -> str:
    """What `_measure_cells` has found, for people."""
    found = f"{100 * kept['recall']:.1f} % of the {_NEAREST} nearest, at worst {100 * kept['worst']:.0f} %"
    return f"{kept['probed']:,} of {kept['cells']:,} cells a query, which find {found}"


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(sql_value(name) for name in ids)})"


def _schema(config: IndexConfig) -> pa.Schema:
    import pyarrow as pa

    types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("pooled", pa.list_(pa.float32(), config.dim), nullable=False),
    ]
    if config.row_bytes:
        fields.append(pa.field("regions", pa.binary(config.row_bytes), nullable=False))
    fields.append(pa.field("checksum", pa.int64(), nullable=False))
    fields += [pa.field(field_name(name), types[kind]) for name, kind in config.columns.items()]
    return pa.schema(fields, metadata={_KEY: config.to_json().encode()})


def _to_arrow(rows: Rows, config: IndexConfig) -> pa.Table:
    import pyarrow as pa

    schema = _schema(config)
    flat = pa.array(np.ascontiguousarray(rows.pooled).reshape(-1))
    columns: list[Any] = [pa.array(rows.ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, config.dim)]
    if config.row_bytes:
        data = pa.py_buffer(np.ascontiguousarray(rows.coded).tobytes())
        columns.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(config.row_bytes), len(rows), [None, data]))
    columns.append(pa.array(rows.checksums, pa.int64()))
    columns += [
        pa.array([entry.get(name) for entry in rows.metadata], schema.field(field_name(name)).type)
        for name in config.columns
    ]
    return pa.table(columns, schema=schema)


def _index_by_id(table: pa.Table, wanted: Mapping[str, None], found: dict[str, tuple[Any, int]]) -> None:
    """Record in `found` where in the table each wanted row is."""
    for batch in table.to_batches():
        for row, name in enumerate(batch["id"].to_pylist()):
            if name in wanted:
                found[name] = (batch, row)


def _from_arrow(places: Sequence[tuple[Any, int]], config: IndexConfig) -> Rows:
    """Collect rows at places (batch, row) of record batches, in this order."""
    count = len(places)
    pooled, coded = np.empty((count, config.dim), np.float32), np.empty((count, config.row_bytes), np.uint8)
    checksums = np.empty(count, np.int64)
    ids: list[str] = [""] * count
    metadata: list[Mapping[str, Value]] = [{}] * count
    of_batch: dict[int, tuple[Any, list[tuple[int, int]]]] = {}
    for place, (batch, row) in enumerate(places):
        of_batch.setdefault(id(batch), (batch, []))[1].append((place, row))
    for batch, pairs in of_batch.values():
        to, rows = (list(side) for side in zip(*pairs, strict=True))
        chosen = batch.take(rows)
        pooled[to] = chosen["pooled"].flatten().to_numpy(zero_copy_only=False).reshape(len(rows), config.dim)
        if config.row_bytes:
            buffer, start = chosen["regions"].buffers()[1], chosen["regions"].offset * config.row_bytes
            flat = np.frombuffer(buffer, np.uint8, len(rows) * config.row_bytes, start)
            coded[to] = flat.reshape(len(rows), config.row_bytes)
        checksums[to] = chosen["checksum"].to_numpy(zero_copy_only=False)
        names, entries = chosen["id"].to_pylist(), _entries(chosen, list(config.columns))
        for at, name, entry in zip(to, names, entries, strict=True):
            ids[at], metadata[at] = name, entry
    return Rows(tuple(ids), pooled, coded, tuple(metadata), checksums)


def _entries(found: Any, columns: Sequence[str]) -> list[dict[str, Value]]:
    """Metadata of the rows of a table or record batch, one mapping for each."""
    fields = found.select([field_name(name) for name in columns])
    entries: list[dict[str, Value]] = fields.rename_columns(list(columns)).to_pylist()
    return entries


def _with_columns(batch: pa.RecordBatch, schema: pa.Schema, config: IndexConfig) -> pa.RecordBatch:
    """Rows with added and wider columns."""
    import pyarrow as pa

    columns, kinds = [], {field_name(name): kind for name, kind in config.columns.items()}
    for entry in schema:
        there = batch.schema.get_field_index(entry.name)
        if there < 0:
            columns.append(pa.nulls(batch.num_rows, entry.type))
        elif batch.schema.field(there).type == entry.type:
            columns.append(batch.column(there))
        else:
            kind = kinds[entry.name]
            values = [widened_value(value, kind) for value in batch.column(there).to_pylist()]
            columns.append(pa.array(values, entry.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
