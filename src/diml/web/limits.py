"""Limits of the server: sizes, numbers of requests and connections, and computation outside the event loop.

A request passes three of them: its bytes while it arrives (`Amount`), a bounded queue for the work (`Worker`), and the
pixels that are decoded at the same time (`Amount` again). A thread cannot be interrupted: work that exceeds its time is
answered with an error, but occupies its thread until it ends.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from diml.web.errors import ApiError

Result = TypeVar("Result")

_BODIES: Final = 8  # of the largest size may be in memory at the same time


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all requests together.

    Args:
        body_bytes: size of one request, all of its images together. All bodies together may have eight times as many.
        pixels: of one image, checked before it is decoded; and of all images that are decoded at the same time.
        requests: comparisons and searches that are computed at the same time.
        waiting: further ones that wait for their turn; those beyond are rejected (503).
        connections: of clients that are open at the same time; see `diml.web.connections`.
        header_seconds: time for the first line and the headers of a request, and to read some of an answer.
        upload_seconds: time for the rest of it.
        stall_seconds: time in which at least one byte of the rest has to arrive.
        work_seconds: time for a comparison or search, including the wait for its turn.

    Raises:
        ValueError: one of them is not positive.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    requests: int = 4
    waiting: int = 64
    connections: int = 256
    header_seconds: float = 10.0
    upload_seconds: float = 30.0
    stall_seconds: float = 10.0
    work_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: need more than 0, got {value}")

    @property
    def bodies_bytes(self) -> int:
        """The size of all bodies in memory together."""
        return _BODIES * self.body_bytes


class Amount:
    """An amount of something that is used by several requests at the same time, and given back.

    Args:
        most: the amount.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self._condition = threading.Condition()
        self._turn = threading.Lock()

    def take(self, amount: int) -> bool:
        """Take some of it, to be returned by `give_back`; False, and nothing taken, where there is not enough left."""
        with self._condition:
            if self.used + amount > self.most:
                return False
            self.used += amount
            return True

    def give_back(self, amount: int) -> None:
        """Return what was taken."""
        with self._condition:
            self.used -= amount
            self._condition.notify_all()

    @contextmanager
    def waited_for(self, amount: int) -> Iterator[None]:
        """Wait until there is enough left and use it; for threads. More than there is at all waits for all of it."""
        amount = min(amount, self.most)
        with self._turn, self._condition:  # one waits at a time, so that small amounts do not overtake a large one
            self._condition.wait_for(lambda: self.used + amount <= self.most)
            self.used += amount
        try:
            yield
        finally:
            self.give_back(amount)


class Worker:
    """Threads for computation, with a bounded queue; its methods are called from the event loop.

    Args:
        limits: simultaneous requests, those that wait, and their seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.requests, thread_name_prefix="diml-work")
        self._images = ThreadPoolExecutor(2, thread_name_prefix="diml-images")
        self._pending = 0
        self._usual = 1.0  # seconds of a piece of work, a running mean
        self.changed: Callable[[], None] = lambda: None  # called when there is more or less of it

    @property
    def pending(self) -> int:
        """Pieces of work that are computed or wait."""
        return self._pending

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run a comparison or search when it is its turn.

        Raises:
            ApiError: 503 where too many wait, or its turn would come or has come too late; 504 where it takes too long.
        """
        limits = self._limits
        late = self._pending >= limits.requests and self._expected() > limits.work_seconds
        if late or self._pending >= limits.requests + limits.waiting:
            raise self.busy()
        self._pending += 1
        self.changed()
        submitted = self._pool.submit(self._timed, function, time.monotonic())
        asyncio.wrap_future(submitted).add_done_callback(self._ended)
        return await self._awaited(submitted)

    async def run_image(self, function: Callable[[], Result]) -> Result:
        """Run something short: the rendering of a gallery image, a page of the gallery's list."""
        return await self._awaited(self._images.submit(function))

    def busy(self) -> ApiError:
        """The error of a request that is one too many, with the time after which to try again."""
        seconds = math.ceil(min(60.0, max(1.0, self._usual * self._pending / self._limits.requests)))
        return ApiError(
            503, "busy", f"{self._pending} requests are being processed or wait.",
            "Try again in a moment (Retry-After), or start diml with larger --max-requests or --max-waiting.",
            {"Retry-After": str(seconds)},
        )  # fmt: skip

    def stop(self) -> None:
        """Start no further work."""
        for pool in (self._pool, self._images):
            pool.shutdown(wait=False, cancel_futures=True)

    def _expected(self) -> float:
        """Seconds until one more piece of work would be done."""
        return self._usual * (1 + self._pending / self._limits.requests)

    def _timed(self, function: Callable[[], Result], submitted: float) -> Result:
        began = time.monotonic()
        waited, most = began - submitted, self._limits.work_seconds
        if waited > most / 2 and waited + self._usual > most:  # it would be done when nobody waits any more
            raise self.busy()
        try:
            return function()
        finally:
            self._usual += 0.2 * (time.monotonic() - began - self._usual)

    def _ended(self, work: asyncio.Future[Result]) -> None:
        self._pending -= 1
        self.changed()
        if not work.cancelled():
            work.exception()  # it was reported where the work was awaited, if anybody still waits for it

    async def _awaited(self, submitted: Future[Result]) -> Result:
        work = asyncio.wrap_future(submitted)
        done, _ = await asyncio.wait([work], timeout=self._limits.work_seconds)
        if done:
            return work.result()
        if submitted.cancel():  # it had not begun
            raise self.busy()
        work.add_done_callback(lambda late: late.cancelled() or late.exception())  # its result is discarded
        raise ApiError(
            504, "work_timeout", f"The work took longer than {self._limits.work_seconds:g} seconds and was abandoned.",
            "Try again when the machine is less busy, or start diml with a larger --timeout.",
        )  # fmt: skip
