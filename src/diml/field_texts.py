"""The text below each field of a dataclass: help of the command line and model cards say what the code says."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_texts(owner: type) -> dict[str, str]:
    """The string below each field of a dataclass, as one line, by the name of the field; inherited ones are left out.

    Example:
        >>> field_texts(Matcher)["tolerance"]
        'Marginal error at which the plan of a pair has converged, > 0; not used with epsilon 0.'
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            found[before.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
