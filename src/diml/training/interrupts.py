"""Ctrl-C and SIGTERM while training: the step under way is finished, a checkpoint written, and then it stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_IMPATIENT = 3


class TrainingStopped(KeyboardInterrupt):
    """Training was stopped by hand after `step` steps; the run in `folder` can be resumed."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, step)
        self.folder, self.step = folder, step

    def __str__(self) -> str:
        return f"stopped after step {self.step}, and saved; go on with: diml train --resume --output {self.folder}"


class Stop:
    """Turns signals into a wish to stop, `asked`, or into KeyboardInterrupt where nothing is under way.

    Args:
        at_once: raise outside of `later`. Processes that work together may not: they leave after the same step.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.asked = False
        self._at_once, self._busy, self._times = at_once, False, 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals within the block; only the main thread can, elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Hold a stop back until the block is done; the third signal is not held back."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._times += 1
        if self._times >= _IMPATIENT or (self._at_once and not self._busy):
            raise KeyboardInterrupt
