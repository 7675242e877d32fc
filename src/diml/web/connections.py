"""Connections of clients: their number, and how long they may stay silent; log messages, and how many of them.

Uvicorn closes connections that are idle after a request. It does not close those that send nothing at first, or half of
their headers, nor those that do not read their answers, and any number of them is accepted until there are no file
descriptors left. What is limited here:

- Headers have to arrive within some seconds, counted from the first moment; and of an answer some has to be read in as
  many seconds.
- When there are too many connections, the one that has been silent longest is closed for the new one; of those that
  send a body, the oldest. If all are being answered, the new one is told to come again.
- A message that is logged again and again is logged once in ten seconds, with how often it was left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from diml.web.limits import Limits

_DESCRIPTORS: Final = 4096  # to which the soft limit is raised, where the hard limit allows it
_OTHER_DESCRIPTORS: Final = 24  # for files and for connections that are being accepted
_FEWEST: Final = 4
_READ_BYTES: Final = 16 * 1024  # of an answer that a client has to read in the time for headers
_LOG_SECONDS: Final = 10.0
_LOGGERS: Final = ("asyncio", "uvicorn.error", "diml.web")
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    b'{"error":{"code":"busy","message":"There are too many connections.","remedy":"Try again in a moment."}}'
)


class BoundedConnection(H11Protocol):
    """The protocol of uvicorn with limits; `bounded` makes the class for a server."""

    most: ClassVar[int]
    seconds: ClassVar[float]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._due: asyncio.TimerHandle | None = None
        self._is_full = False  # the buffer of what is to be sent
        self._unread = 0  # bytes in it when the time was started
        self.is_ended = False
        self.since = 0.0  # when it became silent, or its request began

    @property
    def is_answering(self) -> bool:
        """Whether a request has come whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_sending(self) -> bool:
        """Whether the body of a request is still arriving."""
        return self.is_answering and self.cycle.more_body

    @property
    def is_silent(self) -> bool:
        """Whether there is neither a request nor an answer under way."""
        return not self.is_answering and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the headers; close another where there are too many."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.most:
            self._close_a_silent_one()

    def data_received(self, data: bytes) -> None:
        """Stop the time for the headers once they are complete; what is incomplete does not start it again."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Start the time for the headers of the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time in which the client has to read some of the answer."""
        super().pause_writing()
        self._is_full = True
        self._watch()

    def resume_writing(self) -> None:
        """The client has read nearly everything."""
        super().resume_writing()
        self._is_full = False
        self._watch()

    def _watch(self) -> None:
        """Start the time where the client has to do something, stop it where the server has to."""
        if self.is_answering and not self._is_full:
            if self._due is not None:
                self._stop()
                self.since = self.loop.time()
        elif self._due is None and not self.is_ended:
            self.since = self.loop.time()
            self._start()

    def _start(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._due = self.loop.call_later(self.seconds, self._late)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        unread = self.transport.get_write_buffer_size()
        has_read = self._unread > 0 and (unread == 0 or self._unread - unread >= _READ_BYTES)
        if has_read:
            self._start()
        else:
            self._end()

    def _close_a_silent_one(self) -> None:
        others = [one for one in self.connections if isinstance(one, BoundedConnection) and one is not self]
        silent = [one for one in others if one.is_silent] or [one for one in others if one.is_sending]
        if silent:
            min(silent, key=lambda one: one.since)._end()
        else:
            self.transport.write(_BUSY)
            self.transport.close()

    def _end(self) -> None:
        """Close without waiting for the client, which may never read what is still to be sent."""
        self.connections.discard(self)  # at once, as those that come in the same moment count them
        self.is_ended = True
        self._stop()
        self.transport.abort()


def bounded(limits: Limits) -> type[BoundedConnection]:
    """The protocol with these limits, as `http` of `uvicorn.Config`."""
    values = {"seconds": limits.header_seconds, "most": most_connections(limits.connections)}
    return type("Connection", (BoundedConnection,), values)


def most_connections(wanted: int) -> int:
    """How many connections the file descriptors of this process allow, at most those wanted.

    The soft limit is raised first, where the hard limit allows it.
    """
    try:
        import resource
    except ImportError:  # not on Windows, where sockets are not file descriptors
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        raised = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft = max(soft, raised)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(_FEWEST, soft - _used_descriptors() - _OTHER_DESCRIPTORS))


def _used_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))  # noqa: PTH208 - a count
        except OSError:
            continue
    return 64


class RareMessages(logging.Filter):
    """Lets a message of a logger through once in some seconds, with the number of those left out in between."""

    def __init__(self, seconds: float = _LOG_SECONDS) -> None:
        super().__init__()
        self._seconds = seconds
        self._seen: dict[tuple[str, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record; adds how many like it were left out."""
        kind = "" if not record.exc_info or record.exc_info[0] is None else record.exc_info[0].__name__
        key, now = (record.name, str(record.msg)[:200], kind), time.monotonic()
        last, left_out = self._seen.get(key, (-self._seconds, 0))
        if now - last < self._seconds:
            self._seen[key] = (last, left_out + 1)
            return False
        if len(self._seen) > 1000:  # messages that are all different
            self._seen.clear()
        self._seen[key] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} (and {left_out:,} more like this in the {now - last:.0f} seconds before)"
        return True


def log_rarely() -> None:
    """Bound the log messages of the server and of what it is built on."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, RareMessages) for one in logger.filters):
            logger.addFilter(RareMessages())
