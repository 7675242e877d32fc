"""SIGTERM and SIGHUP end a command as Ctrl-C does: files in progress are removed and worker processes ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

#: What job schedulers, service managers and closed terminals send; Windows lacks SIGHUP.
_NAMES: Final = ("SIGTERM", "SIGHUP")


@contextmanager
def stopping_like_ctrl_c() -> Iterator[None]:
    """Turn these signals into KeyboardInterrupt during the block, unless they are ignored, as under `nohup`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    found: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
