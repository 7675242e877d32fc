"""Errors as the command line prints them: one line with the remedy; only a bug of ours keeps its traceback.

Libraries raise what they like for a full disk, a damaged file or too little memory. `KINDS` is the one place that knows
these; what it does not know is a bug. docs/errors.md lists the exit codes.
"""

from __future__ import annotations

import errno
import importlib.metadata
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from diml.extras import missing_extra

#: Exit codes: done; a check failed or something was left out; an error of use or of the machine; a bug; Ctrl-C.
DONE, FAILED, ERROR, BUG, INTERRUPTED = 0, 1, 2, 70, 130

#: Argument of the Python API -> field of the command that its value comes from, where the two differ.
_OPTION_OF: Final = {"root": "data", "name_or_path": "model", "depth": "rerank_at"}

#: Characters of a printed error.
_LONGEST: Final = 2000

_DISK: Final = "the disk is full; free some space, or write to another one: files that were finished are whole"
_MEMORY: Final = "too little memory; lower --batch-size, --dim, --size or --workers, or use smaller images"
_DAMAGED: Final = "a file is damaged or incomplete; copy or make it again"
_INDEX: Final = "the index is damaged or incomplete; check it with `diml index verify INDEX`, or build it again"

#: Number of an OSError -> what to do.
_SYSTEM: Final = {
    errno.ENOSPC: _DISK,
    errno.EDQUOT: "your share of the disk is used up; free some space, or write to another disk",
    errno.EMFILE: "too many open files; raise `ulimit -n`, or lower --workers",
    errno.ENFILE: "too many open files on this machine; lower --workers",
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "too many processes or threads; lower --workers",
    errno.EROFS: "it is on a disk that is only readable; name another place",
    errno.EACCES: "no permission; change it, or name another place",
    errno.EPERM: "no permission; change it, or name another place",
    errno.ENAMETOOLONG: "the name is too long; name a shorter one",
    errno.EIO: "the disk or its connection has failed; check the disk",
    errno.ELOOP: "a link leads to itself; remove the link",
    errno.ESTALE: "the network disk was mounted again; run the command again",
}


@dataclass(frozen=True)
class ErrorKind:
    """Errors of one kind, which other libraries raise.

    Args:
        fits: whether an error, given with its text in lower case, is of this kind.
        remedy: what it means and what to do.
    """

    fits: Callable[[BaseException, str], bool]
    remedy: str


def _from(*packages: str) -> Callable[[BaseException, str], bool]:
    """Whether an error, or a class that it derives from, is of one of these packages."""
    return lambda error, _: any(kind.__module__.split(".")[0] in packages for kind in type(error).__mro__)


def _type(*names: str) -> Callable[[BaseException, str], bool]:
    """Whether an error is of a type of one of these names; by name, so that no package is imported for it."""
    return lambda error, _: any(kind.__name__ in names for kind in type(error).__mro__)


def _says(*parts: str) -> Callable[[BaseException, str], bool]:
    """Whether the text has one of these parts; the only way to tell the kinds of RuntimeError apart."""
    return lambda _, text: any(part in text for part in parts)


#: In this order: the first that fits counts.
KINDS: Final = (
    ErrorKind(_says("no space left on device", "os error 28", "disk quota exceeded"), _DISK),
    ErrorKind(
        lambda error, text: (
            isinstance(error, MemoryError)
            or _type("OutOfMemoryError")(error, text)
            or (isinstance(error, RuntimeError) and _says("can't allocate memory", "out of memory")(error, text))
            or _says("storage size calculation overflowed", "unable to allocate", "invalid buffer size")(error, text)
        ),
        _MEMORY,
    ),
    ErrorKind(_type("SafetensorError"), f"weights cannot be read or written: {_DAMAGED}"),
    ErrorKind(_says("lance error", "lanceerror"), _INDEX),
    ErrorKind(_from("lance", "lancedb", "pyarrow"), _INDEX),
    # of the Rust libraries, LanceDB and safetensors; in a task of LanceDB it becomes a RuntimeError
    ErrorKind(
        lambda error, text: (
            _type("PanicException", "RustPanic")(error, text)
            or (isinstance(error, RuntimeError) and _says("panicked with message")(error, text))
        ),
        _INDEX,
    ),
    ErrorKind(_from("pymilvus", "milvus_lite", "grpc"), "the Milvus server refused; check its address and its log"),
    ErrorKind(
        _says("could not determine home directory", "can't determine home directory"),
        "set HOME, or DIML_CACHE to the folder for fetched and cached files",
    ),
    ErrorKind(_type("RecursionError"), "nested too deeply; simplify the condition or the file"),
    ErrorKind(
        lambda error, text: isinstance(error, RuntimeError) and _says("dataloader worker")(error, text),
        "a loader process ended early, mostly for lack of memory; lower --workers or --batch-size, or use --workers 0",
    ),
    ErrorKind(
        lambda error, text: (
            isinstance(error, RuntimeError)
            and _says("cuda error", "nvidia driver", "cudnn", "hip error", "mps backend")(error, text)
        ),
        "the accelerator failed; see `diml doctor`, or use --device cpu",
    ),
    ErrorKind(_from("yaml"), "not readable as YAML; correct the file"),
    ErrorKind(_type("DistError", "ProcessExitedException", "ProcessRaisedException"), "another process has ended"),
    ErrorKind(
        lambda error, text: (
            isinstance(error, OverflowError) or (isinstance(error, RuntimeError) and _says("overflow")(error, text))
        ),
        "a number is beyond the range of its type; give a smaller one",
    ),
    ErrorKind(_type("EOFError", "UnpicklingError"), _DAMAGED),
    ErrorKind(_from("zlib", "lzma", "struct", "zipfile"), _DAMAGED),
    ErrorKind(_type("SubprocessError"), "a program that was called has failed; see `diml doctor`"),
)


def explained(error: BaseException) -> str | None:
    """The line for an error that is not a bug of ours: what went wrong and what to do; None for a bug."""
    if isinstance(error, ImportError):
        missing = missing_extra(error)
        return None if missing is None else one_line(str(missing))
    text = _own_text(error)
    if isinstance(error, OSError) and error.errno is not None:
        return one_line(_of_system(error, text))
    kind = None if _is_ours(error) else next((kind for kind in KINDS if kind.fits(error, text.lower())), None)
    if kind is not None:
        return one_line(f"{kind.remedy} ({type(error).__name__}: {text})")
    return one_line(text or type(error).__name__) if isinstance(error, ValueError | OSError) else None


def as_options(line: str, options: Mapping[str, str]) -> str:
    """An error of the Python API in the words of the command line: `root: ...` -> `--data: ...`.

    Args:
        line: the error, which begins with the names of the arguments.
        options: the flags of the command by the name of their field.
    """
    names, colon, rest = line.partition(": ")
    flags = [options.get(name) or options.get(_OPTION_OF.get(name, "")) for name in names.split(", ")]
    return f"{', '.join(flag for flag in flags if flag)}{colon}{rest}" if all(flags) else line


def one_line(text: str) -> str:
    """A text as one line of bounded length that does nothing to a terminal: control characters are written out."""
    joined = " ".join(part for line in text.splitlines() if (part := line.strip()))
    if len(joined) > _LONGEST:
        joined = f"{joined[: _LONGEST // 2]} [...] {joined[-_LONGEST // 2 :]}"
    return "".join(sign if sign.isprintable() else _written_out(sign) for sign in joined)


def _written_out(sign: str) -> str:
    """A character that cannot be printed; a byte of a file name that is not UTF-8, which Python keeps in 0xDC80 to
    0xDCFF, as that byte."""
    return f"\\x{ord(sign) - 0xDC00:02x}" if 0xDC80 <= ord(sign) <= 0xDCFF else ascii(sign)[1:-1]


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, as Python prints it, without the last line end."""
    return "".join(traceback.format_exception(error)).rstrip("\n")


def bug_report(error: BaseException) -> str:
    """The line below the traceback of a bug of ours: where to report it."""
    name = one_line(f"{type(error).__name__}: {error}"[:_LONGEST])
    return (
        f"{name}: a bug of diml, not of your input; please report the lines above, the command and the output of "
        f"`diml doctor` {_tracker()}"
    )


def _is_ours(error: BaseException) -> bool:
    """Whether an error has our words already: a ValueError or OSError that code of ours raised."""
    if not isinstance(error, ValueError | OSError) or type(error).__module__.split(".")[0] not in ("builtins", "diml"):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "diml"


def _own_text(error: BaseException) -> str:
    """The text of an error, without the traceback that torch puts before that of a loader process."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback (most recent call last)" in text:
        last = text.strip().splitlines()[-1]
        return last.partition(": ")[2] or last
    return text


def _of_system(error: OSError, text: str) -> str:
    """The text of an OSError; that of the system with the file first and the remedy last."""
    if error.strerror is None:
        return text
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = f"{' -> '.join(named)}: {error.strerror}" if named else str(error.strerror)
    remedy = _SYSTEM.get(error.errno or 0)
    return what if remedy is None else f"{what}; {remedy}"


def _tracker() -> str:
    """Where bugs are reported: the address that the installed package states, else its repository in words."""
    try:
        addresses = importlib.metadata.metadata("diml").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        addresses = []
    named = dict(address.split(", ", 1) for address in addresses if ", " in address)
    place = next((named[name] for name in ("Issues", "Bug Tracker", "Tracker", "Repository") if name in named), None)
    return f"at {place}" if place else "as an issue of the repository that you have diml from."
