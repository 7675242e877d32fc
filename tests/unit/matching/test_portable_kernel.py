"""The portable kernel, compiled by itself and run: for this machine, and for arm64 where its compiler and QEMU are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KERNEL = ROOT / "csrc"
#: Name -> compiler, what runs its programs.
MACHINES = {"this": (("c++",), ()), "arm64": (("aarch64-linux-gnu-g++", "-static"), ("qemu-aarch64-static",))}


@pytest.mark.parametrize("machine", MACHINES)
def test_it_agrees_with_plain_loops(machine, tmp_path):
    compiler, runner = MACHINES[machine]
    missing = [tool for tool in (compiler[0], *runner[:1]) if not shutil.which(tool)]
    if missing:
        pytest.skip(
            f"{' and '.join(missing)} not found; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static"
        )
    program = tmp_path / "check"
    flags = ("-std=c++17", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Werror")
    sources = (ROOT / "tests/native/check_kernel.cpp", KERNEL / "kernel_portable.cpp")
    subprocess.run([*compiler, *flags, "-I", KERNEL, *sources, "-o", program], check=True)
    found = subprocess.run([*runner, program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("largest error") == 4
