"""An extension of griffe, which reads the docstrings for the reference: `a, b: text` describes two arguments."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(\s*)(Args|Attributes):$")
_GROUP = re.compile(r"^(\s+)(\w+(?:, \w+)+): (.*)$")


class GroupedArguments(griffe.Extension):
    """Gives each argument of a group its own entry with the text of the group."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is not None:
            obj.docstring.value = ungrouped(obj.docstring.value)


def ungrouped(docstring: str) -> str:
    """The docstring with an entry for each argument."""
    out: list[str] = []
    lines, inside = docstring.splitlines(), False
    while lines:
        line = lines.pop(0)
        inside = bool(_SECTION.match(line)) or (inside and (not line.strip() or line.startswith((" ", "\t"))))
        group = _GROUP.match(line) if inside else None
        if group is None:
            out.append(line)
            continue
        indent, names, text = group.groups()
        more = []
        while lines and lines[0].strip() and len(lines[0]) - len(lines[0].lstrip()) > len(indent):
            more.append(lines.pop(0))
        for name in names.split(", "):
            out += [f"{indent}{name}: {text}", *more]
    return "\n".join(out)
