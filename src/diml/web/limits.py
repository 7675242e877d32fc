"""Limits of the server: sizes, simultaneous requests, and computation outside the event loop with a timeout.

A thread cannot be interrupted. Work that exceeds its time is answered with an error but keeps its slot until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from diml.web.errors import ApiError

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all requests together.

    Args:
        body_bytes: size of one request, all of its images together.
        pixels: of one image, checked before it is decoded.
        requests: simultaneous comparisons and searches, including their uploads; further ones are rejected (503).
        upload_seconds: time for a request to arrive.
        work_seconds: time for a comparison or search.

    Raises:
        ValueError: one of them is not positive.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    requests: int = 4
    upload_seconds: float = 30.0
    work_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: need more than 0, got {value}")


class Slot:
    """The slot of one request; free again when the request and its work have ended."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self.work: asyncio.Future[Any] | None = None

    def close(self) -> None:
        """End the request."""
        if self.work is None or self.work.done():
            self._free()
        else:
            self.work.add_done_callback(lambda _: self._free())


class Slots:
    """A fixed number of simultaneous requests; to be used from the event loop only.

    Args:
        limit: the number.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """Take a slot for a request; ApiError (503, Retry-After) where none is free."""
        if self.used >= self.limit:
            raise ApiError(
                503, "busy", f"{self.limit} requests are already being processed.",
                "Try again in a moment, or start diml with a larger --max-requests.", {"Retry-After": "1"},
            )  # fmt: skip
        self.used += 1
        slot = Slot(self._free)
        try:
            yield slot
        finally:
            slot.close()

    def _free(self) -> None:
        self.used -= 1


class Worker:
    """Threads for computation.

    Args:
        limits: simultaneous requests, and their seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._seconds = limits.work_seconds
        self._pool = ThreadPoolExecutor(limits.requests, thread_name_prefix="diml-work")
        self._images = ThreadPoolExecutor(2, thread_name_prefix="diml-images")  # decodes two images at a time

    async def run(self, slot: Slot, function: Callable[[], Result]) -> Result:
        """Run a comparison or search; ApiError (504) when it takes too long."""
        return await self._awaited(self._pool.submit(function), slot)

    async def run_image(self, function: Callable[[], Result]) -> Result:
        """Run the rendering of a gallery image."""
        return await self._awaited(self._images.submit(function), None)

    def stop(self) -> None:
        """Start no further work."""
        for pool in (self._pool, self._images):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _awaited(self, submitted: Future[Result], slot: Slot | None) -> Result:
        work = asyncio.wrap_future(submitted)
        if slot is not None:
            slot.work = work
        done, _ = await asyncio.wait([work], timeout=self._seconds)
        if not done:
            work.add_done_callback(lambda late: late.cancelled() or late.exception())  # its result is discarded
            raise ApiError(
                504, "work_timeout", f"The work took longer than {self._seconds:g} seconds and was abandoned.",
                "Try again when the machine is less busy, or start diml with a larger --timeout.",
            )  # fmt: skip
        return work.result()
