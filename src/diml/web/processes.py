"""Several server processes behind one port, which end together.

They listen on one socket, and the system gives each new connection to one of them. Each has the model in its memory;
what they search is shared: an index in a folder, of which every read sees the last commit, or a Milvus server.

A process that dies is replaced. All end with this one, however it ends, which the supervisor of uvicorn does not
offer: its processes go on listening when their parent is killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from fastapi import FastAPI

from diml.web.limits import Limits
from diml.web.metrics import forget_process, shared_metrics
from diml.web.server import STOP_SECONDS, Server
from diml.workers import when_parent_ends

#: What each process runs first: the application, and lines that say what it serves. It is pickled.
Make = Callable[[], tuple[FastAPI, Sequence[str]]]

_LATE: Final = 5.0  # seconds after the time to stop, after which a process is killed
_SHORT_LIFE: Final = 10.0  # seconds; the replacement of a process that ended within them waits
_LONGEST_WAIT: Final = 30.0


def serve_processes(
    make: Make,
    listener: socket.socket,
    count: int,
    *,
    limits: Limits,
    announce: Callable[[Sequence[str]], None],
    stop_seconds: float = STOP_SECONDS,
) -> None:
    """Serve with several processes until Ctrl-C or SIGTERM (as KeyboardInterrupt).

    Args:
        make: creates the application, in each process; a function of a module, or a method of an object that can be
            pickled.
        listener: what `open_port` returns.
        count: of processes.
        limits: of the connections and requests of each process.
        announce: called when all answer, with the lines of one of them.
        stop_seconds: that requests in progress have to end.

    Raises:
        Exception: what `make` raised in a process.
        ChildProcessError: a process ended while it started.
        KeyboardInterrupt: the processes have ended.
    """
    with shared_metrics() as folder:
        group = _Group(make, listener, count, limits, stop_seconds, folder)
        try:
            announce(group.start())
            group.watch()
        finally:
            group.stop()


@dataclass(frozen=True)
class _Child:
    process: BaseProcess
    reports: Connection
    began: float


class _Group:
    """The processes of one server."""

    def __init__(
        self, make: Make, listener: socket.socket, count: int, limits: Limits, stop_seconds: float, metrics: Path
    ) -> None:
        self._make, self._listener, self._limits = make, listener, limits
        self._count, self._stop_seconds, self._metrics = count, stop_seconds, metrics
        self._threads = max(1, torch.get_num_threads() // count)
        self._children: list[_Child] = []

    def start(self) -> Sequence[str]:
        """Start all and wait until they answer; returns the lines of the first."""
        self._children += [self._started() for _ in range(self._count)]
        told = [_report(child) for child in self._children]
        return told[0]

    def watch(self) -> None:
        """Replace processes that end, for ever."""
        wait = 0.0
        while True:
            multiprocessing.connection.wait([child.process.sentinel for child in self._children])
            for place, child in enumerate(self._children):
                if child.process.exitcode is None:
                    continue
                forget_process(self._metrics, child.process.pid)
                short = time.monotonic() - child.began < _SHORT_LIFE
                wait = min(_LONGEST_WAIT, 2 * wait + 1) if short else 0.0
                then = f" in {wait:.0f} seconds" if wait else ""
                logging.getLogger("diml.web").error(
                    "server process %d ended (%s); another one starts%s", child.process.pid, _end_of(child), then
                )
                time.sleep(wait)
                self._children[place] = self._started()

    def stop(self) -> None:
        """Let all finish what they are doing, and kill those that do not end in time, or at a second Ctrl-C."""
        self._listener.close()
        for child in self._children:
            if child.process.is_alive():
                child.process.terminate()
        deadline = time.monotonic() + self._stop_seconds + _LATE
        try:
            for child in self._children:
                child.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for child in self._children:
                child.process.kill()
                child.process.join()

    def _started(self) -> _Child:
        """A new process. It is started anew and not forked, as threads of libraries do not survive a fork."""
        context = multiprocessing.get_context("spawn")
        reports, own = context.Pipe(duplex=False)
        about = (self._make, self._listener, self._limits, self._stop_seconds, self._threads, own)
        process = context.Process(target=_serve_here, args=about, daemon=True)
        process.start()
        own.close()  # so that the pipe ends with the process
        return _Child(process, reports, time.monotonic())


def _report(child: _Child) -> Sequence[str]:
    """The lines of a process that has started; its error where it has not."""
    try:
        told: Sequence[str] | Exception = child.reports.recv()
    except EOFError:
        child.process.join()
        raise ChildProcessError(
            f"processes: a server process ended while it started ({_end_of(child)}); where memory is short, lower "
            "--processes"
        ) from None
    if isinstance(told, Exception):
        raise told
    return told


def _end_of(child: _Child) -> str:
    code = child.process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve_here(
    make: Make, listener: socket.socket, limits: Limits, stop_seconds: float, threads: int, reports: Connection
) -> None:
    """Serve in this process until SIGTERM, or until the process that started it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; while loading it is left to the parent
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ended = threading.Event()
    when_parent_ends(ended.set)
    torch.set_num_threads(threads)
    try:
        app, lines = make()
    except Exception as error:
        _send(reports, error)
        return
    server = Server(app, limits, stop_seconds, started=lambda: _send(reports, lines))

    def stop(_number: int = 0, _frame: FrameType | None = None) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)  # uvicorn has its own while it serves, and raises the signal again at the end
    threading.Thread(target=_stop_after, args=(ended, stop, stop_seconds + _LATE), daemon=True).start()
    server.run(sockets=[listener])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is answered; taking the interpreter apart would take a second more, in which nobody is served


def _stop_after(ended: threading.Event, stop: Callable[[], None], seconds: float) -> None:
    ended.wait()
    stop()
    time.sleep(seconds)
    os._exit(1)


def _send(reports: Connection, told: Sequence[str] | Exception) -> None:
    try:
        reports.send(told)
    except OSError:  # the parent has ended
        return
    except Exception:  # an error that cannot be pickled
        reports.send(RuntimeError(f"{type(told).__name__}: {told}"))
