"""Programs that tests need beside Python: installed where this is root's Debian, else the tests skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def require_program(program: Path, package: str) -> Path:
    """Return the path of a program, after `apt-get install PACKAGE` where it is missing; or skip the test."""
    if program.exists():
        return program
    debian = Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None
    if not debian or sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip(f"no {program}, and tests install it only as root on Debian: apt-get install {package}")
    trouble = ""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        command = ["apt-get", "-o", "DPkg::Lock::Timeout=600", *words]  # another process may be installing it
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)
            trouble = done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            trouble = "it took more than 15 minutes"
    if not program.exists():
        pytest.skip(f"apt-get could not install {package}: {trouble}")
    return program
