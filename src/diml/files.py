"""Files that are whole or absent. Standard library only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` when the block ends well, else remove it.

    The data is flushed to disk before the rename, so a crash leaves the old file or the new one, never half of one.
    Missing folders are made.

    Raises:
        OSError: the folder cannot be written to, or the block did not write the file.

    Example:
        >>> with whole_file("table.csv") as temporary:
        ...     temporary.write_text("method,recall@1\\n")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()  # the block makes it anew, with the permissions of an ordinary file
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text as a whole file; returns the path."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
