"""Which files are images: the one way to list a folder, and to look up a name that a list or a user gives.

Links are followed, and a link to a folder above is cut. A file has one identity, whatever its names: of several links
or hard links to a file one is used. Names are compared exactly, else in Unicode's NFC, else without regard to letter
case, where that is clear. Only regular files are images.
"""

# A `Path` for each of a hundred thousand names takes longer than reading their folder.
# ruff: noqa: PTH110, PTH112, PTH114, PTH115, PTH116, PTH118, PTH121

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from diml.data.image_files import IMAGE_ENDINGS

#: What is left out, other than files of endings that are not read.
BROKEN: Final = "broken links"
LOOPS: Final = "links to a folder above"
SECOND_NAMES: Final = "second names of files or folders"
SPECIAL: Final = "pipes, sockets or devices"
_NO_ENDING: Final = "without ending"
_SHOWN: Final = 8


class LeftOutWarning(UserWarning):
    """Files of a folder are not used."""


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image, by its ending."""
    return _ending(name) in IMAGE_ENDINGS


def _ending(name: str) -> str:
    """As that of `os.path.splitext`, in lower case, in a third of the time."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def nfc(name: str) -> str:
    """A name or label in Unicode's NFC: some systems write an accented letter as two characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


@dataclass(frozen=True, repr=False)
class FoundImages:
    """The images in a folder and below.

    Args:
        folder: that was listed, as it was given.
        names: the images, sorted by parts: their paths below `folder`, with `/`.
        left_out: what was left out -> how often: endings such as `.txt`, `BROKEN`, `LOOPS`, `SECOND_NAMES`, `SPECIAL`.
        closed: folders that could not be opened; what is below them is unknown.
    """

    folder: Path
    names: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    closed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"FoundImages({str(self.folder)!r}, {len(self):,} images, {sum(self.left_out.values()):,} left out)"

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The paths of the images, each beginning with `folder`."""
        start = os.path.join(self.folder, "")
        return tuple(Path(start + name) for name in self.names)

    def notice(self) -> str | None:
        """What was left out, in one line; None where that is nothing."""
        told = left_out_line(self.left_out, self.closed)
        return None if told is None else f"{self.folder}: left out {told}"


def left_out_line(left_out: Mapping[str, int], closed: Sequence[str] = ()) -> str | None:
    """What of a folder was left out, in one line, most frequent first; None where that is nothing.

    Args:
        left_out, closed: as of `FoundImages`.
    """
    total = sum(left_out.values())
    order = sorted(left_out, key=lambda what: (-left_out[what], what))
    told = [f"{left_out[what]:,} {what}" for what in order[:_SHOWN]]
    if rest := sum(left_out[what] for what in order[_SHOWN:]):
        told.append(f"{rest:,} others")
    parts = [f"{total:,} file{'s' * (total != 1)}: {', '.join(told)}"] if total else []
    if closed:
        parts.append(f"{len(closed):,} folders that cannot be opened (the first is {closed[0]})")
    return "; ".join(parts) or None


def find_images(folder: str | os.PathLike[str]) -> FoundImages:
    """List all images in a folder and below.

    Hidden files and folders, and tables of LanceDB, are passed over. A folder that is reached by several names is read
    once: by the name without links, else by the first one in alphabetical order.

    Args:
        folder: to list; links in it may lead out of it.

    Raises:
        OSError: the folder itself cannot be opened.
    """
    walk = _Walk(os.path.realpath(folder))
    walk.below(os.fspath(folder), walk.root)
    while walk.links:  # by rounds, so that a name with fewer links on its way comes first
        links, walk.links = sorted(walk.links), []
        walk.round += 1
        for path, real in links:
            walk.below(path, real)
    start = len(os.path.join(os.fspath(folder), ""))
    names = [path[start:].replace(os.sep, "/") for path in _distinct(walk)]
    return FoundImages(Path(folder), tuple(names), dict(walk.left_out), tuple(sorted(walk.closed)))


def folder_names(folder: str | os.PathLike[str]) -> list[str]:
    """The sorted names of the sub-folders, linked ones included; not hidden ones and links to a folder above."""
    real = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and _is_folder(entry)
            and not (entry.is_symlink() and _contains(os.path.realpath(entry.path), real))
        )


class _File(NamedTuple):
    """A regular file; `rank` is the number of the round in which its folder was read, one more for a link to a file."""

    path: str
    real: str
    device: int
    number: int
    rank: int


class _Walk:
    """The folders and files met so far."""

    def __init__(self, root: str) -> None:
        self.root, self.round = root, 0
        self.files: list[_File] = []
        self.links: list[tuple[str, str]] = []
        self.seen: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.closed: list[str] = []

    def below(self, path: str, real: str) -> None:
        """Read a folder, whose real path is `real`, and those below it; linked folders wait in `links`."""
        stack = [(path, real)]
        while stack:
            path, real = stack.pop()
            if real in self.seen:
                self.left_out[SECOND_NAMES] += 1
                continue
            self.seen.add(real)
            try:
                device = os.stat(path).st_dev
                with os.scandir(path) as entries:
                    below = os.path.join(real, "")
                    for entry in entries:
                        if not entry.name.startswith("."):
                            self._take(entry, below, device, stack)
            except OSError:
                if real == self.root:
                    raise
                self.closed.append(path)

    def _take(self, entry: os.DirEntry[str], real: str, device: int, stack: list[tuple[str, str]]) -> None:
        if entry.is_symlink():
            self._take_link(entry, real)
        elif entry.is_dir():
            if not entry.name.endswith(".lance"):
                stack.append((entry.path, real + entry.name))
        elif not entry.is_file():
            self.left_out[SPECIAL] += 1
        else:
            self._take_file(entry, real + entry.name, device, entry.inode(), self.round)

    def _take_link(self, entry: os.DirEntry[str], real: str) -> None:
        try:
            status = entry.stat()
        except OSError:  # its target is missing, or it leads to itself
            self.left_out[BROKEN] += 1
            return
        target = os.path.realpath(entry.path)
        if stat.S_ISREG(status.st_mode):
            # After the folders of this round: the name of a file in its own folder comes first.
            self._take_file(entry, target, status.st_dev, status.st_ino, self.round + 1)
        elif not stat.S_ISDIR(status.st_mode):
            self.left_out[SPECIAL] += 1
        elif any(_contains(target, place) for place in (self.root, real.rstrip(os.sep))):
            self.left_out[LOOPS] += 1
        else:
            self.links.append((entry.path, target))

    def _take_file(self, entry: os.DirEntry[str], real: str, device: int, number: int, rank: int) -> None:
        ending = _ending(entry.name)
        if ending in IMAGE_ENDINGS:
            self.files.append(_File(entry.path, real, device, number, rank))
        else:
            self.left_out[ending or _NO_ENDING] += 1


def _contains(folder: str, path: str) -> bool:
    """Whether a path is a folder, or below it; both are real."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _distinct(walk: _Walk) -> list[str]:
    """One path of each file, sorted by parts; the others are counted as second names."""
    order = sorted(walk.files, key=lambda file: _by_parts(file.path))
    linked = any(file.rank for file in order)
    if linked:
        order.sort(key=lambda file: file.rank)
    known, kept = _Identities(), set()
    paths: list[str] = []
    for file in order:
        if file.real in kept or known.first(file.real, (file.device, file.number)) != file.real:
            walk.left_out[SECOND_NAMES] += 1
        else:
            kept.add(file.real)
            paths.append(file.path)
    return sorted(paths, key=_by_parts) if linked else paths


def _by_parts(path: str) -> str:
    """A text that sorts as the parts of a path do: the separator before all other characters."""
    return path.replace(os.sep, "\0")


class _Identities:
    """Real paths of files, of which hard links share one. Numbers of directory entries are only a hint: some network
    and layered file systems give others than `stat`."""

    def __init__(self) -> None:
        self._of_number: dict[tuple[int, int], str] = {}

    def first(self, real: str, number: tuple[int, int]) -> str:
        """The real path that was first met of the file at this one."""
        before = self._of_number.setdefault(number, real)
        if before == real:
            return real
        try:
            return before if os.path.samefile(before, real) else real
        except OSError:
            return real


def named_file(path: str | os.PathLike[str]) -> Path:
    """The file that a user means, by the rules of `FileListing.find`; the path as it is where there is none."""
    given = Path(path).expanduser()
    return given if given.is_file() else FileListing().find(given) or given


# The kind of an entry and its number come with its name: only for a link is the file system asked again.


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself, or to where nobody may look
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class _Folder:
    """The entries of a folder, by name."""

    def __init__(self, path: str) -> None:
        self.below, self.device = os.path.join(os.path.realpath(path), ""), os.stat(path).st_dev
        with os.scandir(path) as entries:
            self.entries = {entry.name: entry for entry in entries}
        self._alike: list[Mapping[str, Sequence[str]]] = []

    def alike(self, name: str) -> Sequence[Sequence[str]]:
        """The names on disk that equal `name` in NFC, and those that do but for letter case."""
        if not self._alike:
            self._alike = [_grouped(self.entries, key) for key in (nfc, _folded)]
        return [group.get(key(name), ()) for group, key in zip(self._alike, (nfc, _folded), strict=True)]

    def named(self, name: str, fits: Callable[[os.DirEntry[str]], bool]) -> str | None:
        """The name on disk: the same, else one that is equal in NFC, else the only one but for letter case."""
        entry = self.entries.get(name)
        if entry is not None and fits(entry):
            return name
        for names in self.alike(name):
            found = [one for one in names if fits(self.entries[one])]
            if found:
                return found[0] if len(found) == 1 else None
        return None


def joined(folder: str, name: str) -> str:
    """As `os.path.join` of a folder with a separator at its end, in a third of the time for most names."""
    plain = name and name[0] != "/" and os.sep == "/"
    return folder + name if plain else os.path.join(folder, name)


def _split(path: str) -> tuple[str, str]:
    """As `os.path.split`, in a third of the time for most paths."""
    folder, _, name = path.rpartition(os.sep)
    plain = folder and not folder.endswith(os.sep) and not (os.altsep and os.altsep in path)
    return (folder, name) if plain else os.path.split(path)


def _folded(name: str) -> str:
    return nfc(nfc(name).casefold())


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


class FoundFile(NamedTuple):
    """A file that was looked up: its path with the names on disk, and what all names of it have in common, see
    `FileListing.identity`."""

    path: str
    identity: str


class FileListing:
    """Looks files up, reading each folder once: a hundred thousand single look-ups are slow on a network drive."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder | None] = {}
        self._identities = _Identities()

    def find(self, path: str | os.PathLike[str]) -> Path | None:
        """Return the path of a regular file with its names on disk; None where there is none, or no clear one."""
        found = self._found(os.fspath(path))
        return None if found is None else Path(found[0])

    def look_up(self, path: str) -> FoundFile | None:
        """As `find` and `identity` in one step, for lists of a hundred thousand."""
        found = self._found(path)
        return None if found is None else FoundFile(found[0], self._identity(*found))

    def _found(self, path: str) -> tuple[str, _Folder, os.DirEntry[str]] | None:
        """The path of a regular file with its names on disk, its folder and its entry there."""
        folder, name = _split(path)
        known = self._folders.get(folder)
        entry = None if known is None else known.entries.get(name)
        if known is not None and entry is not None and _is_file(entry):  # as most of a long list
            return path, known, entry
        place = self._place(folder)
        found = None if place is None or not name else self._read(place)
        real = None if found is None else found.named(name, _is_file)
        if real is None or place is None or found is None:
            return None
        return path if (place, real) == (folder, name) else os.path.join(place, real), found, found.entries[real]

    def why_not(self, path: str | os.PathLike[str]) -> str:
        """Why `find` gives None although something of this name is there, in parentheses; empty where nothing is."""
        text = os.fspath(path)
        if os.path.isdir(text):
            return " (that is a folder)"
        if os.path.islink(text) and not os.path.exists(text):
            return f" (a broken link to {os.readlink(text)})"
        if os.path.exists(text):
            return " (that is no regular file)"
        folder, name = os.path.split(text)
        place = self._place(folder)
        found = None if place is None else self._read(place)
        alike = [] if found is None else found.alike(name)[1]
        return f" (which of {', '.join(sorted(alike))}?)" if len(alike) > 1 else ""

    def identity(self, path: str | os.PathLike[str]) -> str:
        """What all names of a file have in common: its real path, of hard links that which was asked for first."""
        folder, name = _split(os.fspath(path))
        place = self._read(folder)
        entry = None if place is None else place.entries.get(name)
        return self._identity(os.fspath(path), place, entry)

    def _identity(self, path: str, place: _Folder | None, entry: os.DirEntry[str] | None) -> str:
        if place is not None and entry is not None and entry.is_file(follow_symlinks=False):
            return self._identities.first(place.below + entry.name, (place.device, entry.inode()))
        real = os.path.realpath(path)
        try:
            status = os.stat(real)
        except (OSError, ValueError):
            return real
        return self._identities.first(real, (status.st_dev, status.st_ino))

    def _place(self, folder: str) -> str | None:
        """The path of a folder with its names on disk, or None."""
        if self._read(folder) is not None:
            return folder
        above, name = os.path.split(folder)
        place = self._place(above) if name not in ("", "..") and above != folder else None
        found = None if place is None else self._read(place)
        real = None if found is None else found.named(name, _is_folder)
        return None if real is None or place is None else os.path.join(place, real)

    def _read(self, folder: str) -> _Folder | None:
        if folder not in self._folders:
            try:
                self._folders[folder] = _Folder(folder or os.curdir)
            except (OSError, ValueError):  # a name with a zero byte is a ValueError
                self._folders[folder] = None
        return self._folders[folder]
