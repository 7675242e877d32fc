"""Ctrl-C, SIGTERM and SIGHUP during training: the current step is finished and a checkpoint written before it stops."""

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
#: Windows has no SIGHUP, which a closed terminal sends.
_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class TrainingStopped(KeyboardInterrupt):
    """Training was interrupted after `step` steps; the run in `folder` can be resumed.

    `saved` is False where it was stopped within a step: the last checkpoint is then left as it was.
    """

    def __init__(self, folder: Path, step: int, *, saved: bool = True) -> None:
        super().__init__(folder, step)
        self.folder, self.step, self.saved = folder, step, saved

    def __str__(self) -> str:
        stopped = f"stopped after step {self.step}; the checkpoint is saved"
        if not self.saved:
            stopped = f"stopped at once after step {self.step}; the checkpoint before it is left as it was"
        return f"{stopped}. Resume with: diml train --resume --output {self.folder}"


class InterruptHandler:
    """Turns signals into the flag `requested`, or into KeyboardInterrupt outside of protected blocks.

    Args:
        immediate: raise outside of `protected`. Not for several processes, which must leave after the same step.

    Attributes:
        requested: a signal has come.
        torn: a protected block was cut short: what it was changing is neither in its old nor in its new state.
    """

    def __init__(self, *, immediate: bool) -> None:
        self.requested = self.torn = False
        self._immediate, self._protected, self._signals = immediate, False, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals within the block; without effect outside of the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in _NUMBERS
            if signal.getsignal(number) not in (signal.SIG_IGN, None)  # ignored: as `nohup` does with SIGHUP
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
            self.torn = self.torn or self._protected
            raise KeyboardInterrupt
