"""Checksums of what is written and read again: damage is found when it is read, not in the numbers.

A JSON document of ours holds the sha256 of its other values under the key `sha256`, whatever its layout. Files beside a
document stand in it with their own sha256, so that it vouches for them. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from diml.documents import parse_json

_KEY: Final = "sha256"
#: What stands before the checksum of a line.
_END: Final = f', "{_KEY}": "'


class DamagedError(ValueError):
    """A file is not what was written: its checksum is another one."""


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str, remedy: str) -> None:
    """Raise unless a file has the content that was written.

    Args:
        path: of the file.
        expected: the sha256 that was written down for it.
        remedy: what the user can do, for the error.

    Raises:
        DamagedError: it has another content.
        OSError: it cannot be read.
    """
    found = file_sha256(path)
    if found != expected:
        raise DamagedError(
            f"{path}: damaged, or not the file that was written here (sha256 {found[:12]}..., need "
            f"{str(expected)[:12]}...); {remedy}"
        )


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document together with the sha256 of its values; they may be laid out in any way."""
    return {**document, _KEY: _of_values(document)}


def unsealed(document: Any, what: str, remedy: str) -> dict[str, Any]:
    """The document that was given to `sealed`, checked.

    Args:
        document: what was read.
        what: names it in the error.
        remedy: what the user can do, for the error.

    Raises:
        DamagedError: it is no document with a checksum, or its values are not those that were written.
    """
    if not isinstance(document, dict) or not isinstance(document.get(_KEY), str):
        raise DamagedError(f"{what}: need a document with the key {_KEY}; {remedy}")
    rest = {name: value for name, value in document.items() if name != _KEY}
    found = _of_values(rest)
    if found != document[_KEY]:
        raise DamagedError(
            f"{what}: damaged or changed (sha256 {found[:12]}..., need {document[_KEY][:12]}...); {remedy}"
        )
    return rest


def sealed_line(document: Mapping[str, Any]) -> str:
    """A JSON document as one line of text, with the sha256 of what stands before it: for files to which lines are added
    one by one, so that each vouches for itself."""
    text = json.dumps(document)
    return f'{text[:-1]}{_END}{hashlib.sha256(text.encode()).hexdigest()}"}}'


def unsealed_line(line: bytes, what: str) -> dict[str, Any]:
    """The document of such a line, checked; DamagedError where it is not what was written."""
    text, _, end = line.rpartition(_END.encode())
    if f'{hashlib.sha256(text + b"}").hexdigest()}"}}'.encode() != end:
        raise DamagedError(f"{what}: damaged or changed")
    document: dict[str, Any] = parse_json(text + b"}", what)
    return document


def _of_values(document: Mapping[str, Any]) -> str:
    """The sha256 of the values of a document, in a form that does not depend on layout or order."""
    plain = json.loads(json.dumps(document))  # keys become text, tuples lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
