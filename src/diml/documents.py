"""JSON and YAML read within bounds: the one place that parses either, so that no document can exhaust the memory.

Whatever is wrong with a document becomes a ValueError of one line. YAML is read by PyYAML's safe loader, which builds
plain values only; aliases are expanded up to a limit, and a key stands once in a mapping.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

#: Bytes of a YAML file, which people write, and of a JSON file, which programs write.
LARGEST_YAML: Final = 1 << 20
LARGEST_JSON: Final = 1 << 26
#: Values of a YAML document after its aliases are expanded, and how deep they may be nested.
MOST_VALUES: Final = 20_000
DEEPEST: Final = 50


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, nested too deeply, or larger than `LARGEST_JSON`.
    """
    return parse_json(_content(path, LARGEST_JSON), str(path))


def parse_json(text: str | bytes, what: str) -> Any:
    """Return the content of JSON text; `what` names it in the ValueError that everything else becomes."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{what}: not readable as JSON (nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"{what}: not readable as JSON ({error})") from error


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: plain values only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, has a tag of other values, a repeated key, or is larger or deeper than the limits
            of this module, aliases expanded.
    """
    return parse_yaml(_content(path, LARGEST_YAML), str(path))


def parse_yaml(text: str | bytes, what: str) -> Any:
    """Return the content of YAML text; `what` names it in the ValueError that everything else becomes."""
    import yaml

    try:
        return yaml.load(text, _bounded_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        reason = " ".join(f"{error.problem or error.context}".split())
        raise ValueError(f"{what}: not readable as YAML ({place}{reason[:300]})") from error
    except RecursionError as error:
        raise ValueError(f"{what}: not readable as YAML (nested too deeply)") from error
    except Exception as error:  # values that do not fit their tag raise almost any type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{what}: not readable as YAML ({reason[:300]})") from error


def dataclass_of(values: Any, kind: Any, name: str) -> Any:
    """Return a dataclass built from plain values, each checked as `of_type` says; fields with defaults may be missing.

    Raises:
        ValueError: `values` is no mapping, a name is missing or unknown, or a value is of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: need a mapping, got {_told(values)}")  # noqa: TRY004  # as for every value of a document
    fields, kinds = dataclasses.fields(kind), get_type_hints(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    wrong = sorted((needed - values.keys()) | (values.keys() - kinds.keys()))
    if wrong:
        raise ValueError(f"{name}: need the keys {', '.join(kinds)}; missing or unknown: {_told(wrong)}")
    return kind(**{key: of_type(value, kinds[key], f"{name}.{key}") for key, value in values.items()})


def of_type(value: Any, kind: Any, name: str) -> Any:
    """Return a plain value as a type says it: lists become tuples, whole numbers floats where those are needed.

    Args:
        value: of a document.
        kind: bool, int, float, str, a Literal of texts, `tuple[T, ...]`, `tuple[T, U]`, or a dataclass of such fields,
            given as a mapping (by its `from_dict`, where it has one).
        name: of the value, for the error.

    Raises:
        ValueError: the value is of another type, not finite or beyond 64 bits; a name is missing or unknown.
    """
    if get_origin(kind) is Literal:
        if value not in get_args(kind) or not isinstance(value, str):
            raise ValueError(f"{name}: need one of {', '.join(get_args(kind))}, got {_told(value)}")
        return value
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or (kinds[-1] is not ... and len(kinds) != len(value)):
            raise ValueError(
                f"{name}: need a list of {'values' if kinds[-1] is ... else len(kinds)}, got {_told(value)}"
            )
        each = [kinds[0]] * len(value) if kinds[-1] is ... else kinds
        return tuple(
            of_type(one, of, f"{name}[{place}]") for place, (one, of) in enumerate(zip(value, each, strict=True))
        )
    if dataclasses.is_dataclass(kind):
        if hasattr(kind, "from_dict") and isinstance(value, Mapping):
            return kind.from_dict(value)
        return dataclass_of(value, kind, name)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{name}: need a finite number, got {_told(value)}")
        return float(value)
    if type(value) is not kind or (kind is int and abs(value) >= 1 << 63):
        raise ValueError(f"{name}: need {kind.__name__}, got {_told(value)}")
    return value


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _content(path: Path, largest: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path}: need at most {largest:,} bytes, got more; is it the right file?")
    return content


@functools.cache
def _bounded_loader() -> Any:
    """The safe loader of PyYAML, which is an optional package, with limits."""
    import yaml
    from yaml.composer import ComposerError
    from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

    class BoundedLoader(yaml.SafeLoader):
        """Counts the values of each node, those behind aliases included, while the document is composed."""

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.depth = 0
            #: Node -> values in it; a node that an alias names and that is not here is still being composed.
            self.values: dict[int, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            is_alias = self.check_event(yaml.AliasEvent)
            self.depth += 1
            if self.depth > DEEPEST:
                raise ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
            node: Any = super().compose_node(parent, index)
            self.depth -= 1
            if is_alias:
                if id(node) not in self.values:
                    raise ComposerError(None, None, "an alias inside of what it stands for", mark)
                return node
            self.values[id(node)] = 1 + sum(self.values[id(inner)] for inner in _inside(node))
            if self.values[id(node)] > MOST_VALUES:
                raise ComposerError(None, None, f"more than {MOST_VALUES:,} values, aliases expanded", mark)
            if isinstance(node, MappingNode):
                _require_distinct_keys(node)
            return node

    def _inside(node: Node) -> list[Node]:
        if isinstance(node, MappingNode):
            return [part for pair in node.value for part in pair]
        return list(node.value) if isinstance(node, SequenceNode) else []

    def _require_distinct_keys(node: MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise ComposerError(None, None, f"the key {key.value[:100]!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value))

    return BoundedLoader
