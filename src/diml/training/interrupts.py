"""Ctrl-C and SIGTERM during training: the current step is finished and a checkpoint is written before the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

#: From this signal on, the current step is no longer finished.
_FORCED_AT: Final = 3


class TrainingStopped(KeyboardInterrupt):
    """Training was interrupted after `step` steps; the run in `folder` can be resumed."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, step)
        self.folder, self.step = folder, step

    def __str__(self) -> str:
        return (
            f"stopped after step {self.step}; the checkpoint is saved. Resume with: "
            f"diml train --resume --output {self.folder}"
        )


class InterruptHandler:
    """Turns signals into the flag `requested`, or into KeyboardInterrupt outside of protected blocks.

    Args:
        immediate: raise outside of `protected`. Not for several processes, which must leave after the same step.
    """

    def __init__(self, *, immediate: bool) -> None:
        self.requested = False
        self._immediate, self._protected, self._signals = immediate, False, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals within the block; without effect outside of the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Postpone an interrupt until the block is done, except for the third signal."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._signals += 1
        if self._signals >= _FORCED_AT or (self._immediate and not self._protected):
            raise KeyboardInterrupt
