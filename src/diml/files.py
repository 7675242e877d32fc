"""Files and folders that are whole or absent. Standard library only."""

from __future__ import annotations

import os
import shutil
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
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to put files in; in the end it takes the place of `path`, on error it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    scratch = around / "new"
    scratch.mkdir()
    try:
        yield scratch
        for file in scratch.iterdir():
            flush(file)
        flush(scratch)
        _replace(path, scratch, around / "old")
        flush(path.parent)
    finally:
        shutil.rmtree(around, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text as a whole file; returns the path."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _replace(path: Path, new: Path, aside: Path) -> None:
    if path.exists():
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Let one process, and one thread of it, at a time into the block; the others wait. The file stays, empty.

    The system gives the lock back when its holder ends, however that happens. On Windows nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.name != "nt":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
