"""Errors of the API: JSON that says what is wrong and how to correct it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from diml.data.query_box import BoxError
from diml.web.gallery import GalleryNotReadyError, WhereError

_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_REMEDIES: Final = {404: "GET /api/openapi.json lists the addresses.", 405: "GET /api/openapi.json lists the methods."}


class ApiError(Exception):
    """A rejected request.

    Args:
        status: HTTP status.
        code: a word for programs, stable across versions.
        message: what is wrong, for people.
        remedy: how to correct it.
        headers: of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, remedy: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.remedy = status, code, message, remedy
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        body = {"error": {"code": self.code, "message": self.message, "remedy": self.remedy}}
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def not_ready(error: GalleryNotReadyError) -> ApiError:
    """Return the error of a search before the gallery can be searched."""
    if error.state.phase == "failed":
        return ApiError(
            503, "gallery_failed", f"The folder could not be embedded: {error}", "Correct it and restart diml serve."
        )
    return ApiError(
        503,
        "gallery_embedding",
        f"The folder is still being embedded: {error}.",
        "Poll /api/status until the phase is `ready`; pairs can be compared in the meantime.",
        {"Retry-After": "2"},
    )


def internal(error: Exception) -> ApiError:
    """Log an unexpected exception, and return an error that reveals only its type."""
    logging.getLogger("diml.web").error("a request failed", exc_info=error)
    remedy = "The terminal of diml serve has the details; please report them."
    return ApiError(500, "internal", f"Internal error of the server ({type(error).__name__}).", remedy)


def answer_errors(app: FastAPI) -> None:
    """Make an application answer all errors in this form."""

    @app.exception_handler(ApiError)
    async def rejected(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(GalleryNotReadyError)
    async def waiting(_: Request, error: GalleryNotReadyError) -> JSONResponse:
        return not_ready(error).response()

    @app.exception_handler(ConnectionError)
    async def lost(_: Request, error: ConnectionError) -> JSONResponse:
        logging.getLogger("diml.web").error("the index does not answer: %s", error)
        remedy = "Try again in a moment; the terminal of diml serve has the details."
        message = "The server that holds the index does not answer."
        return ApiError(503, "index_unavailable", message, remedy, {"Retry-After": "5"}).response()

    @app.exception_handler(WhereError)
    async def condition(_: Request, error: WhereError) -> JSONResponse:
        remedy = "Correct the condition, such as where=label = 'milk' (URL-encoded); see docs/search.md."
        return ApiError(422, "bad_where", f"{error}.", remedy).response()

    @app.exception_handler(BoxError)
    async def no_box(_: Request, error: BoxError) -> JSONResponse:
        message, remedy = str(error).rsplit("; ", 1)
        return ApiError(422, "bad_box", f"{message}.", f"{remedy[:1].upper()}{remedy[1:]}.").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message = "; ".join(f"{_location(entry)}: {entry['msg']}" for entry in error.errors()[:5])
        remedy = "GET /api/openapi.json lists the ranges of all parameters."
        return ApiError(422, "bad_request", message, remedy).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        message = f"{request.method} {request.url.path}: {error.detail}"
        remedy = _REMEDIES.get(error.status_code, "See docs/serve.md.")
        return ApiError(error.status_code, code, message, remedy, error.headers).response()


def _location(entry: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in entry["loc"][1:]) or "request"
