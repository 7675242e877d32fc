"""What a store of embedded images is: few methods, the same for every data base behind them.

Legend: N rows, Q queries, R regions, D channels, B bytes of a image's coded regions.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from diml.search.filters import Where

ColumnType = Literal["text", "integer", "number", "boolean"]
Storage = Literal["float16", "int8", "none"]
Value = str | int | float | bool | None

RESERVED: Final = frozenset({"id", "pooled", "regions"})
_FORMAT: Final = 1
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What an index is of; written when it is made, and never changed.

    Attributes:
        dim: D of the pooled vectors and of the regions.
        num_regions: R of each image; 0 with storage "none".
        grid: (rows, columns) of the regions, or None.
        storage: regions as "float16", as "int8" with one scale a region, or "none" (pooled vectors only).
        columns: metadata of each image, name -> type.
        embedder: `Embedder.fingerprint()` of what made the vectors; others are refused.
        model: how to load that embedder again: plain values for JSON.

    Raises:
        ValueError: a value out of its range, or a column that cannot be called so.
    """

    dim: int
    num_regions: int
    grid: tuple[int, int] | None = None
    storage: Storage = "float16"
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    embedder: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.storage not in get_args(Storage):
            raise ValueError(f"storage: need one of {', '.join(get_args(Storage))}, got {self.storage!r}")
        if self.dim < 1 or (self.num_regions < 1) != (self.storage == "none"):
            got = f"dim {self.dim}, num_regions {self.num_regions}, storage {self.storage}"
            raise ValueError(f"dim, num_regions: need 1 or more (num_regions 0 with storage 'none'), got {got}")
        for name, kind in self.columns.items():
            if not _NAME.fullmatch(name) or name in RESERVED:
                raise ValueError(f"columns: need letters, digits and _, and none of {sorted(RESERVED)}, got {name!r}")
            if kind not in get_args(ColumnType):
                raise ValueError(f"columns: {name} needs one of {', '.join(get_args(ColumnType))}, got {kind!r}")

    @property
    def row_bytes(self) -> int:
        """B, bytes of the coded regions of a image; see `diml.search.coding`."""
        each = {"float16": 2 * self.dim, "int8": self.dim + 4, "none": 0}[self.storage]
        return self.num_regions * each

    def to_json(self) -> str:
        """The settings as JSON text, for the store to keep."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexConfig:
        """Read what `to_json` wrote; ValueError where that is something else."""
        try:
            settings = json.loads(text)
            version, grid = settings.pop("format"), settings.pop("grid")
            if version == _FORMAT:
                return cls(**settings, grid=None if grid is None else (grid[0], grid[1]))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"index: not the settings of one: {error}") from error
        raise ValueError(f"index: need format {_FORMAT}, got {version!r}; a newer diml wrote it? Update diml")


@dataclass(frozen=True, eq=False)
class Rows:
    """N images as they are stored.

    Attributes:
        ids: N distinct names.
        pooled: (N, D) float32, unit vectors.
        coded: (N, B) uint8, the regions (see `diml.search.coding`); (N, 0) with storage "none".
        metadata: N mappings, column -> value; None, or no entry, where a image has no value.
    """

    ids: tuple[str, ...]
    pooled: NDArray[np.float32]
    coded: NDArray[np.uint8]
    metadata: tuple[Mapping[str, Value], ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The rows nearest to one query, best first.

    Attributes:
        ids: at most k names.
        cosine: as many, float32, falling.
    """

    ids: tuple[str, ...]
    cosine: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Listed:
    """Some rows without their vectors: names and metadata."""

    ids: tuple[str, ...]
    metadata: tuple[Mapping[str, Value], ...]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Facts about a store.

    Attributes:
        kind: name of the data base.
        uri: where it is.
        rows: images in it.
        indexed: how many of them the index over pooled vectors covers; the others are compared one by one.
        index: which index that is, or "none".
        disk_bytes: size on disk; None where the data base does not tell.
    """

    kind: str
    uri: str
    rows: int
    indexed: int
    index: str
    disk_bytes: int | None


class Store(Protocol):
    """Embedded images by name. Every adapter keeps to the tests in `tests/unit/search/contract.py`.

    What a call of `add` or `remove` wrote is there, whole, when the call returns, whatever happens to the process
    then; until it returns it is there whole or not at all. Each call sees a state between two such writes.
    """

    @property
    def config(self) -> IndexConfig:
        """What the index is of."""
        ...

    def add(self, rows: Rows) -> None:
        """Write rows; those whose id is there already are replaced. ValueError where they do not fit the config."""
        ...

    def nearest(
        self, pooled: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Neighbours]:
        """The k rows (fewer where there are fewer) of the largest cosine to each of the queries (Q, D).

        Args:
            pooled: (Q, D) float32 unit vectors.
            k: at least 1.
            where: only rows whose metadata fit; the k best of those.
            exact: compare with every row, whatever index there is.
        """
        ...

    def regions(self, ids: Sequence[str]) -> Rows:
        """All of these rows, in this order; ids that are not there are left out."""
        ...

    def remove(self, ids: Sequence[str]) -> int:
        """Take rows out; returns how many were there."""
        ...

    def count(self, where: Where | None = None) -> int:
        """How many rows there are, or fit."""
        ...

    def listing(self, where: Where | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Listed]:
        """All rows of one state without their vectors, part by part, each once; metadata of some columns or all."""
        ...

    def optimize(self) -> None:
        """Build or extend the index over pooled vectors, join small files, drop old versions."""
        ...

    def info(self) -> StoreInfo:
        """Facts for people."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class IndexNotFoundError(FileNotFoundError):
    """There is no index at this place."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"index: there is none at {uri}; make one by: diml index build FOLDER --index {uri}")


def check_rows(rows: Rows, config: IndexConfig) -> None:
    """Refuse rows that do not fit an index, before anything is written.

    Raises:
        ValueError: shapes, lengths, repeated ids, unknown columns or values of a wrong type.
    """
    count = len(rows.ids)
    shapes = (rows.pooled.shape, rows.coded.shape, len(rows.metadata))
    needed = ((count, config.dim), (count, config.row_bytes), count)
    if shapes != needed or rows.pooled.dtype != np.float32 or rows.coded.dtype != np.uint8:
        got = f"{shapes} in {rows.pooled.dtype} and {rows.coded.dtype}"
        raise ValueError(f"rows: need pooled float32, coded uint8, metadata of {needed}, got {got}")
    if len(set(rows.ids)) != count or not all(rows.ids):
        raise ValueError("rows: need distinct ids, none of them empty")
    if not np.isfinite(rows.pooled).all():
        raise ValueError("rows: need finite pooled vectors, got NaN or infinity; they would be no one's neighbour")
    for entry in rows.metadata:
        for name, value in entry.items():
            if name not in config.columns:
                known = ", ".join(config.columns) or "none"
                raise ValueError(f"metadata: no column {name!r} in this index; it was made with: {known}")
            kind = config.columns[name]
            wrong = isinstance(value, bool) and kind != "boolean"
            if value is not None and (wrong or not isinstance(value, _KINDS[kind])):
                raise ValueError(f"metadata: {name} needs {kind}, got {value!r}")


def check_queries(pooled: NDArray[np.float32], k: int, config: IndexConfig) -> None:
    """Refuse queries of another shape than (Q, D), and k below 1."""
    if pooled.ndim != 2 or pooled.shape[1] != config.dim or pooled.dtype != np.float32:
        raise ValueError(f"pooled: need float32 (Q, {config.dim}), got {pooled.dtype} {pooled.shape}")
    if not np.isfinite(pooled).all():
        raise ValueError("pooled: need finite values, got NaN or infinity")
    if k < 1:
        raise ValueError(f"k: need at least 1, got {k}")
