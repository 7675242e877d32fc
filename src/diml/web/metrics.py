"""Metrics of the server in the format of Prometheus, of one process or of several together.

Several processes write their numbers into files of one folder, which `prometheus_client` adds up whichever of them is
asked. That folder is named by an environment variable, which has to be set before the library is imported.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper ends
_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_OF_LIVING: Final = "gauge_livesum_*.db"  # one of each process


@contextmanager
def shared_metrics() -> Iterator[Path]:
    """Let processes that are started during the block count together; yields the folder of their numbers."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix="diml-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[_FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before


def forget_process(folder: Path, process: int | None) -> None:
    """Take the present numbers of a process that has ended out of the sums; what it has counted stays."""
    for file in folder.glob(f"gauge_live*_{process}.db"):
        file.unlink(missing_ok=True)


class Metrics:
    """Counts of one application, added to those of the other processes of `shared_metrics`.

    Args:
        computing, waiting: comparisons and searches of this process at this moment; told anew by `refresh`.
        images: number of gallery images that can be searched.
    """

    def __init__(
        self, *, computing: Callable[[], float], waiting: Callable[[], float], images: Callable[[], float]
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "diml_requests", "Answered requests, by route and status.", ("route", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "diml_request_seconds", "Seconds until a request was answered, waiting included, by route.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._work = [
            (Gauge(name, told, registry=self._registry, multiprocess_mode="livesum"), value)
            for name, told, value in (
                ("diml_computing", "Comparisons and searches that are computed.", computing),
                ("diml_waiting", "Comparisons and searches that wait for their turn.", waiting),
            )
        ]
        self._images = images
        self._gallery = Gauge(
            "diml_gallery_images", "Gallery images that can be searched.", registry=self._registry,
            multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self._folder = os.environ.get(_FOLDER)
        if self._folder is None:
            ProcessCollector(registry=self._registry)

    def refresh(self) -> None:
        """Tell the present numbers of this process; to be called whenever they change."""
        for gauge, value in self._work:
            gauge.set(value())

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        self.refresh()
        self._gallery.set(self._images())
        if self._folder is None:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=self._folder)  # type: ignore[no-untyped-call]
        together.register(_EachProcess(Path(self._folder)))
        return generate_latest(together)

    def count(self, route: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)


class _EachProcess(Collector):
    """Memory and time of each process, by its number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for number in sorted(file.stem.rpartition("_")[2] for file in self._folder.glob(_OF_LIVING)):
            for metric in ProcessCollector(pid=lambda of=number: of, registry=None).collect():  # type: ignore[misc]
                kept = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    kept.add_sample(sample.name, {"pid": number}, sample.value)
        yield from merged.values()


class Measured:
    """ASGI middleware that counts every answer, by the route of the application and not by what the client wrote.

    Args:
        app: the application.
        metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer; one whose client has left is counted as 499, as by nginx."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, code = time.perf_counter(), 499

        async def sending(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count(route, code, time.perf_counter() - began)
