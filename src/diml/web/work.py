"""Work away from the event loop: so much at a time, each for so long, and never more in secret.

A thread cannot be stopped. So work that took too long is answered for, but keeps its slot until it is really done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from diml.web.errors import ApiError
from diml.web.limits import Limits

Result = TypeVar("Result")


class Slot:
    """The place of one request; free again when the request and its work have ended."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self.work: asyncio.Future[Any] | None = None

    def close(self) -> None:
        """The request has ended."""
        if self.work is None or self.work.done():
            self._free()
        else:
            self.work.add_done_callback(lambda _: self._free())


class Slots:
    """So many requests at a time; used from the event loop only.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """Take one for a request; ApiError (503, Retry-After) where there is none."""
        if self.used >= self.limit:
            raise ApiError(
                503, "busy", f"{self.limit} requests are at work already.",
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
    """Threads for what computes.

    Args:
        limits: of requests at a time and of seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self._seconds = limits.work_seconds
        self._pool = ThreadPoolExecutor(limits.requests, thread_name_prefix="diml-work")
        self._images = ThreadPoolExecutor(2, thread_name_prefix="diml-images")  # decoded two at a time, in turn

    async def run(self, slot: Slot, function: Callable[[], Result]) -> Result:
        """Run a comparison or search; ApiError (504) when it takes too long."""
        return await self._awaited(self._pool.submit(function), slot)

    async def run_image(self, function: Callable[[], Result]) -> Result:
        """Run the making of a small image."""
        return await self._awaited(self._images.submit(function), None)

    def stop(self) -> None:
        """Begin nothing new."""
        for pool in (self._pool, self._images):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _awaited(self, submitted: Future[Result], slot: Slot | None) -> Result:
        work = asyncio.wrap_future(submitted)
        if slot is not None:
            slot.work = work
        done, _ = await asyncio.wait([work], timeout=self._seconds)
        if not done:
            work.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody asks for it any more
            raise ApiError(
                504, "work_timeout", f"The work took longer than {self._seconds:g} seconds and was given up.",
                "Try again when the machine has less to do, or start diml with a larger --timeout.",
            )  # fmt: skip
        return work.result()
