"""Images that clients put into an index and take out of it again.

Their files are kept in a folder, which is their source in the index, with the ids that `diml index build` would give
them; so that hits can be shown and explained, and the index can be verified. A file and its row are written one after
the other, and what failed is undone: a row is replaced as a whole or not at all. One client writes at a time, in all
server processes together.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch.utils.data import DataLoader

from diml.data.listing import is_image_name, nfc
from diml.documents import parse_json
from diml.files import InUseError, flush, only_user, scratch_folder
from diml.search.filters import LARGEST_INTEGER
from diml.search.sources import OWN_COLUMNS, SourceListing, image_file
from diml.search.store import Rows, encode_regions
from diml.spelling import did_you_mean, shown
from diml.web.errors import ApiError

if TYPE_CHECKING:
    from diml.search import Searcher
    from diml.search.filters import ColumnType
    from diml.search.store import Value
    from diml.web.uploads import Upload

_LONGEST_PATH: Final = 1000  # characters
_LONGEST_NAME: Final = 255  # bytes of one name on the disk
_WAIT: Final = 5.0  # seconds for another writer to end
_STEP: Final = 0.05
#: After so many writes of a process small files of the index are merged, and new rows enter the vector index.
_MERGED_AFTER: Final = 100
_EXAMPLE: Final = "-F image=@a.jpg -F path=milk/a.jpg -F 'metadata={...}'"
_NEEDED: Final = {"text": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


@dataclass(frozen=True)
class WrittenImage:
    """An image that is now in the index.

    Args:
        id: its id.
        path: of its file, below the folder.
        metadata: as it is stored.
        is_new: whether there was no image of this id before.
    """

    id: str
    path: str
    metadata: Mapping[str, Value]
    is_new: bool


class IndexWriter:
    """Puts images into the index of a searcher, and removes them; from several threads and processes at a time.

    Args:
        searcher: of the index.
        folder: of the images' files; created when missing.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: the index does not record where its images are.
    """

    def __init__(self, searcher: Searcher, folder: Path) -> None:
        self._searcher, self._folder = searcher, folder.expanduser().resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        with only_user(self._folder, "allow_writes"):
            pass  # it can be written to
        missing = OWN_COLUMNS.keys() - searcher.store.config.columns.keys()
        if missing:
            raise ValueError(
                f"allow_writes: need an index of diml index build, got one without {', '.join(sorted(missing))}"
            )
        self._turn = threading.Lock()
        self._writes = 0

    @property
    def columns(self) -> dict[str, ColumnType]:
        """The columns that clients may give, name -> type."""
        known = self._searcher.store.config.columns
        return {name: kind for name, kind in known.items() if name not in OWN_COLUMNS}

    def checked(self, path: str, metadata: str | None) -> tuple[str, dict[str, Value]]:
        """The path and the metadata of an image that is to be written, before it is decoded.

        Args:
            path: below the folder, with "/".
            metadata: a JSON object of columns, or None.

        Raises:
            ApiError: 422 `bad_path` or `bad_metadata`, which says what is needed.
        """
        path = checked_path(path)
        if not (self._folder / path).parent.resolve().is_relative_to(self._folder):  # by a link
            raise _bad_path("a folder below that of the images", path)
        values = checked_metadata(metadata, self.columns)
        folder = path.rpartition("/")[0].partition("/")[0]
        if "label" in self.columns and "label" not in values and folder:
            values["label"] = folder  # as that of a folder of images
        return path, values

    def put(self, upload: Upload, content: bytes, path: str, metadata: Mapping[str, Value]) -> WrittenImage:
        """Write an image, replacing the one of the same path.

        Args:
            upload: decoded.
            content: of its file.
            path, metadata: as `checked` returned them.

        Raises:
            ApiError: 422 `bad_metadata` where the index does not take the values; 503 `index_in_use`;
                507 `cannot_write` where the disk is full, or the folder has no place for this path.
            ConnectionError: the server of the index does not answer.
        """
        searcher, store = self._searcher, self._searcher.store
        listing = SourceListing(source=self._source, folder=self._folder, paths=(path,), cells=({},), columns={})
        key = listing.name(0)
        regions = searcher.embedder.embed(DataLoader([upload.input], batch_size=1))  # type: ignore[arg-type]
        pooled = np.ascontiguousarray(regions.pooled.cpu().float().numpy())
        own = {"source": self._source, "path": path, "content": hashlib.sha256(content).hexdigest()}
        coded = encode_regions(regions, store.config, searcher.embedder.matcher)
        row = Rows((key,), pooled, coded, ({**metadata, **own},))
        with self._writing():
            is_new = not store.listed([key]).ids
            try:
                with _new_file(self._folder / path, content):
                    store.add(row)
            except ValueError as error:
                raise _bad_metadata(str(error), self.columns) from error
            except OSError as error:
                if isinstance(error, ConnectionError):
                    raise
                raise _cannot_write(error) from error
        self._merge_sometimes()
        return WrittenImage(key, path, {**metadata}, is_new)

    def remove(self, key: str) -> bool:
        """Remove an image from the index, and its file if it is in the folder; returns whether the file was removed.

        Raises:
            KeyError: there is no image of this id.
            ApiError: 503 `index_in_use`.
        """
        store = self._searcher.store
        with self._writing():
            found = store.listed([key])
            if not store.remove([key]):
                raise KeyError(key)
            file = self._own_file(found.metadata[0]) if found.ids else None
            removed = False
            if file is not None:
                with contextlib.suppress(OSError):  # the image is out of the index
                    file.unlink()
                    removed = True
        self._merge_sometimes()
        return removed

    @property
    def _source(self) -> str:
        return f"{self._folder}/" if self._folder.suffix.lower() == ".csv" else str(self._folder)

    def _own_file(self, metadata: Mapping[str, Value]) -> Path | None:
        """The file of an image of this folder; None of one from elsewhere, whose file is not ours."""
        if metadata.get("source") != self._source:
            return None
        file = image_file(metadata)
        inside = file.parent.resolve().is_relative_to(self._folder)
        return file if inside and file.is_file() else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait for other writers of this server, and a while for those of the index."""
        deadline = time.monotonic() + _WAIT
        if not self._turn.acquire(timeout=_WAIT):
            raise _in_use()
        try:
            with contextlib.ExitStack() as held:
                _retried(lambda: held.enter_context(only_user(self._folder, "allow_writes")), deadline)
                _retried(self._searcher.store.require_free, deadline)
                yield
        finally:
            self._turn.release()

    def _merge_sometimes(self) -> None:
        self._writes += 1
        if self._writes % _MERGED_AFTER == 0:
            threading.Thread(target=self._merge, daemon=True).start()

    def _merge(self) -> None:
        with contextlib.suppress(ApiError), self._writing():
            self._searcher.store.optimize()


def checked_path(path: str) -> str:
    """Return the path of an image below its folder, in Unicode's NFC.

    Raises:
        ApiError: 422 `bad_path`: it is absolute, hidden, too long, leads out of the folder, or is no image's name.
    """
    path = nfc(path.strip())
    parts = path.split("/")
    if "\\" in path or any(unicodedata.category(letter)[0] == "C" for letter in path):
        raise _bad_path("no backslashes and no invisible characters", path)
    if not all(parts) or any(part.startswith(".") for part in parts):
        raise _bad_path("a path below the folder of images, without empty, hidden or .. parts", path)
    if len(path) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise _bad_path(f"at most {_LONGEST_PATH} characters, and {_LONGEST_NAME} bytes in each name", path)
    if not is_image_name(path):
        raise _bad_path("the ending of an image, such as .jpg", path)
    return path


def checked_metadata(text: str | None, columns: Mapping[str, ColumnType]) -> dict[str, Value]:
    """Read a JSON object as values of the columns of an index; empty texts and null are no values.

    Raises:
        ApiError: 422 `bad_metadata`: it is no object, or has an unknown column or a value of another type.
    """
    if text is None:
        return {}
    try:
        given = parse_json(text, "metadata")
    except ValueError as error:
        raise _bad_metadata(str(error), columns) from error
    if not isinstance(given, dict):
        raise _bad_metadata(f"metadata: need a JSON object of columns, got {shown(given)}", columns)
    found: dict[str, Value] = {}
    for name, value in given.items():
        if name in OWN_COLUMNS:
            raise _bad_metadata(f"metadata: {name} is set by the server", columns)
        if name not in columns:
            raise _bad_metadata(f"metadata: no column {shown(name)}: {did_you_mean(name, columns)}", columns)
        if value is None or value == "":
            found[name] = None
        elif not _is_of(value, columns[name]):
            raise _bad_metadata(f"metadata: {name} needs {_NEEDED[columns[name]]}, got {shown(value)}", columns)
        else:
            found[name] = _as_stored(value, columns[name])
    return found


def _as_stored(value: str | int | float, kind: ColumnType) -> Value:
    return nfc(value) if isinstance(value, str) else float(value) if kind == "number" else value


def _is_of(value: Any, kind: ColumnType) -> bool:
    """Whether a value of JSON is one of a column; a number in quotes is a text."""
    if kind == "text":
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) and abs(value) <= LARGEST_INTEGER
    try:
        return isinstance(value, int | float) and bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def _bad_metadata(message: str, columns: Mapping[str, ColumnType]) -> ApiError:
    known = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
    remedy = f"Columns of this index that can be given: {known}. New ones are added by diml index build."
    return ApiError(422, "bad_metadata", f"{message}. Nothing was changed.", remedy)


def _bad_path(need: str, path: str) -> ApiError:
    message = f"path: need {need}, got {shown(path[:200])}. Nothing was changed."
    return ApiError(422, "bad_path", message, f"Name the image below the folder: {_EXAMPLE}")


def _in_use() -> ApiError:
    return ApiError(
        503, "index_in_use", "Another process is writing to the index. Nothing was changed.",
        "Try again in a moment (Retry-After); diml index build and optimize write for longer.", {"Retry-After": "2"},
    )  # fmt: skip


def _cannot_write(error: OSError) -> ApiError:
    message = f"The image cannot be kept: {error.strerror or type(error).__name__}. Nothing was changed."
    remedy = "Free space on the disk of the server, or choose another path."
    return ApiError(507, "cannot_write", message, remedy)


def _retried(call: Callable[[], object], deadline: float) -> None:
    """Call until it no longer raises InUseError."""
    while True:
        try:
            call()
        except InUseError as error:
            if time.monotonic() > deadline:
                raise _in_use() from error
            time.sleep(_STEP)
        else:
            return


@contextmanager
def _new_file(file: Path, content: bytes) -> Iterator[None]:
    """Write a file for the block; where the block fails, what was there before is there again."""
    with scratch_folder(file) as scratch:
        new, old = scratch / f"new{file.suffix}", scratch / "kept"
        new.write_bytes(content)
        flush(new)
        before = file.is_file()
        if before:
            shutil.copy2(file, old)
        new.replace(file)
        flush(file.parent)
        try:
            yield
        except BaseException:
            if before:
                old.replace(file)
            else:
                file.unlink(missing_ok=True)
            raise
