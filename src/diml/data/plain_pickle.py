"""Pickle files of plain values and numpy arrays, read without running anything that stands in them.

A pickle can name any function of any module and have it called. Here nothing is called: plain containers, numbers and
strings are what the format itself can hold, and the few names with which numpy writes arrays are replaced by stand-ins
that only decode bytes. Every other name is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

#: Kinds of numbers that arrays may have: signed and unsigned integers, floats, booleans.
_KINDS: Final = "iufb"


class UnsafePickleError(ValueError):
    """A pickle file wants to build something that is neither a plain value nor an array of numbers."""


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle file of dicts, lists, tuples, sets, numbers, strings, bytes, None and numpy arrays.

    Raises:
        UnsafePickleError: It has anything else.
        ValueError: It is damaged, or no pickle file.
    """
    try:
        with path.open("rb") as file:
            # Latin-1 decodes the strings and arrays of pickles that Python 2 wrote.
            return _plain(_PlainUnpickler(file, encoding="latin1").load())
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged pickles raise errors of any kind
        raise ValueError(f"{path}: cannot be read as a pickle file ({type(error).__name__}: {error})") from error


class _Type:
    """Stands for a numpy dtype: its code, and the order of its bytes."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or code[:1] not in (*_KINDS, "O") or not (code[1:] or "8").isdecimal():
            raise UnsafePickleError(f"arrays of the type {code!r} are refused; only numbers are read")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("arrays of structures are refused; only numbers are read")
        self.order = state[1] if state[1] in ("<", ">") else "="

    def decode(self, data: Any, shape: tuple[int, ...], fortran: bool) -> np.ndarray[Any, Any]:
        """The array of these bytes (a list, for objects)."""
        if self.code[0] == "O":
            if not isinstance(data, list) or not all(isinstance(value, int | float | str) for value in data):
                raise UnsafePickleError("arrays of objects are refused; only numbers and strings are read")
            return np.array(data).reshape(shape, order="F" if fortran else "C")
        if isinstance(data, str):  # as Python 2 wrote bytes
            data = data.encode("latin1")
        flat = np.frombuffer(data, dtype=np.dtype(self.order + self.code))
        return flat.reshape(shape, order="F" if fortran else "C").copy()


class _Array:
    """Stands for a numpy array until its state is known."""

    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type):
            raise UnsafePickleError(f"expected the type of an array, got {type(kind).__name__}")
        self.value = kind.decode(data, tuple(shape), bool(fortran))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, _Type):
        raise UnsafePickleError(f"expected the type of a number, got {type(kind).__name__}")
    return kind.decode(data, (), fortran=False).item()


def _from_buffer(data: Any, kind: Any, shape: Any, order: str) -> _Array:
    """Arrays of protocol 5."""
    if not isinstance(kind, _Type):
        raise UnsafePickleError(f"expected the type of an array, got {type(kind).__name__}")
    array = _Array()
    array.value = kind.decode(bytes(data), tuple(shape), order == "F")
    return array


def _encode(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"text in the encoding {encoding!r} is refused")
    return text.encode("latin1")


class _Call:
    """A function that a pickle can call but not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("wants to change a function, which is refused")


_STAND_INS: Final[dict[tuple[str, str], Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Call(_encode),
    ("builtins", "bytes"): _Call(_encode),
    ("__builtin__", "bytes"): _Call(_encode),
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Call(_reconstruct)
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _Call(_scalar)
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _Call(_from_buffer)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name, which is never imported."""
        if (module, name) not in _STAND_INS:
            raise UnsafePickleError(
                f"wants {module}.{name}, which is refused: only plain values and arrays are read. The file is not what "
                "it should be; get it again from its source"
            )
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what is outside the file."""
        raise UnsafePickleError(f"refers to {pid!r} outside the file, which is refused")


def _plain(value: Any) -> Any:
    """The value with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        if value.value is None:
            raise UnsafePickleError("has an array without content")
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_plain(part) for part in value)
    if value is None or isinstance(value, str | bytes | int | float | bool):
        return value
    raise UnsafePickleError(f"has a {type(value).__name__}, which is refused")
