"""Sources of the kernel: each header compiles alone; the portable kernel agrees with plain loops, also on arm64."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from diml.matching import native

ROOT = Path(__file__).resolve().parents[3]
KERNEL = ROOT / "csrc"
FLAGS = ("-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Werror")
#: Name -> compiler, what runs its programs.
MACHINES = {"this": (("c++",), ()), "arm64": (("aarch64-linux-gnu-g++", "-static"), ("qemu-aarch64-static",))}
#: Lanes -> flags, as CMakeLists.txt has them.
INSTRUCTION_SETS = {
    4: (),
    8: ("-mavx2", "-mfma", "-mf16c"),
    16: ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
}
#: Every header, and those of the instruction sets once for each.
HEADERS = [
    (path.name, lanes)
    for path in sorted(KERNEL.glob("*.hpp"))
    for lanes in (INSTRUCTION_SETS if "DIML_INSTRUCTION_SET" in path.read_text() else (4,))
]


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler found")
@pytest.mark.parametrize(("header", "lanes"), HEADERS)
def test_a_header_includes_what_it_uses(header, lanes):
    if lanes > 4 and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("AVX is of x86-64 only")
    source = f'#include "{header}"\n#include "{header}"\n'
    command = ["c++", *FLAGS, "-Wno-unused-function", f"-DDIML_LANES={lanes}", *INSTRUCTION_SETS[lanes]]
    command += ["-fsyntax-only", "-I", str(KERNEL), "-x", "c++", "-"]
    found = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_it_agrees_with_plain_loops(machine, tmp_path):
    compiler, runner = MACHINES[machine]
    missing = [tool for tool in (compiler[0], *runner[:1]) if not shutil.which(tool)]
    if missing:
        pytest.skip(
            f"{' and '.join(missing)} not found; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static"
        )
    program = tmp_path / "check"
    sources = (ROOT / "tests/native/check_kernel.cpp", KERNEL / "kernel_portable.cpp")
    subprocess.run([*compiler, *FLAGS, "-O2", "-I", KERNEL, *sources, "-o", program], check=True)
    found = subprocess.run([*runner, program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("largest error") == 4


@pytest.mark.parametrize("machine", MACHINES)
def test_its_exact_plans_are_optimal_and_have_few_entries(machine, tmp_path):
    compiler, runner = MACHINES[machine]
    if missing := [tool for tool in (compiler[0], *runner[:1]) if not shutil.which(tool)]:
        pytest.skip(f"{' and '.join(missing)} not found")
    program, source = tmp_path / "check", ROOT / "tests/native/check_exact.cpp"
    command = [*compiler, *FLAGS, "-Wno-unused-function", "-O2", "-I", KERNEL, source, "-o", program]
    subprocess.run(command, check=True)
    found = subprocess.run([*runner, program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("largest error") == 6


@pytest.mark.slow  # a minute: it compiles the kernel for every instruction set
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler found")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="VNNI is of x86-64 only")
def test_vnni_gives_the_same_numbers_where_it_is_found(tmp_path):
    objects = []
    sources = {"kernel_portable": (), "kernel_avx2": INSTRUCTION_SETS[8], "kernel_avx512": INSTRUCTION_SETS[16]}
    for name, flags in {**sources, "dispatch": (), "check_vnni": ()}.items():
        source = ROOT / "tests/native/check_vnni.cpp" if name == "check_vnni" else KERNEL / f"{name}.cpp"
        objects.append(tmp_path / f"{name}.o")
        command = ["c++", *FLAGS[:-1], "-O2", "-w", "-DDIML_VNNI", *flags, "-I", KERNEL, "-c", source]
        subprocess.run([*command, "-o", objects[-1]], check=True)
    program = tmp_path / "check"
    subprocess.run(["c++", "-static", *objects, "-o", program], check=True)
    found = subprocess.run([program], capture_output=True, text=True, check=False)
    known = [name for name in native.info()["usable"] if name.endswith("_vnni")]
    assert all(name in found.stdout for name in known)
    assert found.returncode == (0 if known else 1), found.stdout
    assert "DIFFERENT" not in found.stdout
