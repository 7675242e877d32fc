"""Where a Milvus index is, and how it is reached: a server by its address, a `.db` folder by Milvus Lite in here.

http://[user:password@]host:port[/collection][?consistency=...&index=...&shards=...]
images.db
"""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

Consistency = Literal["Strong", "Bounded", "Session", "Eventually"]
Index = Literal["FLAT", "IVF_FLAT"]

COLLECTION: Final = "images"
CONNECT_SECONDS: Final = 5.0
CALL_SECONDS: Final = 60.0
#: For what takes a server the longer, the larger the collection.
WORK_SECONDS: Final = 900.0
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_GRPC_UNREACHABLE: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True, kw_only=True)
class MilvusPlace:
    """A place, read and checked.

    Attributes:
        shown: for people, without a password.
        address: `http://host:port`, or "" with Milvus Lite.
        folder: of Milvus Lite, or None.
        token: `user:password`, or "".
        collection: name of the collection with the images.
        consistency: of every read. "Strong" sees whatever was written before; others may lag, and answer sooner.
        index: over pooled vectors, chosen when the collection is made. "FLAT" compares with all, exactly.
        shards: write channels of the collection, chosen when it is made.
    """

    shown: str
    address: str = ""
    folder: Path | None = None
    token: str = ""
    collection: str = COLLECTION
    consistency: Consistency = "Strong"
    index: Index = "FLAT"
    shards: int = 1

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.collection):
            need = "at most 255 letters, digits and _, no digit first"
            raise ValueError(f"index: {self.shown}: need a collection named by {need}, got {self.collection!r}")
        for name, allowed in (("consistency", get_args(Consistency)), ("index", get_args(Index))):
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise ValueError(f"index: {self.shown}: {name} needs one of {', '.join(allowed)}, got {got!r}")
        if not 1 <= self.shards <= 16:
            raise ValueError(f"index: {self.shown}: shards needs 1 to 16, got {self.shards}")


def read_place(uri: str) -> MilvusPlace:
    """Read a place.

    Raises:
        ValueError: a part of it cannot be so; the message says what may be.

    Example:
        >>> read_place("http://localhost:19530/shelves?consistency=Bounded").collection
        'shelves'
    """
    if not uri.startswith(("http://", "https://", "tcp://")):
        return MilvusPlace(shown=uri, folder=Path(uri).resolve())
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 19530)
    except ValueError as error:
        raise ValueError(f"index: need http://host:port, got a port that is none: {error}") from None
    if not host:
        raise ValueError(f"index: need http://host:port, got no host in {parts.scheme}://{parts.path}")
    host = f"[{host}]" if ":" in host else host
    settings: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := settings.keys() - {"consistency", "index", "shards"}:
        raise ValueError(
            f"index: {host}: need consistency, index or shards after '?', got {', '.join(sorted(unknown))}"
        )
    if "shards" in settings:
        settings["shards"] = int(settings["shards"]) if settings["shards"].isdecimal() else 0
    address, collection = f"{parts.scheme}://{host}:{port}", parts.path.strip("/") or COLLECTION
    user = unquote(f"{parts.username}:{parts.password or ''}") if parts.username else ""
    return MilvusPlace(shown=f"{address}/{collection}", address=address, token=user, collection=collection, **settings)


def is_lite_folder(folder: Path) -> bool:
    """Whether Milvus Lite made this folder."""
    return (folder / "LOCK").is_file() and (folder / "collections").is_dir()


class Connection:
    """A client of a server, or of Milvus Lite, whose threads run in this process while someone is connected.

    Args:
        place: where.

    Raises:
        ValueError: pymilvus or milvus-lite is not installed.
        ConnectionError: nobody answers.
        OSError: another process has the folder of Milvus Lite open.
    """

    def __init__(self, place: MilvusPlace) -> None:
        pymilvus = _pymilvus(place)
        self.place = place
        address = place.address if place.folder is None else _lite_address(place.folder, self)
        with told(place):
            self._client = pymilvus.MilvusClient(uri=address, token=place.token, timeout=CONNECT_SECONDS)

    def call(self, method: str, *args: Any, timeout: float = CALL_SECONDS, **settings: Any) -> Any:
        """A method of `MilvusClient`; its errors as ours."""
        with told(self.place):
            return getattr(self._client, method)(*args, timeout=timeout, **settings)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, which Milvus Lite asks for; a server orders writes itself."""
        if self.place.folder is None:
            yield
        else:
            with _writers(self.place.folder):
                yield

    def close(self) -> None:
        """Hang up; Milvus Lite stops, and lets others in, when the last connection of this process does."""
        self._client.close()
        if self.place.folder is not None:
            _release(self.place.folder, self)


@contextmanager
def told(place: MilvusPlace) -> Iterator[None]:
    """Errors of pymilvus as `ConnectionError` or `OSError` that name the index."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        text = str(getattr(error, "message", "")) or str(error) or type(error).__name__
        code = getattr(error, "code", None)
        status = str(code()) if callable(code) else str(code)
        lost = "fail connecting" in text.lower() or any(word in status + text for word in _GRPC_UNREACHABLE)
        if lost or isinstance(error, grpc.FutureTimeoutError):
            remedy = "is the server running, are host and port right, does a firewall let you through?"
            raise ConnectionError(f"index: no Milvus answers at {place.shown} ({text}); {remedy}") from error
        raise OSError(f"index: {place.shown}: Milvus says: {text}") from error


def _pymilvus(place: MilvusPlace) -> Any:
    try:
        import pymilvus

        if place.folder is not None:
            import milvus_lite.server_manager  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"index: {place.shown} needs pymilvus and milvus-lite, not here ({error}); pip install 'diml[milvus]'"
        ) from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # they print what they raise, with its trace, as well
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus


_LOCK: Final = threading.RLock()
_CONNECTED: Final[dict[Path, weakref.WeakSet[Connection]]] = {}
_WRITERS: Final[dict[Path, threading.Lock]] = {}


def _lite_address(folder: Path, connection: Connection) -> str:
    from milvus_lite.server_manager import server_manager_instance

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK:
        address = server_manager_instance.start_and_get_uri(os.fspath(folder))
        if address is None:
            remedy = "end that one, or use a folder of LanceDB or a server, which take many"
            raise OSError(f"index: {folder}: another process has it open, and Milvus Lite takes one; {remedy}")
        _CONNECTED.setdefault(folder, weakref.WeakSet()).add(connection)
    return str(address)


def _release(folder: Path, connection: Connection) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _LOCK:
        connected: Any = _CONNECTED.get(folder, ())
        if connection in connected:
            connected.discard(connection)
            if not connected:
                server_manager_instance.release_server(os.fspath(folder))


def _writers(folder: Path) -> threading.Lock:
    with _LOCK:
        return _WRITERS.setdefault(folder, threading.Lock())


def settings_of(description: Mapping[str, Any]) -> str | None:
    """The settings of an index in what Milvus tells of its collection, or None."""
    found = (description.get("properties") or {}).get("diml.settings")
    return None if found is None else str(found)
