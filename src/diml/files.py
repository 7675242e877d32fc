"""Files and folders written atomically: the old content or the new, never a part. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` when the block succeeds, otherwise remove it.

    The data is flushed to disk before the rename, so a crash leaves either the old file or the new one.
    Missing parent folders are created.

    Args:
        path: the file to write. The temporary path has the same suffix and folder.

    Yields:
        The temporary path, at which the block has to create the file.

    Raises:
        OSError: the folder is not writable, or the block did not create the file.

    Example:
        >>> with atomic_file("table.csv") as temporary:
        ...     temporary.write_text("method,recall@1\\n")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()  # mkstemp restricts the permissions; the block creates the file with ordinary ones
    try:
        yield temporary
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; it replaces `path` when the block succeeds and is removed on error."""
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
    """Write UTF-8 text atomically and return the path."""
    with atomic_file(path) as temporary:
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
    """Flush a file, or the entries of a folder, from the system's cache to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Admit one thread of one process at a time to the block; the others wait. The empty lock file is kept.

    The system releases the lock when its holder exits, even after a crash. There is no locking on Windows.
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
