"""Regions in files that other programs read, with the paths, labels and model of their images: `.npz` and `.parquet`.

An `.npz` file holds one array for each of the names below, a `.parquet` file one column, and one row an image:

- `pooled` (N, D) and `dense` (N, R, D); of quantized regions `codes` (N, R, D) and `scale` (N, R) instead of `dense`;
- `shares` (N, R, D) and `masses` (N, R), where the regions have them;
- `path` and `label`, where they are given: text, or whole numbers for labels.

Numbers are stored bit for bit. numpy and Parquet have no bfloat16: its 16 bits are stored as uint16. The grid, the
types of the arrays, and settings and fingerprint of the model are one JSON text: the array `about`, or the metadata
`diml` of the schema. Files of other programs need no such text, and their lists need not be of fixed size.

Legend: N images, R regions, D channels.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.checksums import sealed, unsealed
from diml.documents import of_type, parse_json
from diml.extras import MissingExtraError
from diml.files import atomic_file, require_writable_file
from diml.matching import QuantizedRegions, Regions
from diml.matching.regions import AT_ONCE, NO_MASSES, NOT_COMPUTED

if TYPE_CHECKING:
    from diml.models.embedder import Embedder

_FORMAT: Final = 1
_ABOUT: Final = "about"
#: Of the metadata of a Parquet schema.
_KEY: Final = "diml"
#: Array -> its axes: how deep the lists of its column are nested.
_AXES: Final = {"pooled": 2, "dense": 3, "codes": 3, "scale": 2, "shares": 3, "masses": 2}
_TEXTS: Final = ("path", "label")
#: Of a row group of a Parquet file, which is compressed and read as a whole.
_GROUP_BYTES: Final = 1 << 25
#: What reading a damaged file raises.
_DAMAGE: Final = (
    *(ValueError, TypeError, KeyError, IndexError, OSError, EOFError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_REMEDY: Final = "write it again with diml.save_regions, or `diml embed`"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class RegionTable:
    """Regions of N images with what belongs to each image, as read by `load_regions`.

    Attributes:
        regions: N images, on the CPU.
        paths: N paths of image files, as they were given; None where there are none.
        labels: N class names, or whole numbers; None where there are none.
        model: what the regions were made by: `config`, the settings of the embedder (see `EmbedderConfig.to_dict`), and
            its `fingerprint`. Only regions of one embedder can be compared. None where it was not told.

    Raises:
        ValueError: there is not one path or label an image.
    """

    regions: Regions | QuantizedRegions
    paths: tuple[str, ...] | None = None
    labels: tuple[str, ...] | tuple[int, ...] | None = None
    model: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("paths", "labels"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.regions):
                raise ValueError(f"{name}: need {len(self.regions)}, one an image, got {len(values)}")

    def __len__(self) -> int:
        return len(self.regions)

    def __repr__(self) -> str:
        having = [name for name in ("paths", "labels", "model") if getattr(self, name) is not None]
        return f"RegionTable({self.regions!r}{', with ' * bool(having)}{', '.join(having)})"


def save_regions(
    regions: Regions | QuantizedRegions,
    path: str | os.PathLike[str],
    *,
    paths: Sequence[str | os.PathLike[str]] | None = None,
    labels: Sequence[str] | Sequence[int] | NDArray[Any] | Tensor | None = None,
    embedder: Embedder | None = None,
) -> None:
    """Write regions to an `.npz` or `.parquet` file that numpy, pandas and others read, atomically.

    `load_regions` returns the same bits, whatever the dtype. docs/export.md lists arrays and columns.

    Args:
        regions: N images, on any device; `Regions`, or quantized ones.
        path: the file, which is replaced when it exists; its ending decides on the format. `.parquet` needs pyarrow.
        paths: N paths of the images.
        labels: (N,) classes of the images: strings or whole numbers.
        embedder: what made the regions; its settings and fingerprint are written down.

    Raises:
        TypeError, ValueError: another ending; not one path or label an image; a text that is not UTF-8.
        MissingExtraError: `.parquet` without pyarrow.
        OSError: the file cannot be written.

    Example:
        >>> save_regions(embedder.embed(files), "regions.npz", paths=files, embedder=embedder)  # doctest: +SKIP
    """
    file = Path(path)
    write = {".npz": _write_npz, ".parquet": _write_parquet}[_ending(file)]
    if not len(regions):
        raise ValueError("regions: need at least one image, got none")
    texts: Arrays = {}
    if paths is not None:
        texts["path"] = _texts("paths", [os.fspath(one) for one in paths], len(regions))
    if labels is not None:
        texts["label"] = _labels(labels, len(regions))
    named = {name: getattr(regions, name, None) for name in _AXES}
    tensors = {name: tensor.detach() for name, tensor in named.items() if tensor is not None}
    require_writable_file(file)
    with atomic_file(file) as scratch:
        write(scratch, tensors, texts, json.dumps(sealed(_about(regions, tensors, texts, embedder))))


def load_regions(path: str | os.PathLike[str]) -> RegionTable:
    """Read regions from an `.npz` or `.parquet` file written by `save_regions`, `diml embed` or another program.

    Another program has to write `dense` (N, R, D) and `pooled` (N, D), unit vectors of a float type, and may write
    `path` and `label`; the grid is inferred where R is a square.

    Args:
        path: the file.

    Returns:
        The regions on the CPU, with the paths, labels and the description of the model, where the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, or the file is damaged: its checksums do not hold, or its arrays are no regions.
        MissingExtraError: `.parquet` without pyarrow.

    Example:
        >>> table = load_regions("regions.parquet")  # doctest: +SKIP
        >>> diml.evaluate_regions(table.regions, table.labels)  # doctest: +SKIP
    """
    file = Path(path)
    read = {".npz": _read_npz, ".parquet": _read_parquet}[_ending(file)]
    if not file.is_file():
        raise FileNotFoundError(f"path: {file} is no file; name one that diml.save_regions or `diml embed` has written")
    with file.open("rb"):  # whatever keeps it from being opened is told as it is
        pass
    try:
        arrays, text = read(file)
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: damaged, or not a file of regions ({reason}); {_REMEDY}") from error
    try:
        return _table(arrays, None if text is None else _described(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: {error}; {_REMEDY}") from error


def require_region_file(path: Path) -> None:
    """Find out before a long task whether regions can be written to a file: ending, packages, place.

    Raises:
        ValueError, MissingExtraError, OSError: as `save_regions`.
    """
    if _ending(path) == ".parquet":
        _parquet(path)
    require_writable_file(path)


def _ending(file: Path) -> str:
    if file.suffix not in (".npz", ".parquet"):
        raise ValueError(f"{file}: need a file name that ends in .npz or .parquet")
    return file.suffix


def _about(
    regions: Regions | QuantizedRegions, tensors: Mapping[str, Tensor], texts: Arrays, embedder: Embedder | None
) -> dict[str, Any]:
    """The JSON document that stands beside the arrays."""
    reasons = {"massless": regions.massless}
    if isinstance(regions, Regions):
        reasons["undivided"] = regions.undivided
    model = embedder and {"config": embedder.config.to_dict(), "fingerprint": embedder.fingerprint()}
    return {
        "format": _FORMAT,
        "written_by": f"diml {version('diml')}",
        "grid": regions.grid and list(regions.grid),
        "arrays": {name: _type_name(tensor) for name, tensor in tensors.items()},
        "texts": sorted(texts),
        "reasons": reasons,
        "model": model,
    }


def _described(text: str) -> dict[str, Any]:
    """The document, checked."""
    about = unsealed(parse_json(text, _ABOUT), _ABOUT, "it may not be edited")
    if about["format"] != _FORMAT:
        raise ValueError(f"format: need {_FORMAT}, got {about['format']!r}; written by a newer diml? Update diml")
    for name in ("arrays", "reasons", "model"):
        if not isinstance(about[name], dict) and (name, about[name]) != ("model", None):
            raise TypeError(f"{name}: need a mapping, got {type(about[name]).__name__}")
    return about


def _table(arrays: Arrays, about: Mapping[str, Any] | None) -> RegionTable:
    """The table of the arrays of a file, through the checks of `Regions`."""
    paths, labels = (arrays.pop(name, None) for name in _TEXTS)
    types: Mapping[str, str] = {} if about is None else about["arrays"]
    texts = [name for name, found in zip(_TEXTS, (paths, labels), strict=True) if found is not None]
    if about is not None and (arrays.keys() != types.keys() or sorted(texts) != about["texts"]):
        raise ValueError(f"need {sorted(types)} and {about['texts']}, got {sorted(arrays)} and {sorted(texts)}")
    tensors: dict[str, Any] = {name: _tensor(name, array, types.get(name)) for name, array in arrays.items()}
    if "pooled" not in tensors or ("dense" in tensors) == ("codes" in tensors):
        raise ValueError(
            f"need pooled (N, D), and dense (N, R, D) or codes and scale, got {', '.join(arrays) or 'none'}"
        )
    more: dict[str, Any] = {"massless": NO_MASSES}
    if about is not None:
        grid = about["grid"]
        more = {name: of_type(reason, str, name) for name, reason in about["reasons"].items()}
        more["grid"] = None if grid is None else of_type(grid, tuple[int, int], "grid")
    if "codes" in tensors:
        regions: Regions | QuantizedRegions = _quantized(tensors, more)
    else:
        regions = Regions(**tensors, **({"undivided": NOT_COMPUTED} | more))
    model = None if about is None else about["model"]
    return RegionTable(regions, _plain(paths), _plain(labels), model)


def _quantized(tensors: dict[str, Any], more: dict[str, Any]) -> QuantizedRegions:
    """Quantized regions whose vectors have been checked as those of `Regions` are."""
    regions = QuantizedRegions(**tensors, **more)
    for start in range(0, len(regions), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        pooled = regions.pooled[rows]
        Regions(regions[rows].dense.to(pooled.dtype), pooled)
    return regions


def _plain(values: NDArray[Any] | None) -> Any:
    """A tuple of texts or whole numbers."""
    if values is None:
        return None
    if values.ndim != 1 or values.dtype.kind not in "Uiu":
        raise ValueError(f"path, label: need one text or whole number an image, got {values.dtype} {values.shape}")
    return tuple(values.tolist())


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as numpy has it: bfloat16 as its 16 bits."""
    plain = tensor.cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(np.uint16)
    return plain.numpy()


def _tensor(name: str, array: NDArray[Any], kind: str | None) -> Tensor:
    """The tensor that `_array` was given, `kind` being the name of its dtype; None: as the array tells."""
    if array.ndim != _AXES[name]:
        raise ValueError(f"{name}: need {_AXES[name]} axes, got shape {array.shape}")
    bits = kind == "bfloat16"
    if kind is not None and array.dtype.name != ("uint16" if bits else kind):
        raise TypeError(f"{name}: need {kind}, got {array.dtype}")
    if bits:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _labels(labels: Any, count: int) -> NDArray[Any]:
    """Labels as an array of texts, or of int64."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if all(isinstance(label, str) for label in values):
        return _texts("labels", values, count)
    wrong = [label for label in values if isinstance(label, bool) or not isinstance(label, int | np.integer)]
    if wrong:
        raise TypeError(f"labels: need strings only or whole numbers only, got {wrong[0]!r}")
    return _one_an_image("labels", np.asarray(values, dtype=np.int64), count)


def _texts(name: str, values: list[Any], count: int) -> NDArray[Any]:
    """Texts as an array, which keeps them unchanged."""
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name}: need strings, got {value!r}")
        if "\0" in value or any("\ud800" <= sign <= "\udfff" for sign in value):
            raise ValueError(f"{name}: need UTF-8 without null characters, got {value!r}; rename it")
    return _one_an_image(name, np.asarray(values, dtype=np.str_), count)


def _one_an_image(name: str, values: NDArray[Any], count: int) -> NDArray[Any]:
    if len(values) != count:
        raise ValueError(f"{name}: need {count}, one an image, got {len(values)}")
    return values


def _write_npz(file: Path, tensors: Mapping[str, Tensor], texts: Arrays, about: str) -> None:
    arrays: dict[str, Any] = {name: _array(tensor) for name, tensor in tensors.items()}
    np.savez(file, **arrays | texts | {_ABOUT: np.asarray(about)})


def _read_npz(file: Path) -> tuple[Arrays, str | None]:
    known, found = {f"{name}.npy": name for name in (*_AXES, *_TEXTS, _ABOUT)}, {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            with archive.open(member) as opened:  # also of others: its name stands twice in the file, which is compared
                if member in known:
                    found[known[member]] = np.lib.format.read_array(opened, allow_pickle=False)
    about = found.pop(_ABOUT, None)
    return found, None if about is None else str(about[()])


def _parquet(file: Path) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f"{file}: pyarrow is not installed; pip install 'diml[search]', or use an .npz file"
        raise MissingExtraError(message, name="pyarrow") from error
    return pyarrow, pyarrow.parquet


def _write_parquet(file: Path, tensors: Mapping[str, Tensor], texts: Arrays, about: str) -> None:
    """Row group by row group, so that only one of them is copied."""
    arrow, parquet = _parquet(file)
    rows = len(tensors["pooled"])
    step = max(1, _GROUP_BYTES * rows // sum(tensor.nbytes for tensor in tensors.values()))

    def columns(some: slice) -> dict[str, Any]:
        found = {name: arrow.array(values[some].tolist(), _text_type(values)) for name, values in texts.items()}
        return found | {name: nested(_array(tensor[some])) for name, tensor in tensors.items()}

    def _text_type(values: NDArray[Any]) -> Any:
        return arrow.int64() if values.dtype.kind == "i" else arrow.string()

    def nested(array: NDArray[Any]) -> Any:
        values = arrow.array(array.reshape(-1))
        for length in reversed(array.shape[1:]):
            values = arrow.FixedSizeListArray.from_arrays(values, length)
        return values

    first = columns(slice(0, step))
    schema = arrow.table(first).schema.with_metadata({_KEY: about})
    options = {"use_dictionary": list(texts), "write_statistics": list(texts), "write_page_checksum": True}
    with parquet.ParquetWriter(file, schema, compression="zstd", **options) as writer:
        for start in range(0, rows, step):
            some = columns(slice(start, start + step)) if start else first
            writer.write_table(arrow.table(some, schema=schema), row_group_size=step)


def _read_parquet(file: Path) -> tuple[Arrays, str | None]:
    """Batch by batch into arrays that are allocated once."""
    arrow, parquet = _parquet(file)
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            about = (opened.schema_arrow.metadata or {}).get(_KEY.encode())
            if about is None and b'"sha256": "' in _footer(file):  # a file of ours, of which a byte is damaged
                raise ValueError(f"its description is there, but not as the metadata {_KEY}")
            names = [name for name in (*_AXES, *_TEXTS) if name in opened.schema_arrow.names]
            parts: dict[str, list[Any]] = {name: [] for name in _TEXTS if name in names}
            arrays: Arrays = {}
            filled = 0
            for batch in opened.iter_batches(AT_ONCE, columns=names):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    if name in parts:
                        parts[name] += column.to_pylist()
                        continue
                    some = _flat(name, column)
                    if name not in arrays:
                        arrays[name] = np.empty((opened.metadata.num_rows, *some.shape[1:]), some.dtype)
                    arrays[name][filled : filled + len(some)] = some
                filled += len(batch)
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error
    if any(len(array) != filled for array in arrays.values()):
        raise ValueError(f"got {filled} of its rows")
    arrays |= {name: _column(name, values) for name, values in parts.items()}
    return arrays, None if about is None else about.decode()


def _footer(file: Path) -> bytes:
    """The metadata of a Parquet file as they are stored."""
    with file.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - length, os.SEEK_END)
        return opened.read(length)


def _column(name: str, values: list[Any]) -> NDArray[Any]:
    """A column of texts or whole numbers as an array."""
    if any(value is None for value in values):
        raise ValueError(f"{name}: need a value in every row, got null")
    return np.asarray(values, dtype=np.str_ if all(isinstance(value, str) for value in values) else np.int64)


def _flat(name: str, column: Any) -> NDArray[Any]:
    """A column of nested lists, all of one length at each level, as an array (rows, ...)."""
    shape = [len(column)]
    for _ in range(_AXES[name] - 1):
        inner = column.flatten()  # leaves null lists out
        length = len(inner) // max(len(column), 1)
        offsets = getattr(column, "offsets", None)  # of lists that are not of fixed size
        even = offsets is None or set(np.diff(offsets.to_numpy()).tolist()) <= {length}
        if column.null_count or not even or length * len(column) != len(inner):
            raise ValueError(f"{name}: need lists of one length in every row")
        shape.append(length)
        column = inner
    if column.null_count:
        raise ValueError(f"{name}: need numbers, got null")
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False).reshape(shape)
    return array
