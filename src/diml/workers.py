"""Processes that this one starts: how many may decode images, and that they end with the process that started them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

#: Workers that any machine may be asked for; beyond it, as many for each core as below.
_ALWAYS: Final = 64
_EACH_CORE: Final = 4


def check_workers(workers: int) -> int:
    """Return a number of worker processes; ValueError unless it is 0 or more, and such that they can be started."""
    cores = os.cpu_count() or 1
    most = max(_ALWAYS, _EACH_CORE * cores)
    if not 0 <= workers <= most:
        raise ValueError(f"workers: need 0 to {most} processes on a machine of {cores} cores, got {workers}")
    return workers


def end_with_parent(_number: int = 0) -> None:
    """Let this worker process end when the process that started it does; for `worker_init_fn` of a DataLoader.

    The loader asks the parent by its number, which is that of the fork server: it lives on as long as its workers do,
    and these would wait for ever. The pipe to the real parent is closed by the system however the parent ends.

    Ctrl-C and the end of a terminal reach all processes of a group: they are left to the parent, which may finish a
    step first. SIGTERM ends a worker without an error, as the parent would report it instead of its own end.
    """
    when_parent_ends(lambda: os._exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # a handler would wait until an image is decoded
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_signal, daemon=True).start()


def when_parent_ends(call: Callable[[], None]) -> None:
    """Call a function, in a thread, once the process that started this one has ended, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent.sentinel, call), daemon=True).start()


def _wait_for(sentinel: int, call: Callable[[], None]) -> None:
    multiprocessing.connection.wait([sentinel])
    call()


def _wait_for_signal() -> None:
    signal.sigwait({signal.SIGTERM})
    os._exit(0)
