"""The port and the server that listens on it: on the local machine, or with a token on others."""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI

from diml.web.access import Access
from diml.web.connections import bounded, log_rarely
from diml.web.limits import Limits

HOST: Final = "127.0.0.1"
#: Seconds that requests in progress have to end when the server is stopped.
STOP_SECONDS: Final = 30.0
_QUEUE: Final = 128  # connections that the system keeps until they are accepted
_ACCEPTED: Final = 8  # at a time: after each few those are closed that are too many


def open_port(port: int, host: str = HOST) -> socket.socket:
    """Open a port of an address of this machine.

    Args:
        port: 0 to 65535; 0 chooses a free one.
        host: address or name; "0.0.0.0" is all addresses of this machine.

    Raises:
        OSError: it is in use or not permitted, or the machine has no such address.
        ValueError: it is out of range.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port: need 0 to 65535, got {port}; 0 chooses a free one")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise _no_address(host) from error
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(_QUEUE)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _no_address(host) from error
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port: {port} of {host} is in use, possibly by another diml serve; stop that one, or choose: "
                f"--port {port + 1 if port < 65535 else 8765}, or --port 0 for a free one"
            ) from error
        raise OSError(
            f"port: {port} cannot be opened ({error.strerror}); choose one above 1023, or --port 0"
        ) from error
    return opened


def _no_address(host: str) -> OSError:
    return OSError(
        f"host: need an address of this machine, got {host!r}; 127.0.0.1 is for this machine alone, "
        "0.0.0.0 for all its addresses"
    )


def check_exposure(listener: socket.socket, access: Access) -> None:
    """Raise ValueError where other machines reach a port and no token is needed."""
    address = str(listener.getsockname()[0]).partition("%")[0]
    if not access.token and not ipaddress.ip_address(address).is_loopback:
        raise ValueError(
            f"token_file: need one where other machines reach the server (host {address}), got none; "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' > token.txt, and add --token-file token.txt"
        )


class Server(uvicorn.Server):
    """Accepts a few connections at a time, while the system keeps many.

    Args:
        app: what `create_app` returns.
        limits: of connections; as given to `create_app`.
        stop_seconds: that requests in progress have to end after the server was told to stop.
        started: called once connections are accepted.
    """

    def __init__(
        self,
        app: FastAPI,
        limits: Limits,
        stop_seconds: float = STOP_SECONDS,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=math.ceil(stop_seconds), timeout_keep_alive=5, backlog=_ACCEPTED,
            h11_max_incomplete_event_size=32 * 1024, ws="none", http=bounded(limits),
        )  # fmt: skip
        super().__init__(config)
        self._started = started
        log_rarely()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for opened in sockets or ():  # asyncio has set both to the same number
            opened.listen(_QUEUE)
        self._started()


def serve(
    app: FastAPI,
    port: int | socket.socket = 8765,
    *,
    limits: Limits | None = None,
    stop_seconds: float = STOP_SECONDS,
) -> None:
    """Serve an application until Ctrl-C or SIGTERM.

    Args:
        app: what `create_app` returns.
        port: a number for 127.0.0.1, 0 for a free port; or what `open_port` returns.
        limits: of connections; as given to `create_app`.
        stop_seconds: that requests in progress have to end. New ones are not accepted any more.

    Raises:
        OSError, ValueError: as `open_port`; other machines reach the port, and the application needs no token.

    Example:
        >>> serve(create_app(Engine(load_embedder("mobilenetv2_100"))))  # doctest: +SKIP
    """
    listener = open_port(port) if isinstance(port, int) else port
    check_exposure(listener, getattr(app.state, "access", Access()))
    Server(app, limits or Limits(), stop_seconds).run(sockets=[listener])
