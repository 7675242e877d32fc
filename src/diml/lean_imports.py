"""timm and lancedb imported without what they load but diml does not use, which takes seconds of every command.

torchvision and timm load the compiler of torch for one function and some decorators, timm the logger wandb where it is
installed, and lancedb the client of a server. Here these are loaded when they are first used, by whomever; nothing is
missing afterwards.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

_COMPILER: Final = "torch._dynamo"
#: The module of the compiler of which torchvision imports a function.
_ITS_UTILITIES: Final = "torch._dynamo.utils"
_LOGGER: Final = "wandb"
#: Its models are used by lancedb, its functions by servers alone.
_SERVER_CLIENT: Final = "lance_namespace_urllib3_client"


def import_timm() -> Any:
    """Return the module timm."""
    if "timm" not in sys.modules:
        with _compiler_when_used(), _logger_when_used():
            return importlib.import_module("timm")
    return sys.modules["timm"]


def import_lancedb() -> Any:
    """Return the module lancedb.

    Raises:
        ImportError: it is not installed, or damaged.
    """
    if "lancedb" not in sys.modules and _SERVER_CLIENT not in sys.modules:
        _load_when_used(_SERVER_CLIENT)
    return importlib.import_module("lancedb")


@contextmanager
def _compiler_when_used() -> Iterator[None]:
    """While entered, what is imported from the compiler of torch, or decorated by it, loads it when first called."""
    import torch

    lazily: Callable[..., Any] | None = getattr(torch, "_disable_dynamo", None)
    if lazily is None or _COMPILER in sys.modules:
        yield
        return
    decorator = torch.compiler.disable

    def disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        return lazily(fn, recursive)

    with _standing_in(_ITS_UTILITIES) as (stand_in, real):

        def is_compile_supported(device_type: str) -> bool:
            return bool(real().is_compile_supported(device_type))

        stand_in.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
        torch.compiler.disable = disable
        try:
            yield
        finally:
            torch.compiler.disable = decorator


@contextmanager
def _logger_when_used() -> Iterator[None]:
    """While entered, who imports the logger gets a module that loads it when one of its names is asked for."""
    if _LOGGER in sys.modules or importlib.util.find_spec(_LOGGER) is None:
        yield
        return
    with _standing_in(_LOGGER):
        yield


@contextmanager
def _standing_in(name: str) -> Iterator[tuple[ModuleType, Callable[[], ModuleType]]]:
    """While entered, `name` is a module whose names are those of the real one, which is imported when one is asked for.

    Yields:
        That module, and a function that imports the real one.
    """
    stand_in = ModuleType(name)

    def give_way() -> None:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]

    def real() -> ModuleType:
        give_way()
        return importlib.import_module(name)

    stand_in.__getattr__ = _unless_special(lambda wanted: getattr(real(), wanted))  # type: ignore[method-assign]
    sys.modules[name] = stand_in
    try:
        yield stand_in, real
    finally:
        give_way()


def _load_when_used(package: str) -> None:
    """Let a package be imported without its own code, which runs when a name of the package itself is asked for."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:
        return
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    def load(name: str) -> Any:
        del module.__getattr__
        loader.exec_module(module)
        return getattr(module, name)

    module.__getattr__ = _unless_special(load)  # type: ignore[method-assign]
    sys.modules[package] = module


def _unless_special(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A module's `__getattr__` that loads nothing for `__path__` and the like, which imports themselves ask for."""

    def found(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return load(name)

    return found
