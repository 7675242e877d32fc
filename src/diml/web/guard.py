"""Checks of every request: host, origin, number, duration and size.

A browser lets any web page send requests to 127.0.0.1. Therefore the requested host has to be a name of the local
machine (another name can be made to resolve to it: DNS rebinding), and a request made by a page has to come from the
page of this server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diml.web.errors import ApiError, internal
from diml.web.limits import Limits, Slots

HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
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


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        limits: of request bodies.
        slots: of comparisons and searches.
    """

    def __init__(self, app: ASGIApp, limits: Limits, slots: Slots) -> None:
        self.app, self._limits, self._slots = app, limits, slots

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
            check_host(headers)
            check_origin(headers)
            self._check_length(headers)
            if scope["method"] != "POST":
                await self.app(scope, receive, answer)
                return
            with self._slots.taken() as slot:
                scope.setdefault("state", {})["slot"] = slot
                await self.app(scope, self._limited(receive), answer)
        except ApiError as error:
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

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body as they arrive, and their time."""
        clock = asyncio.get_running_loop().time
        deadline, received = clock() + self._limits.upload_seconds, 0
        complete = False

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # what follows is the wait for the client to disconnect
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - clock())):
                    message = await receive()
            except TimeoutError as error:
                seconds = f"{self._limits.upload_seconds:g} seconds"
                raise ApiError(
                    408, "upload_timeout", f"The images did not arrive within {seconds}.", "Send smaller images."
                ) from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limits.body_bytes:
                raise too_large(self._limits)
            return message

        return counted


def check_host(headers: Mapping[str, str]) -> None:
    """Reject hosts that are not the local machine; any port, as a tunnel may use another one."""
    host = headers.get("host", "")
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if name.lower() not in HOSTS or (port and not port.isdigit()):
        raise ApiError(
            421, "wrong_host", f"This server answers for 127.0.0.1 and localhost, not for {host[:80]!r}.",
            "Open it as http://127.0.0.1 and its port; from another machine, use ssh -L.",
        )  # fmt: skip


def check_origin(headers: Mapping[str, str]) -> None:
    """Reject requests of other pages; programs (curl, Python) send neither of the two headers."""
    origin, host = headers.get("origin"), headers.get("host", "")
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
    strange = site not in ("none", "same-origin") and mode != "navigate"
    if foreign or strange:
        raise ApiError(
            403, "foreign_page", "The request comes from a page of another origin.", "Use the page of this server."
        )


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
