"""Parameters that no route knows are errors: a misspelt filter that is ignored gives wrong hits in silence."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from diml.matching import Matcher
from diml.spelling import did_you_mean, shown
from diml.web.errors import ApiError

_REMEDY = "GET /api/openapi.json lists the parameters of all routes."


def require_known(request: Request) -> None:
    """Reject query parameters that the route does not have, or that are given twice; a dependency of the API's routes.

    Raises:
        ApiError: 422 `unknown_parameter` with the nearest known name, or `repeated_parameter`.
    """
    known = names_of(request)
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            hint = did_you_mean(name, known) if known else "This route has no query parameters"
            raise ApiError(422, "unknown_parameter", f"Unknown parameter {shown(name[:80])}: {hint}.", _REMEDY)
        if name in seen:
            raise ApiError(422, "repeated_parameter", f"The parameter {name} is given twice.", "Give it once.")
        seen.add(name)


def with_share(matcher: Matcher, text: str) -> Matcher:
    """Return a matcher with another share of what is matched; ApiError (422 `bad_share`) where it can have none."""
    if matcher.learned:
        raise ApiError(422, "bad_share", "share: a learned matcher has its own.", "Omit it.")
    try:
        return matcher.changed(share="auto" if text == "auto" else float(text))
    except ValueError as error:
        message = f"share: need a number above 0 and up to 1, or auto, and a matcher that can, got {shown(text)}."
        raise ApiError(422, "bad_share", message, "Omit it, or give share=auto or share=0.8.") from error


def names_of(request: Request) -> list[str]:
    """Names of the query parameters of the route that answers a request."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    return [] if dependant is None else [field.alias for field in _fields(dependant)]


def _fields(dependant: Any) -> list[Any]:
    """The query parameters of a route and of what it depends on."""
    return [*dependant.query_params, *(field for inner in dependant.dependencies for field in _fields(inner))]
