"""Words of the command line -> the dataclass of a command: one parser for all, whose help is written for people.

tyro writes Python's values into help texts: `{None}|PATH`, `(default: None)`, `(default: )`. The rules below write
`PATH`, `(default: not set)` and `(default: none)`. The words that are accepted stay the same: `None` still sets an
optional flag to nothing, which undoes a value of a preset.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

Parsed = TypeVar("Parsed")
Spec = PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError

_NOTHING: Final = "None"


def parse_words(kind: Callable[..., Parsed], command: str, words: Sequence[str], *, pairs: bool = False) -> Parsed:
    """The dataclass of a command from the words after it.

    Args:
        kind: the dataclass.
        command: name after `diml`, such as `evaluate` or `index build`.
        words: words after the name.
        pairs: whether a switch has both forms, `--cache` and `--no-cache`; else only the one that changes the default.

    Raises:
        SystemExit: 0 after --help, 2 for wrong options.
    """
    config = () if pairs else (tyro.conf.FlagCreatePairsOff,)
    with _registry():
        return tyro.cli(kind, prog=f"diml {command}", args=list(words), config=config)


def switch_off(text: str) -> Any:
    """The help of a switch that is on by default, shown as `--no-NAME`: what the flag does, without `(default: True)`.

    Example:
        >>> cache: Annotated[bool, switch_off("Do not keep embeddings.")] = True
    """
    return tyro.conf.arg(help=text, help_behavior_hint="")


def option_names(kind: type) -> dict[str, str]:
    """The options of a command by the name of their field: `batch_size` -> `--batch-size`; words by place stay out."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, str] = {}
    for entry in dataclasses.fields(kind):
        marks = get_args(hints[entry.name])
        inner = marks[0] if get_origin(hints[entry.name]) is Annotated else hints[entry.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found |= option_names(inner)  # the groups of options have no prefix
        elif tyro.conf.Positional not in marks:
            found[entry.name] = f"--{entry.name.replace('_', '-')}"
    return found


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.primitive_rule(_optional)
    entered: set[Any] = set()

    @registry.primitive_rule
    def _many(info: PrimitiveTypeInfo) -> Spec | None:
        """The rule of `tuple[X, ...]`: tyro's own, but an empty default is `none`."""
        if info.type_origin is not tuple or get_args(info.type)[1:] != (...,) or info.type in entered:
            return None
        entered.add(info.type)  # so that the next line finds tyro's rule
        try:
            inner = ConstructorRegistry.get_primitive_spec(info)
        finally:
            entered.remove(info.type)
        if isinstance(inner, UnsupportedTypeAnnotationError):
            return inner
        return dataclasses.replace(inner, str_from_instance=lambda values: inner.str_from_instance(values) or ["none"])

    return registry


def _optional(info: PrimitiveTypeInfo) -> Spec | None:
    """The rule of `X | None`: that of X, which also takes the word None but does not list it."""
    options = get_args(info.type)
    if info.type_origin not in (Union, types.UnionType) or type(None) not in options:
        return None
    rest = functools.reduce(operator.or_, [option for option in options if option is not type(None)])
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(rest, info.markers))
    if isinstance(inner, UnsupportedTypeAnnotationError):
        return inner
    return PrimitiveConstructorSpec(
        nargs=inner.nargs,
        metavar=inner.metavar,
        instance_from_str=lambda words: None if words == [_NOTHING] else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["not", "set"] if value is None else inner.str_from_instance(value),
        choices=None if inner.choices is None else (*inner.choices, _NOTHING),
    )
