"""The command line as a process: it ends with the code of the command, and without looking for cycles."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
atexit.register(lambda: print("collecting", gc.isenabled(), "frozen", gc.get_freeze_count() > 0))
from diml.cli import process
process()
"""


@pytest.mark.parametrize(
    ("words", "code"), [(["--version"], 0), ([], 2), (["serch"], 2), (["presets", "--nothing"], 2)]
)
def test_a_process_ends_with_the_code_and_frees_nothing(words, code):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("collecting False frozen True\n")


def test_python_m_diml_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "diml", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("diml ")
