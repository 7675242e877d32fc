"""What goes wrong is one line with the remedy; only a bug has a traceback, with where to report it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diml.cli import errors, main
from diml.cli.doctor import DoctorCommand


class PanicException(BaseException):
    pass


class OutOfMemoryError(RuntimeError):
    pass


def _raised(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _recursion():
    return _recursion()


FOREIGN = [
    (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a: No space left on device; the disk is full"),
    (OSError(errno.EACCES, "Permission denied", "a.json"), "a.json: Permission denied; no permission; change it"),
    (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system; it is on a disk that is only"),
    (OSError(errno.EMFILE, "Too many open files", "x"), "raise `ulimit -n`"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "the name is too long"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory"),
    (OSError("LanceError(IO): failed to read data/1.lance"), "the index is damaged or incomplete"),
    (RuntimeError('task 7 panicked with message "the offset + length of the sliced Buffer"'), "diml index verify"),
    (RuntimeError("lance error: Not found: /x/_versions/1.manifest"), "diml index verify"),
    (RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)"), "the disk is full"),
    (SafetensorError("Error while deserializing header: HeaderTooLarge"), "a file is damaged or incomplete"),
    (SafetensorError("Error while serializing: IoError(Os { message: No space left on device })"), "the disk is full"),
    (PanicException("called `Option::unwrap()` on a `None` value"), "the index is damaged"),
    (RuntimeError("Could not determine home directory."), "set HOME, or DIML_CACHE"),
    (MemoryError(), "too little memory; lower --batch-size"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "too little memory"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower --workers"),
    (RuntimeError("CUDA error: device-side assert triggered"), "use --device cpu"),
    (RuntimeError("value cannot be converted to type float without overflow"), "beyond the range of its type"),
    (OverflowError("int too large to convert to float"), "beyond the range of its type"),
    (EOFError("Ran out of input"), "a file is damaged or incomplete"),
    (zlib.error("Error -3 while decompressing data"), "a file is damaged or incomplete"),
]


@pytest.mark.parametrize(("error", "line"), FOREIGN, ids=lambda value: str(value)[:40])
def test_errors_of_other_libraries_are_one_line_with_the_remedy(error, line, monkeypatch, capsys):
    def run(_self):
        raise error

    monkeypatch.setattr(DoctorCommand, "run", run)
    assert main(["doctor"]) == errors.ERROR
    told = capsys.readouterr().err
    assert line in told
    assert told.startswith("diml doctor: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (lambda: _recursion(), "nested too deeply"),
        (lambda: torch.empty(2**50), "too little memory"),
        (lambda: np.empty(2**50), "too little memory"),
        (lambda: torch.empty(2**62), "too little memory"),
        (lambda: Path("~nobody-of-this-name").expanduser(), "set HOME"),
    ],
)
def test_real_errors_of_other_libraries_are_recognized(cause, line):
    assert line in (errors.explained(_raised(cause)) or "a bug")


def test_damaged_weights_are_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    told = errors.explained(_raised(lambda: load_file(tmp_path / "a.safetensors")))
    assert told is not None
    assert "a file is damaged" in told


@pytest.mark.parametrize("bug", [KeyError("rows"), TypeError("x"), AssertionError(), RuntimeError("shape mismatch")])
def test_a_bug_has_its_traceback_and_says_where_to_report_it(bug, monkeypatch, capsys):
    def run(_self):
        raise bug

    monkeypatch.setattr(DoctorCommand, "run", run)
    assert main(["doctor"]) == errors.BUG
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert told.splitlines()[-1].startswith(f"diml doctor: {type(bug).__name__}")
    assert "a bug of diml, not of your input; please report" in told


def test_the_traceback_of_an_explained_error_can_be_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("DIML_TRACEBACK", "1")
    assert main(["explain", "no-such-a.jpg", "no-such-b.jpg"]) == errors.ERROR
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "a bug of" not in told


def test_an_error_of_ours_stays_as_it_was_written():
    def ours():
        from diml.matching import Matcher

        Matcher(epsilon=-1)

    told = errors.explained(_raised(ours))
    assert told == "epsilon: need a finite number of at least 0, got -1; 0 stands for exact plans"


def test_the_error_of_a_loader_process_is_told_without_its_traceback():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\n"
    assert errors.explained(ValueError(f"{text}ValueError: a.png: need images\n")) == "a.png: need images"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb", "a b"),
        ("a\x1b[31mred\x07", "a\\x1b[31mred\\x07"),
        ("a\r\n  b\u2028c", "a b c"),
        ("x\udcff", "x\\xff"),
        ("größe 漢字", "größe 漢字"),
    ],
)
def test_lines_do_nothing_to_a_terminal(text, line):
    assert errors.one_line(text) == line


def test_long_messages_are_cut():
    assert len(errors.one_line("x" * 10**7)) < 2100


def test_without_a_home_the_remedy_is_named(monkeypatch, capsys):
    for name in ("HOME", "DIML_CACHE", "XDG_CACHE_HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that the system does not know
    assert main(["doctor"]) == errors.ERROR
    assert "set HOME, or DIML_CACHE" in capsys.readouterr().err


def test_names_that_are_not_utf8_can_be_printed():
    code = "from diml.cli import _print_any_name; _print_any_name(); print('a\\udcff.png')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.stdout == b"a\\udcff.png\n"
