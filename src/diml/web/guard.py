"""Checks of every request: host, origin, token, duration and size.

A browser lets any web page send requests to 127.0.0.1. Therefore the requested host has to be a name of the local
machine or one that was allowed (another name can be made to resolve to it: DNS rebinding), and a request made by a page
has to come from the page of this server, or from one of the origins that were allowed (CORS).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diml.web.access import PROBES, Access
from diml.web.errors import ApiError, internal
from diml.web.limits import Amount, Limits

#: Only scripts, styles and images of this server, no framing, no forms sent elsewhere.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: How long a browser remembers what a page of another origin may send.
_REMEMBERED: Final = 600


class OtherPages:
    """ASGI middleware that answers the pages of some other origins as CORS has it, and passes everything else on.

    It is outermost, so that a page can read errors too, and its browser may ask beforehand without the token.

    Args:
        app: the application.
        origins: of these pages, as browsers send them.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app, self._origins = app, origins
        self._allowed = CORSMiddleware(
            app, allow_origins=origins, allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("Authorization",), expose_headers=("Retry-After",), max_age=_REMEMBERED,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer what a browser asks before it sends one."""
        if scope["type"] == "http" and Headers(scope=scope).get("origin", "") in self._origins:
            await self._allowed(scope, receive, send)
        else:  # kept by a cache, the answer is not for those pages
            await self.app(scope, receive, _varying(send))


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        limits: of request bodies.
        access: names of hosts, prefix and token.
    """

    def __init__(self, app: ASGIApp, limits: Limits, access: Access) -> None:
        self.app, self._limits, self._access = app, limits, access
        self._bodies = Amount(limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            began = True
            await _with_headers(send)(message)

        try:
            headers = Headers(scope=scope)
            scope["root_path"] = self._access.root_path
            if self._access.route_of(scope["path"]) not in PROBES:
                self._access.check_host(headers)
                check_origin(headers, self._access.origins)
                self._access.check_token(headers)
            self._check_length(headers)
            body = _Body(receive, self._limits, self._bodies)
            try:
                await self.app(scope, body.receive, answer)
            finally:
                self._bodies.give_back(body.received)
        except ApiError as error:
            if error.status == 413:
                await _discard(receive, self._limits)
            await error.response()(scope, receive, answer)
        except ClientDisconnect:  # there is no one to answer
            return
        except Exception as error:
            if began:
                raise
            await internal(error).response()(scope, receive, answer)

    def _check_length(self, headers: Mapping[str, str]) -> None:
        """Reject by the announced length; `_limited` counts what is received."""
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise ApiError(
                400, "bad_length", f"Content-Length is not a number: {length[:20]!r}.", "Let the client set it."
            )
        if int(length) > self._limits.body_bytes:
            raise too_large(self._limits)


class _Body:
    """The body of a request, whose bytes are counted as they arrive, and their time.

    Args:
        receive: of the server.
        limits: of the body.
        bodies: bytes of all bodies in memory; what this one has `received` is to be given back in the end.
    """

    def __init__(self, receive: Receive, limits: Limits, bodies: Amount) -> None:
        self._receive, self._limits, self._bodies = receive, limits, bodies
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + limits.upload_seconds
        self._complete = False
        self.received = 0

    async def receive(self) -> Message:
        """Return the next message; ApiError where it is too late or too much."""
        if self._complete:  # what follows is the wait for the client to disconnect
            return await self._receive()
        seconds = min(self._limits.stall_seconds, max(0.0, self._deadline - self._clock()))
        try:
            async with asyncio.timeout(seconds):
                message = await self._receive()
        except TimeoutError as error:
            raise self._too_slow() from error
        size = len(message.get("body", b""))
        if self.received + size > self._limits.body_bytes:
            raise too_large(self._limits)
        if not self._bodies.take(size):
            raise ApiError(
                503, "busy", "Too many images are being uploaded.", "Try again in a moment.", {"Retry-After": "2"}
            )
        self.received += size
        self._complete = not message.get("more_body", False)
        return message

    def _too_slow(self) -> ApiError:
        limits = self._limits
        late = self._clock() >= self._deadline
        message = (
            f"The images did not arrive within {limits.upload_seconds:g} seconds."
            if late
            else f"Nothing arrived for {limits.stall_seconds:g} seconds."
        )
        return ApiError(408, "upload_timeout", message, "Send smaller images.")


async def _discard(receive: Receive, limits: Limits) -> None:
    """Read on in a body that is too large, up to twice the limit, without keeping it.

    A proxy that is still sending when the connection is closed tells its client 502 in place of our answer.
    """
    left = 2 * limits.body_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.stall_seconds):
            more = True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


def check_origin(headers: Mapping[str, str], allowed: Collection[str] = ()) -> None:
    """Reject requests of other pages; programs (curl, Python) send neither of the two headers.

    Args:
        headers: of the request.
        allowed: origins of other pages that may send requests.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin in allowed:
        return
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
    strange = site not in ("none", "same-origin") and mode != "navigate"
    if foreign or strange:
        raise ApiError(
            403, "foreign_page", "The request comes from a page of another origin.",
            "Use the page of this server, or start diml serve with --allow-origins and the origin of that page.",
        )  # fmt: skip


def too_large(limits: Limits) -> ApiError:
    """Return the error of a body above the limit."""
    most = f"{limits.body_bytes / 2**20:.3g} MB"
    return ApiError(
        413, "too_large", f"The images are larger than {most} together.",
        "Scale them down (about 500 pixels are enough), or start diml with a larger --max-megabytes.",
    )  # fmt: skip


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if "cache-control" not in headers:
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending


def _varying(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).add_vary_header("Origin")
        await send(message)

    return sending
