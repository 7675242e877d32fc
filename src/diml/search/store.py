"""The contract of a store of embedded images, the same for every back end, and how regions are encoded in it.

Legend: N rows, Q queries, R regions, D channels, B bytes of the encoded regions of one image.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from diml.checksums import DamagedError, sealed, unsealed
from diml.documents import parse_json
from diml.matching import LearnedMatcher, Matcher, QuantizedRegions, Regions
from diml.matching.codebooks import CENTROIDS, Codebooks, group_count, group_width
from diml.matching.readings import Readings, keep_readings
from diml.matching.weights import masses_of
from diml.search.filters import LARGEST_INTEGER, ColumnType, Where
from diml.search.names import name_fault
from diml.spelling import shown

Storage = Literal["float16", "int8", "1kb", "none"]
Value = str | int | float | bool | None

_FORMAT: Final = 2
#: How far the length of a stored pooled vector may be from 1; a vector of zeros is allowed too.
UNIT_TOLERANCE: Final = 5e-3
#: Above it not every whole number is a float64.
EXACT: Final = 2**53
_PYTHON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The settings of an index, written when it is created; only columns are added or widened afterwards.

    Args:
        dim: D of the pooled vectors and of the regions.
        num_regions: R of each image; 0 with storage "none".
        grid: (rows, columns) of the regions, or None.
        storage: regions as "float16", as "int8" with one scale per region, as "1kb", codes of at most 32 bytes a region
            (see `diml.matching.codebooks`), or "none" (pooled vectors only).
        masses: whether the masses of the regions are kept (`Regions.masses`), float32.
        columns: metadata of each image, name -> type.
        named_types: columns whose types were named, not found from their cells.
        embedder: `Embedder.fingerprint()` of the embedder of the vectors; others are rejected.
        model: how to load that embedder again, as plain values for JSON.
        matcher: how images of the index are compared unless a search says otherwise.
        codebooks: with storage "1kb" what the codes stand for, as `codebooks_text` writes it; else empty.
        scorer: identity of the learned scorer whose readings of every image are kept (`LearnedMatcher.readings`), so
            that a search maps the query only; empty for none.

    Raises:
        ValueError: a value is out of range, or a column name or type is invalid.
    """

    dim: int
    num_regions: int
    grid: tuple[int, int] | None = None
    storage: Storage = "float16"
    masses: bool = False
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    named_types: tuple[str, ...] = ()
    embedder: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    matcher: Matcher = field(default_factory=Matcher)
    scorer: str = ""
    codebooks: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self._check_types()
        if self.storage not in get_args(Storage):
            raise ValueError(f"storage: need one of {', '.join(get_args(Storage))}, got {shown(self.storage)}")
        if self.dim < 1 or (self.num_regions < 1) != (self.storage == "none"):
            got = f"dim {self.dim}, num_regions {self.num_regions}, storage {self.storage}"
            raise ValueError(f"dim, num_regions: need 1 or more (num_regions 0 with storage 'none'), got {got}")
        if (self.storage == "1kb") != bool(self.codebooks):
            got = f"{'some' if self.codebooks else 'none'} with storage {self.storage}"
            raise ValueError(f"codebooks: need them for storage 1kb, and only there, got {got}")
        if self.codebooks:
            _codebooks_of(self.codebooks, self.dim)
        for name, kind in self.columns.items():
            fault = name_fault(name)
            if fault is not None:
                raise ValueError(f"columns: {fault}")
            if kind not in get_args(ColumnType):
                raise ValueError(f"columns: {name} needs one of {', '.join(get_args(ColumnType))}, got {shown(kind)}")

    def _check_types(self) -> None:
        """Raise ValueError for values of other types, as damaged settings have them."""
        whole = [self.dim, self.num_regions, *(() if self.grid is None else self.grid)]
        if not all(type(number) is int and 0 <= number < 1 << 31 for number in whole):
            raise ValueError(f"dim, num_regions, grid: need whole numbers, got {shown(whole)}")
        cells = None if self.grid is None or self.storage == "none" else math.prod(self.grid)
        if cells not in (None, self.num_regions) or (self.grid is not None and len(self.grid) != 2):
            raise ValueError(f"grid: need (rows, columns) of {self.num_regions} regions, got {shown(self.grid)}")
        texts = {"embedder": str, "scorer": str, "codebooks": str}
        kinds = {"columns": Mapping, "model": Mapping, "matcher": Matcher, **texts}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: need a {kind.__name__}, got {shown(getattr(self, name))}")  # noqa: TRY004

    @property
    def row_bytes(self) -> int:
        """B, bytes of the encoded regions of an image; see `encode_regions`."""
        sizes = {"float16": 2 * self.dim, "int8": self.dim + 4, "1kb": group_count(self.dim), "none": 0}
        each = sizes[self.storage] + 4 * self.masses
        return self.num_regions * each + self.reading_bytes

    @property
    def reading_bytes(self) -> int:
        """Of them, those of the readings of a learned scorer."""
        return 4 * (2 * self.num_regions + 1) if self.scorer and self.storage != "none" else 0

    def to_json(self) -> str:
        """Return the settings as JSON text with their sha256, which the store keeps."""
        settings = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        plain = {"columns": dict(self.columns), "model": dict(self.model), "matcher": self.matcher.to_dict()}
        return json.dumps(sealed({"format": _FORMAT, **settings, **plain}))

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexConfig:
        """Read the output of `to_json`; anything else raises ValueError."""
        try:
            settings = parse_json(text, "the settings")
            version = settings["format"]
            if version == _FORMAT:
                settings = unsealed(settings, "the settings", "build the index again")
                del settings["format"]
                matcher, named = Matcher.from_dict(settings.pop("matcher")), tuple(settings.pop("named_types"))
                grid = settings.pop("grid")
                grid = None if grid is None else (int(grid[0]), int(grid[1]))
                return cls(**settings, grid=grid, matcher=matcher, named_types=named)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"index: the stored settings are not those of an index: {error}") from error
        remedy = "build the index again" if isinstance(version, int) and version < _FORMAT else "update diml"
        raise ValueError(f"index: need format {_FORMAT}, got {version!r}; {remedy}")


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """N images as they are stored.

    Args:
        ids: N distinct names.
        pooled: (N, D) float32, unit vectors.
        coded: (N, B) uint8, the encoded regions (see `encode_regions`); (N, 0) with storage "none".
        metadata: N mappings, column -> value; None, or no entry, where an image has no value.
        checksums: (N,) int64 of rows that were read, as they were written; None of rows that are to be written.
    """

    ids: tuple[str, ...]
    pooled: NDArray[np.float32]
    coded: NDArray[np.uint8]
    metadata: tuple[Mapping[str, Value], ...]
    checksums: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Rows(N={len(self)}, D={self.pooled.shape[1]}, B={self.coded.shape[1]})"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The rows nearest to one query, best first.

    Args:
        ids: at most k names.
        cosine: float32, one value per name, descending.
    """

    ids: tuple[str, ...]
    cosine: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ListedRows:
    """Some rows without their vectors: names and metadata."""

    ids: tuple[str, ...]
    metadata: tuple[Mapping[str, Value], ...]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Size and state of a store.

    Args:
        kind: name of the database.
        uri: where it is.
        rows: number of images.
        indexed: how many of them the vector index over pooled vectors covers; the others are compared exhaustively.
        index: type of the vector index, or "none".
        disk_bytes: size on disk; None where the database does not report it.
        searched: how much of the vector index a query searches and what share of the nearest images that finds, where
            it was measured.
    """

    kind: str
    uri: str
    rows: int
    indexed: int
    index: str
    disk_bytes: int | None
    searched: str | None = None


class Store(Protocol):
    """Embedded images by name. Every back end has to pass the tests in `tests/unit/search/contract.py`.

    A call of `add` or `remove` is atomic and durable: what it wrote is complete when the call returns, whatever happens
    to the process afterwards; before it returns, all of it or nothing is visible. Every read sees a state between two
    such writes.
    """

    @property
    def config(self) -> IndexConfig:
        """The settings of the index."""
        ...

    def add(self, rows: Rows) -> None:
        """Write rows, replacing those with the same id; ValueError where they do not fit the config."""
        ...

    def nearest(
        self, pooled: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Neighbours]:
        """Return the k rows (fewer where there are fewer) of largest cosine to each of the queries.

        Args:
            pooled: (Q, D) float32 unit vectors.
            k: at least 1.
            where: only rows whose metadata satisfy it; the k best of those.
            exact: compare with every row instead of searching the vector index.
        """
        ...

    def regions(self, ids: Sequence[str], *, check: bool = True) -> Rows:
        """Return the rows of these ids, in this order; unknown ids are left out.

        Args:
            ids: names of images.
            check: raise `DamagedIndexError` where a row is not as it was written, instead of returning it.
        """
        ...

    def remove(self, ids: Sequence[str]) -> int:
        """Remove rows; returns how many existed."""
        ...

    def count(self, where: Where | None = None) -> int:
        """Return the number of rows, or of those that satisfy `where`."""
        ...

    def listing(self, where: Where | None = None, *, columns: Sequence[str] | None = None) -> Iterator[ListedRows]:
        """Yield all rows of one state without their vectors, in parts, each once; metadata of some columns or all."""
        ...

    def listed(self, ids: Sequence[str]) -> ListedRows:
        """Return the rows of these ids without their vectors, in this order; unknown ids are left out."""
        ...

    def set_columns(self, columns: Mapping[str, ColumnType], named_types: Sequence[str]) -> None:
        """Add columns, or give them wider types; all rows are written anew with the same vectors.

        Args:
            columns: all columns of the index, with types as wide as before or wider (see `diml.search.cells.WIDER`).
            named_types: as of `IndexConfig`.
        """
        ...

    def require_free(self) -> None:
        """Raise InUseError where a write would have to wait for another process; a server never makes it wait."""
        ...

    def faults(self) -> tuple[str, ...]:
        """Return defects of what belongs to the index beside its rows, one line each."""
        ...

    def optimize(self, *, new: bool = False) -> None:
        """Build or extend the vector index over pooled vectors, merge small files, drop old versions.

        Args:
            new: the index was created a moment ago: the files that were merged are dropped at once, not when nobody can
                be reading them any more, so that it does not take twice the space until the next call.
        """
        ...

    def info(self) -> StoreInfo:
        """Return size and state."""
        ...

    def version(self) -> str:
        """Return what is another text whenever rows or columns have changed, as far as the database tells."""
        ...

    def read_text(self, name: str) -> str | None:
        """Return a text that is kept with the index, such as `calibration.json`, or None."""
        ...

    def write_text(self, name: str, text: str) -> None:
        """Keep a text of less than a megabyte with the index, replacing one of the same name."""
        ...

    def texts(self) -> tuple[str, ...]:
        """Return the names of the texts that are kept with the index, sorted."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


class IndexNotFoundError(FileNotFoundError):
    """There is no index at this place."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"index: there is none at {uri}; create one with: diml index build FOLDER --index {uri}")


class DamagedIndexError(DamagedError):
    """Rows of an index are not as they were written."""


def row_checksums(rows: Rows) -> NDArray[np.int64]:
    """64 bits of BLAKE2 of each row: name, vectors and metadata, (N,).

    A column without a value does not count, and a value counts as its text, so that adding or widening columns changes
    no checksum.
    """
    found = np.empty(len(rows), np.int64)
    pooled, coded = np.ascontiguousarray(rows.pooled, "<f4"), np.ascontiguousarray(rows.coded)
    for row, (name, entry) in enumerate(zip(rows.ids, rows.metadata, strict=True)):
        filled = sorted((column, printed(value)) for column, value in entry.items() if value is not None)
        told = json.dumps([name, *filled], ensure_ascii=True).encode()
        digest = hashlib.blake2b(told, digest_size=8)
        digest.update(pooled[row])
        digest.update(coded[row])
        found[row] = int.from_bytes(digest.digest(), "little", signed=True)
    return found


def printed(value: Value) -> str:
    """The text of a value, the same before and after its column has become wider."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return str(int(value))
    return str(value)


def row_faults(rows: Rows) -> list[str]:
    """What is wrong with rows that were read, one line each: another checksum, a vector that is not of unit length."""
    assert rows.checksums is not None
    faults = []
    changed = rows.checksums != row_checksums(rows)
    length = _lengths(rows.pooled)
    sound = _of_unit_length(length)
    for row in np.flatnonzero(changed | ~sound):
        why = (
            "not as it was written (another checksum)"
            if changed[row]
            else f"a pooled vector of length {length[row]:.4g}"
        )
        faults.append(f"{rows.ids[row]}: {why}")
    return faults


def require_sound(rows: Rows, place: str) -> Rows:
    """Return rows that were read; DamagedIndexError where any has a fault."""
    faults = row_faults(rows)
    if faults:
        raise DamagedIndexError(
            f"index: {place} is damaged: {len(faults)} of {len(rows)} rows that were read, {faults[0]}; list all with "
            "`diml index verify`, and build the index again, or restore it from a copy"
        )
    return rows


def _lengths(pooled: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):  # of damaged vectors
        length: NDArray[np.float64] = np.linalg.norm(pooled.astype(np.float64), axis=1)
    return length


def _of_unit_length(length: NDArray[np.float64]) -> NDArray[np.bool_]:
    sound: NDArray[np.bool_] = (np.abs(length - 1) <= UNIT_TOLERANCE) | (length == 0)  # False for NaN
    return sound


def checked_rows(rows: Rows, config: IndexConfig) -> Rows:
    """Validate rows against an index, before anything is written; returns them as they come back, with checksums.

    Raises:
        ValueError: wrong shapes, lengths, repeated ids, unknown columns or values of a wrong type.
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
        raise ValueError("rows: need finite pooled vectors, got NaN or infinity, which have no nearest neighbours")
    length = _lengths(rows.pooled)
    if not _of_unit_length(length).all():
        row = int(np.flatnonzero(~_of_unit_length(length))[0])
        raise ValueError(f"rows: need pooled vectors of length 1, got {length[row]:.4g} of {rows.ids[row]}")
    _check_metadata(rows, config)
    kinds = config.columns
    entries = tuple({name: _stored(value, kinds[name]) for name, value in entry.items()} for entry in rows.metadata)
    stored = dataclasses.replace(rows, metadata=entries)
    return dataclasses.replace(stored, checksums=row_checksums(stored))


def _check_metadata(rows: Rows, config: IndexConfig) -> None:
    for entry in rows.metadata:
        for name, value in entry.items():
            if name not in config.columns:
                known = ", ".join(config.columns) or "none"
                raise ValueError(f"metadata: no column {name!r} in this index; its columns: {known}")
            kind = config.columns[name]
            wrong = isinstance(value, bool) and kind != "boolean"
            if value is not None and (wrong or not isinstance(value, _PYTHON_TYPES[kind])):
                raise ValueError(f"metadata: {name} needs {kind}, got {value!r}")
            if kind == "integer" and isinstance(value, int) and abs(value) > LARGEST_INTEGER:
                raise ValueError(f"metadata: {name} needs whole numbers up to {LARGEST_INTEGER} (64 bits), got {value}")
            if kind == "number" and value is not None and not _is_finite(value):
                raise ValueError(f"metadata: {name} needs finite numbers, got {value!r}")


def _stored(value: Value, kind: ColumnType) -> Value:
    return float(value) + 0.0 if kind == "number" and value is not None else value  # no negative zero


def _is_finite(value: Value) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond 1.8e308
        return False


def check_queries(pooled: NDArray[np.float32], k: int, config: IndexConfig) -> None:
    """Validate queries: float32 (Q, D), finite, and k of at least 1."""
    if pooled.ndim != 2 or pooled.shape[1] != config.dim or pooled.dtype != np.float32:
        raise ValueError(f"pooled: need float32 (Q, {config.dim}), got {pooled.dtype} {pooled.shape}")
    if not np.isfinite(pooled).all():
        raise ValueError("pooled: need finite values, got NaN or infinity")
    if k < 1:
        raise ValueError(f"k: need at least 1, got {k}")


def encode_regions(regions: Regions, config: IndexConfig, matcher: Matcher | None = None) -> NDArray[np.uint8]:
    """Encode the regions of N images as (N, B) bytes, little-endian.

    float16: R * D values, region by region. int8: R * D codes, then R scales in float32. 1kb: R * S codes. Then, where
    the index keeps them, R masses in float32; and R + 1 lengths and R dustbins in float32, which the scorer of
    `matcher` reads off the regions as they are stored. They are NaN with another matcher, and are then read at every
    search.

    Raises:
        ValueError: the regions differ in R or D from those of the index, or lack the masses that it keeps.
    """
    if config.storage == "none":
        return np.empty((len(regions), 0), dtype=np.uint8)
    if (regions.num_regions, regions.dim) != (config.num_regions, config.dim):
        need, got = f"R {config.num_regions}, D {config.dim}", f"R {regions.num_regions}, D {regions.dim}"
        raise ValueError(f"regions: need {need} as in the index, got {got}; embed with the model of the index")
    if config.storage == "float16":
        halves = np.ascontiguousarray(regions.dense.detach().cpu().to(torch.float16).numpy().astype("<f2"))
        parts = [halves.view(np.uint8).reshape(len(regions), 2 * config.num_regions * config.dim)]
        coded = np.concatenate(parts + _coded_masses(regions, config), axis=1)
        return _with_readings(coded, regions, config, matcher)
    if config.storage == "1kb":
        numbers = regions.quantized("1kb", codebooks=_codebooks_of(config.codebooks, config.dim)).codes.cpu().numpy()
        parts = [numbers.reshape(len(regions), -1), *_coded_masses(regions, config)]
        return _with_readings(np.concatenate(parts, axis=1), regions, config, matcher)
    packed = regions.quantized()
    assert packed.scale is not None
    codes = packed.codes.cpu().numpy().view(np.uint8).reshape(len(regions), config.num_regions * config.dim)
    scales = np.ascontiguousarray(packed.scale.cpu().numpy().astype("<f4")).view(np.uint8)
    parts = [codes, scales.reshape(len(regions), config.num_regions * 4), *_coded_masses(regions, config)]
    return _with_readings(np.concatenate(parts, axis=1), regions, config, matcher)


def kept_document(text: str, name: str, version: int, remedy: str) -> dict[str, Any]:
    """The document of a text that is kept with an index, checked.

    Args:
        text: JSON that was written with its checksum, see `diml.checksums.sealed`.
        name: of the text, as of `Store.read_text`.
        version: what its `format` has to be.
        remedy: what the user can do, for the error.

    Raises:
        ValueError: it is damaged, or was written by a newer version.
    """
    what = f"index: {name}"
    found = unsealed(parse_json(text, what), what, remedy)
    if found.get("format") != version:
        raise ValueError(f"{what}: need format {version}, got {found.get('format')!r}; update diml, or {remedy}")
    return found


def codebooks_text(codebooks: Codebooks) -> str:
    """Codebooks as the text that `IndexConfig.codebooks` keeps: base64 of the step in float64 and the centroids."""
    parts = np.array(codebooks.step, "<f8").tobytes() + codebooks.centroids.numpy().tobytes()
    return base64.b64encode(parts).decode("ascii")


@functools.lru_cache(maxsize=8)
def _codebooks_of(text: str, dim: int) -> Codebooks:
    """The codebooks of a text of `codebooks_text`; ValueError where it is none of regions of `dim` channels."""
    shape = (group_count(dim), CENTROIDS, group_width(dim))
    try:
        given = base64.b64decode(text, validate=True)
        values = np.frombuffer(given, np.int8, offset=min(8, len(given))).reshape(shape)
        return Codebooks(torch.from_numpy(values.copy()), float(np.frombuffer(given, "<f8", 1)[0]), dim)
    except ValueError as error:
        need = f"the text of {math.prod(shape):,} numbers of 8 bits and a step for D {dim}"
        raise ValueError(f"codebooks: need {need}, got another ({error})") from error


def _with_readings(
    coded: NDArray[np.uint8], regions: Regions, config: IndexConfig, matcher: Matcher | None
) -> NDArray[np.uint8]:
    """Encoded regions (N, B) with the readings of the scorer, where the index keeps them."""
    if not config.reading_bytes:
        return coded
    numbers = np.full((len(coded), 2 * config.num_regions + 1), np.nan, "<f4")
    if isinstance(matcher, LearnedMatcher) and matcher.scorer is not None and matcher.scorer_id == config.scorer:
        pooled = regions.pooled.detach().cpu().float().numpy()
        found = matcher.readings(_decoded(coded, pooled, dataclasses.replace(config, scorer="")))
        numbers[:] = torch.cat(found, dim=1).numpy()
    return np.concatenate([coded, numbers.view(np.uint8)], axis=1)


def _coded_masses(regions: Regions, config: IndexConfig) -> list[NDArray[np.uint8]]:
    """The masses of the regions as (N, 4 R) bytes, where the index keeps them."""
    if not config.masses:
        return []
    masses = masses_of("an image of the index", regions).detach().cpu().numpy().astype("<f4")
    return [np.ascontiguousarray(masses).view(np.uint8).reshape(len(regions), config.num_regions * 4)]


def decode_regions(rows: Rows, config: IndexConfig) -> Regions | QuantizedRegions:
    """Decode the regions of stored rows.

    Returns:
        Regions in float16 with pooled vectors in float16, or QuantizedRegions in int8 or codes with pooled vectors in
        float32.

    Raises:
        ValueError: the index has no regions.
    """
    if config.storage == "none":
        raise ValueError("storage: need regions, but this index has pooled vectors only; search it with rerank_at=0")
    size = config.row_bytes - config.reading_bytes
    regions = _decoded(rows.coded[:, :size], rows.pooled, config)
    if config.reading_bytes:
        last = np.ascontiguousarray(rows.coded[:, size:]).view("<f4").astype(np.float32)
        numbers = torch.from_numpy(last)
        readings = Readings(numbers[:, : config.num_regions + 1], numbers[:, config.num_regions + 1 :])
        keep_readings(regions, config.scorer, readings)
    return regions


def _decoded(coded: NDArray[np.uint8], vectors: NDArray[np.float32], config: IndexConfig) -> Regions | QuantizedRegions:
    """Regions of (N, B) bytes, without those of readings, and of pooled vectors (N, D)."""
    shape = (len(coded), config.num_regions, config.dim)
    pooled = torch.from_numpy(np.array(vectors))
    kept: dict[str, Any] = {"masses": None, "massless": "the index was built without masses"}
    if config.masses:
        coded, last = coded[:, : -4 * config.num_regions], coded[:, -4 * config.num_regions :]
        masses = np.ascontiguousarray(last).view("<f4").astype(np.float32)
        kept["masses"] = torch.from_numpy(masses.reshape(shape[:2]))
    if config.storage == "float16":
        halves = np.array(coded).view("<f2").astype(np.float16, copy=False)  # of memory that is their own
        dense = torch.from_numpy(halves.reshape(shape))
        return Regions(dense, pooled.to(torch.float16), config.grid, **kept)
    if config.storage == "1kb":
        known = _codebooks_of(config.codebooks, config.dim)
        numbers = torch.from_numpy(np.array(coded).reshape(len(coded), config.num_regions, -1))
        return QuantizedRegions(numbers, None, pooled, config.grid, codebooks=known, **kept)
    split = config.num_regions * config.dim
    codes = torch.from_numpy(np.array(coded[:, :split]).view(np.int8).reshape(shape))
    scale = torch.from_numpy(np.ascontiguousarray(coded[:, split:]).view("<f4").astype(np.float32).reshape(shape[:2]))
    return QuantizedRegions(codes, scale, pooled, config.grid, **kept)
