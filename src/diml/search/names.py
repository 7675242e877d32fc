"""Names of columns: any line of text, as tables of shops have them; and the names of their fields in a database."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from diml.data.listing import nfc
from diml.spelling import shown

#: Names that an index needs for itself.
RESERVED: Final = frozenset({"id", "pooled", "regions", "checksum"})
LONGEST: Final = 100
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def name_fault(name: str) -> str | None:
    """What is wrong with a name of a column, as `need ..., got ...`, or None."""
    if name in RESERVED:
        return f"need a name other than {', '.join(sorted(RESERVED))}, got {shown(name)}"
    printable = 0 < len(name) <= LONGEST and name.isprintable() and name == name.strip() and name == nfc(name)
    return None if printable else f"need 1 to {LONGEST} printable characters, no blank at the ends, got {shown(name)}"


def field_name(column: str) -> str:
    """The name of a column's field in every database: its own where that is plain, else one of letters, digits and _.

    Databases differ in what they admit as a name. The other name begins with `_`, as no plain one does, and ends with
    64 bits of the SHA-256 of the column.

    Example:
        >>> field_name("price"), field_name("unit price")
        ('price', '_unit_price_ddf02bda9a625948')
    """
    if _PLAIN.fullmatch(column):
        return column
    legible = re.sub(r"[^A-Za-z0-9]+", "_", column).strip("_")[:40]
    return f"_{legible}_{hashlib.sha256(column.encode()).hexdigest()[:16]}"
