"""The page on which the API is read and tried: Swagger UI, whose files come from the package `fastapi-swagger`.

Nothing is loaded from other servers, and no inline script is run: the guard forbids both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute

from diml.web.access import PROBES

_SWAGGER: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_OWN: Final = {"start.js": "text/javascript"}
#: Beginning of the path -> where the page lists a route; all others are about the server.
_GROUPS: Final = {
    "/api/match": "Comparison and search",
    "/api/search": "Comparison and search",
    "/api/hits": "Comparison and search",
    "/api/gallery": "Gallery",
    "/api/facets": "Gallery",
    "/api/images": "Changes of the index",
}
_SERVER: Final = "Server"


def add_api_page(app: FastAPI) -> None:
    """Add the page /api/docs and its files."""
    files: dict[str, tuple[Callable[[], str], str]] = {
        **{f"/api/docs/{name}": (partial(_swagger_file, name), kind) for name, kind in _SWAGGER.items()},
        **{f"/api/docs/{name}": (partial(_own_file, name), kind) for name, kind in _OWN.items()},
        "/api/docs": (partial(_own_file, "index.html"), "text/html"),
    }
    for address, (read, kind) in files.items():
        app.add_api_route(address, _file(read, kind), methods=["GET", "HEAD"], include_in_schema=False)


def group_routes(app: FastAPI) -> None:
    """Put every route of the description into a group, in the order in which a reader needs them."""
    app.openapi_tags = [{"name": name} for name in dict.fromkeys([*_GROUPS.values(), _SERVER])]
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            found = (group for start, group in _GROUPS.items() if route.path.startswith(start))
            route.tags = [next(found, _SERVER)]


def describe_token(app: FastAPI) -> None:
    """Say in the description of the API that requests need the token."""
    described = app.openapi

    def with_token() -> dict[str, Any]:
        schema = described()
        scheme = {"type": "http", "scheme": "bearer", "description": "the token of --token-file"}
        schema.setdefault("components", {})["securitySchemes"] = {"token": scheme}
        schema["security"] = [{"token": []}]
        for probe in PROBES:
            schema["paths"][probe]["get"]["security"] = []
        return schema

    app.openapi = with_token  # type: ignore[method-assign]


def _file(read: Callable[[], str], kind: str) -> Callable[[], Response]:
    def file() -> Response:
        return Response(read(), media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return file


def _swagger_file(name: str) -> str:
    return resources.files("fastapi_swagger").joinpath("resources", name).read_text(encoding="utf-8")


def _own_file(name: str) -> str:
    return resources.files("diml.web").joinpath("documentation", name).read_text(encoding="utf-8")
