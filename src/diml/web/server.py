"""The port, and the server that listens on it: on this machine only."""

from __future__ import annotations

import errno
import socket
from typing import Final

import uvicorn
from fastapi import FastAPI

HOST: Final = "127.0.0.1"


def open_port(port: int) -> socket.socket:
    """Take a port of 127.0.0.1; 0 takes any that is free.

    Raises:
        OSError: it is in use, or not ours to take.
        ValueError: there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port: need 0 to 65535, got {port}; 0 takes any that is free")
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port: {port} of {HOST} is in use, perhaps by another diml serve; stop that, or choose another: "
                f"--port {port + 1 if port < 65535 else 8765}, or --port 0 for any that is free"
            ) from error
        raise OSError(f"port: {port} cannot be taken ({error.strerror}); choose one above 1023, or --port 0") from error
    return taken


def serve(app: FastAPI, taken: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; requests at work have five seconds to end."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5,
        timeout_keep_alive=5, backlog=128, h11_max_incomplete_event_size=32 * 1024, http="h11", ws="none",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[taken])
