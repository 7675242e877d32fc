"""Metrics of the server in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper ends of the histogram


class Metrics:
    """Counts of one application.

    Args:
        computing, waiting: comparisons and searches at this moment.
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
        for name, told, value in (
            ("diml_computing", "Comparisons and searches that are computed.", computing),
            ("diml_waiting", "Comparisons and searches that wait for their turn.", waiting),
            ("diml_gallery_images", "Gallery images that can be searched.", images),
        ):
            Gauge(name, told, registry=self._registry).set_function(value)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self._registry)

    def count(self, route: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)


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
