"""Commands let the threads of PyTorch wait without spinning, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diml.cli import main


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning(monkeypatch, capsys, given, used):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["presets"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == used
    capsys.readouterr()


def test_it_is_said_before_pytorch_is_loaded():
    code = (
        "import sys, os, diml.cli as cli\n"
        "def first(name):\n    print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']); sys.exit(0)\n"
        "cli.importlib.import_module = first; cli.main(['presets'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "PASSIVE"]
