"""Images as Milvus keeps them: fields, records, conditions.

The regions are base64 text, in as many fields as it takes: every version of Milvus has text, none that we support has
bytes. A column of metadata is two fields, value and whether there is one, as there were no missing values before 2.5.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from diml.search.filters import Both, Comparison, Constant, Either, Membership, Operator, Where
from diml.search.store import ColumnType, IndexConfig, Rows, Value

#: Bytes of a text field, the most that Milvus allows.
LONGEST_TEXT: Final = 65_535
_PIECE: Final = LONGEST_TEXT // 4 * 4
_LARGEST: Final = 2**63 - 1
_ABSENT: Final[Mapping[ColumnType, Value]] = {"text": "", "integer": 0, "number": 0.0, "boolean": False}
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def make_schema(config: IndexConfig) -> Any:
    """The fields of a collection."""
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
    for name in region_fields(config):
        schema.add_field(name, DataType.VARCHAR, max_length=LONGEST_TEXT)
    for name, kind in config.columns.items():
        length = {"max_length": LONGEST_TEXT} if kind == "text" else {}
        schema.add_field(f"value_{name}", types[kind], **length)
        schema.add_field(f"has_{name}", DataType.BOOL)
    return schema


def region_fields(config: IndexConfig) -> list[str]:
    """Names of the fields that hold the regions, one after the other."""
    return [f"regions_{part}" for part in range(math.ceil(coded_bytes(config) / _PIECE))]


def coded_bytes(config: IndexConfig) -> int:
    """Bytes of a image's regions in base64."""
    return 4 * math.ceil(config.row_bytes / 3)


def column_fields(columns: Sequence[str]) -> list[str]:
    """Names of the fields of columns."""
    return [field for name in columns for field in (f"value_{name}", f"has_{name}")]


def to_records(rows: Rows, config: IndexConfig) -> list[dict[str, Any]]:
    """Rows as Milvus takes them.

    Raises:
        ValueError: a name or a text is too long for Milvus, an integer too large.
    """
    records = []
    for row, (name, entry) in enumerate(zip(rows.ids, rows.metadata, strict=True)):
        record: dict[str, Any] = {"id": _checked("id", name), "pooled": rows.pooled[row]}
        text = base64.b64encode(rows.coded[row].tobytes()).decode("ascii")
        for part, field in enumerate(region_fields(config)):
            record[field] = text[part * _PIECE : (part + 1) * _PIECE]
        for column, kind in config.columns.items():
            value = entry.get(column)
            record[f"has_{column}"] = value is not None
            stored = _ABSENT[kind] if value is None else _checked(column, value)
            record[f"value_{column}"] = float(stored) if kind == "number" and stored is not None else stored
        records.append(record)
    return records


def from_records(records: Sequence[Mapping[str, Any]], config: IndexConfig) -> Rows:
    """Rows of what Milvus gave back, in the same order."""
    pooled, coded = (
        np.empty((len(records), config.dim), np.float32),
        np.empty((len(records), config.row_bytes), np.uint8),
    )
    fields = region_fields(config)
    for row, record in enumerate(records):
        pooled[row] = record["pooled"]
        coded[row] = np.frombuffer(base64.b64decode("".join(record[field] for field in fields)), np.uint8)
    ids = tuple(str(record["id"]) for record in records)
    return Rows(ids, pooled, coded, tuple(metadata_of(record, tuple(config.columns)) for record in records))


def metadata_of(record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Value]:
    """Some columns of a record."""
    return {name: record[f"value_{name}"] if record[f"has_{name}"] else None for name in columns}


def quoted(text: str) -> str:
    """A text in the language of Milvus."""
    return f'"{text.translate(_ESCAPES)}"'


def among(ids: Sequence[str]) -> str:
    """The condition that an id is one of these."""
    return f"id in [{', '.join(quoted(name) for name in ids)}]"


def in_parts(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    """Distinct ids, so many at a time."""
    distinct = list(dict.fromkeys(ids))
    yield from (distinct[start : start + size] for start in range(0, len(distinct), size))


def to_expression(where: Where, columns: Mapping[str, ColumnType]) -> str:
    """A condition in the language of Milvus; same meaning as `to_sql`.

    Raises:
        ValueError: a number that Milvus cannot hold in that column.
    """
    match where:
        case Comparison(column, operator, value):
            return _both(column, _compared(column, columns[column], operator, value))
        case Membership(column, values, negated):
            kind = columns[column]
            fit = [_constant(column, kind, value) for value in values if kind != "integer" or _is_whole(value)]
            if not fit:
                return _both(column, "" if negated else "never")
            return _both(column, f"value_{column} {'not in' if negated else 'in'} [{', '.join(fit)}]")
        case Both(left, right):
            return f"({to_expression(left, columns)} and {to_expression(right, columns)})"
        case Either(left, right):
            return f"({to_expression(left, columns)} or {to_expression(right, columns)})"


def _both(column: str, term: str) -> str:
    """There is a value, and the term holds."""
    if term == "never":
        return f"(has_{column} == true and has_{column} == false)"
    return f"(has_{column} == true and {term})" if term else f"has_{column} == true"


def _compared(column: str, kind: ColumnType, operator: Operator, value: Constant) -> str:
    if kind == "integer" and not _is_whole(value):  # Milvus compares integers with integers only
        assert isinstance(value, float)
        if operator in ("=", "!="):
            return "never" if operator == "=" else ""
        down = operator in ("<", "<=")
        operator, value = ("<=", math.floor(value)) if down else (">=", math.ceil(value))
    sign = "==" if operator == "=" else operator
    return f"value_{column} {sign} {_constant(column, kind, value)}"


def _is_whole(value: Constant) -> bool:
    return not isinstance(value, float) or math.isinf(value) or value.is_integer()


def _constant(column: str, kind: ColumnType, value: Constant) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        number = int(value) if kind == "integer" else float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) or (kind == "integer" and abs(number) > _LARGEST):
        need = "a whole number of 64 bits" if kind == "integer" else "a number up to 1.8e308"
        raise ValueError(f"where: {column} needs {need} in Milvus, got {value}")
    return repr(number)


def _checked(column: str, value: Value) -> Value:
    """The value, when Milvus can hold it."""
    if isinstance(value, str) and (size := len(value.encode())) > LONGEST_TEXT:
        raise ValueError(
            f"{column}: need at most {LONGEST_TEXT} bytes of text in Milvus, got {size} in {value[:40]!r}..."
        )
    if type(value) is int and abs(value) > _LARGEST:
        raise ValueError(f"{column}: need whole numbers of 64 bits in Milvus, got {value}")
    return value
