"""Losses, miners, backbones, data sets and stores of your own, by name: `register`, or an entry point of a package.

A name that is registered works wherever a built-in name does, in Python and on the command line. Registration is for a
script or a notebook; for the command line and for everybody who installs your package, declare an entry point:

    [project.entry-points."diml.losses"]
    soft_contrastive = "your_package.losses:soft_contrastive"

Entry points are imported when their name is used, not before. See `docs/extending.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, get_args

from diml.spelling import did_you_mean

__all__ = ["register"]

Kind = Literal["losses", "miners", "backbones", "datasets", "stores"]
KINDS: Final = get_args(Kind)

_REGISTERED: Final[dict[str, dict[str, Callable[..., Any]]]] = {kind: {} for kind in KINDS}


def register(kind: Kind, name: str, make: Callable[..., Any]) -> None:
    """Make a part of your own known by name in this process; a later one of the same name replaces it.

    Args:
        kind: "losses", "miners", "backbones", "datasets" or "stores", the last word of the entry points' group.
        name: a letter, then letters, digits, "_" and "-"; a built-in name cannot be replaced.
        make: a function or class, called as `docs/extending.md` says for each kind.

    Raises:
        ValueError: an unknown kind or an invalid name.
        TypeError: `make` cannot be called.

    Example:
        >>> register("miners", "all_pairs", lambda distance: AllPairs(distance))  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise ValueError(f"kind: need one of {', '.join(KINDS)}, got {kind!r}")
    if not _is_name(name):
        raise ValueError(f"name: need a letter, then letters, digits, _ and -, got {name!r}")
    if not callable(make):
        raise TypeError(f"make: need a function or class, got {type(make).__name__}; register what builds it")
    _REGISTERED[kind][name] = make


def registered_names(kind: Kind) -> tuple[str, ...]:
    """Names of a kind that were registered or are declared by installed packages, in this order."""
    return tuple(dict.fromkeys([*_REGISTERED[kind], *(entry.name for entry in _declared(kind))]))


def registered(kind: Kind, name: str) -> Callable[..., Any] | None:
    """What was registered under a name, else what an installed package declares under it, else None.

    Raises:
        ValueError: the entry point cannot be imported, or is nothing that can be called.
    """
    if name in _REGISTERED[kind]:
        return _REGISTERED[kind][name]
    entry = next((entry for entry in _declared(kind) if entry.name == name), None)
    if entry is None:
        return None
    where = f"entry point {name!r} of group diml.{kind}, {entry.value!r}"
    try:
        found = entry.load()
    except Exception as error:  # importing runs the code of a package, which can raise anything
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}, fails ({what}); repair or uninstall the package that declares it") from error
    if not callable(found):
        raise ValueError(f"{where}: need a function or class, got {type(found).__name__}")  # noqa: TRY004
    make: Callable[..., Any] = found
    return make


def need_registered(kind: Kind, name: str) -> Callable[..., Any]:
    """As `registered`, where nothing else can be meant by the name.

    Raises:
        ValueError: nothing of this kind has this name, for instance as its package was uninstalled meanwhile.
    """
    make = registered(kind, name)
    if make is None:
        near = did_you_mean(name, registered_names(kind)) if registered_names(kind) else "none is"
        raise ValueError(f"{kind}: {name!r} is neither registered nor declared by an installed package; {near}")
    return make


def _declared(kind: str) -> tuple[EntryPoint, ...]:
    return _declared_on(kind, tuple(sys.path))


@lru_cache(maxsize=64)
def _declared_on(kind: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of packages on this import path, read once: reading them takes 30 ms."""
    return tuple(entry_points(group=f"diml.{kind}"))


def _is_name(name: object) -> bool:
    """Whether a name can stand on the command line and before "://"."""
    if not isinstance(name, str) or not name.isascii() or not name[:1].isalpha():
        return False
    return name.replace("_", "").replace("-", "").isalnum()
