"""Files and folders written atomically, one writer at a time. Standard library only.

What is being written lies in a hidden folder beside its target, with a lock that ends with the process. A process that
is killed leaves that folder behind, and the next one that writes into the same place removes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Beginning of the names of folders for what is being written, and the lock inside.
_SCRATCH: Final = ".diml-"
_WRITER: Final = "writer"
#: The lock of a folder that one process uses at a time.
_USER: Final = ".in_use"
#: Errors of file systems that have no locks, such as some network disks.
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

#: Errors of writing, which do not name the file.
_OF_DISKS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}

#: Folders that this process has cleared of what killed processes left.
_cleared: set[tuple[int, Path]] = set()


class InUseError(OSError):
    """Another process works in a folder that admits one at a time."""


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path near `path`; rename it to `path` when the block succeeds, otherwise remove it.

    The data is flushed to disk before the rename, so a crash leaves either the old file or the new one.
    Missing parent folders are created.

    Args:
        path: the file to write. The temporary path has the same suffix and lies on the same disk.

    Yields:
        The temporary path, at which the block has to create the file.

    Raises:
        OSError: the folder is not writable, or the block did not create the file.

    Example:
        >>> with atomic_file("table.csv") as temporary:
        ...     temporary.write_text("method,recall@1\\n")
    """
    target = Path(path)
    with scratch_folder(target) as scratch:
        temporary = scratch / f"new{target.suffix}"
        yield temporary
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; it replaces `path` when the block succeeds and is removed on error."""
    with scratch_folder(path) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            flush(file)
        flush(new)
        _replace(path, new, scratch / "old")
        flush(path.parent)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, removed at the end, or by a later process if this one is killed.

    For what is to be renamed to `target`; the missing folders above it are created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target.parent)
    scratch, handle = _locked_scratch(target)
    try:
        yield scratch
    except OSError as error:
        within = str(error.filename or "").startswith(str(scratch))
        if within or (error.filename is None and error.errno in _OF_DISKS):  # name what the user knows
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        _remove(scratch)
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically and return the path; bytes of file names that are not UTF-8 become `\\udcNN`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def require_writable(folder: str | os.PathLike[str], *, space: int = 0) -> None:
    """Find out before a long task whether its results can be written; creates the folder.

    Args:
        folder: of the results.
        space: bytes that they will take.

    Raises:
        OSError: the folder cannot be created or written to, or its disk has less free space.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{folder}: a file is in the place of this folder; name another") from error
    with scratch_folder(folder / "results"):
        pass
    free = shutil.disk_usage(folder).free
    if free < space:
        needed, left = (f"{size / 2**20:,.0f} MiB" for size in (space, free))
        raise OSError(f"{folder}: need {needed} of free disk space, got {left}; free some, or name another folder")


def require_writable_file(path: str | os.PathLike[str]) -> None:
    """As `require_writable`, for a single file that will be written; creates the folder that it will be in."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")
    require_writable(path.parent)


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
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


@contextmanager
def only_user(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder for this process during the block; another one that wants it meanwhile is refused.

    The system releases it when the process ends, however it ends. Disks without locks are used without, with a warning.

    Args:
        folder: created when missing.
        what: name of the argument that gave the folder, for the error.

    Raises:
        InUseError: another process, or another thread of this one, is using it.
        OSError: the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _USER
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(handle, wait=False):
            raise InUseError(f"{what}: {folder} is in use by {_holder(path)}; wait until it has ended, or name another")
        about = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(handle, 0)
        os.pwrite(handle, about.encode(), 0) if hasattr(os, "pwrite") else os.write(handle, about.encode())
        yield
    finally:
        os.close(handle)


def require_unlocked(path: Path, what: str) -> None:
    """Raise InUseError while another process, or another thread of this one, is in an `exclusive_lock` of this file.

    Args:
        path: of the lock; it need not exist.
        what: name of the argument that gave the place, for the error.
    """
    if not path.exists():
        return
    handle = os.open(path, os.O_RDWR)
    try:
        if not _lock(handle, wait=False):
            raise InUseError(f"{what}: {path.parent} is being written to by another process; wait until it has ended")
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(about['process'])} on {str(about['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written this yet
        return "another process"


def _locked_scratch(target: Path) -> tuple[Path, int]:
    """A new folder, and the handle that holds its lock."""
    while True:
        try:
            scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=target.parent))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        try:
            handle = os.open(scratch / _WRITER, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process took it for a leftover
            continue
        try:
            os.write(handle, os.fsencode(target.name))
            if _lock(handle, wait=False) and scratch.exists():
                return scratch, handle
        except BaseException:
            _remove(scratch)
            os.close(handle)
            raise
        os.close(handle)  # as above


def _clear_leftovers(parent: Path) -> None:
    """Remove what killed processes were writing in a folder; the folders of processes that live are locked."""
    place = (os.getpid(), parent.absolute())
    if place in _cleared or os.name == "nt":
        return
    _cleared.add(place)
    for leftover in parent.glob(f"{_SCRATCH}????????"):
        with contextlib.suppress(OSError):
            if not (leftover / _WRITER).exists():
                leftover.rmdir()  # fails unless it is empty
                continue
            handle = os.open(leftover / _WRITER, os.O_RDWR)
            try:
                if _lock(handle, wait=False, otherwise=False):
                    _settle(leftover, parent / os.fsdecode(os.read(handle, 4096)))
                    _remove(leftover)
            finally:
                os.close(handle)


def _remove(scratch: Path) -> None:
    """Remove such a folder, its lock last: what has no lock is not known to be ours."""
    with contextlib.suppress(OSError):
        for path in scratch.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _WRITER:
                path.unlink(missing_ok=True)
        (scratch / _WRITER).unlink(missing_ok=True)
        scratch.rmdir()


def _settle(leftover: Path, target: Path) -> None:
    """Finish the swap of two folders if the process was killed between its two steps."""
    new = leftover / "new"
    if (leftover / "old").exists() and new.exists() and not target.exists():
        new.rename(target)


def _lock(handle: int, *, wait: bool, otherwise: bool = True) -> bool:
    """Lock an open file; returns whether it is locked, and `otherwise` where the disk or the system has no locks."""
    if os.name == "nt":
        return otherwise
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("this disk has no locks: use each folder with one process at a time", stacklevel=4)
        return otherwise
    return True


def _replace(path: Path, new: Path, aside: Path) -> None:
    if path.exists():
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
