"""Commands and scripts in processes of their own, as users run them, but for importing torch and timm, which takes four
seconds each time: a server imports them once, and every process is a fork of it.

What depends on a fresh import (the clean environment, signals while importing, the lazy imports) starts Python itself.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

#: LanceDB starts a thread when it is imported, which a fork would lose.
_PRELOADED = ("torch", "warm_processes_timm", "PIL.Image", "tyro", "diml.cli.errors", "diml.matching", "diml.data")
_MOST_SECONDS = 600


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):  # it does not get sys.path in time
        forkserver.ensure_running()
    return context


def run_command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `diml` with these words in a folder."""
    return _run(["diml", *words], folder)


def run_script(script: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a Python file with these words."""
    return _run([str(script), *words], Path.cwd())


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("out", "err")]
        process = _server().Process(target=_become, args=(words, folder, dict(os.environ), *files))
        process.start()
        process.join(_MOST_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, _MOST_SECONDS)
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text("utf-8") for file in files))


def _become(words: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    """Be a process that was started with these words."""
    for stream, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    if words[0] == "diml":
        from diml.cli import process

        process()
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
