"""Sources of the kernel: each header compiles alone; the portable kernel agrees with plain loops, also on arm64;
VNNI gives the numbers of the instructions that it replaces, also in an emulated processor."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
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


def vnni_check(folder, kernel=KERNEL):
    """tests/native/check_vnni.cpp with the kernel for every instruction set, as CMakeLists.txt compiles it."""
    if not shutil.which("g++"):
        pytest.skip("g++ not found; other compilers build the sets without VNNI")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("VNNI is of x86-64 only")
    flags = {"kernel_avx2": INSTRUCTION_SETS[8], "kernel_avx512": INSTRUCTION_SETS[16]}
    sources = [kernel / f"{name}.cpp" for name in ("kernel_portable", *flags, "dispatch")]
    for source in [*sources, ROOT / "tests/native/check_vnni.cpp"]:
        command = ["g++", *FLAGS[:-1], "-O3", "-w", "-DDIML_VNNI", *flags.get(source.stem, ()), "-I", kernel]
        subprocess.run([*command, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)
    subprocess.run(["g++", "-static", "-no-pie", *folder.glob("*.o"), "-o", folder / "check"], check=True)
    return folder / "check"


@pytest.fixture(scope="module")
def vnni_program(tmp_path_factory):
    return vnni_check(tmp_path_factory.mktemp("vnni"))


@pytest.mark.slow  # two minutes: it compiles the kernel for every instruction set
def test_vnni_gives_the_same_numbers_where_it_is_found(vnni_program):
    found = subprocess.run([vnni_program], capture_output=True, text=True, check=False)
    known = [name for name in native.info()["usable"] if name.endswith("_vnni")]
    assert all(name in found.stdout for name in known)
    assert found.returncode == (0 if known else 1), found.stdout
    assert "DIFFERENT" not in found.stdout


needs_the_emulator = pytest.mark.skipif(
    not importlib.util.find_spec("bochscpu"), reason="bochscpu-python 0.3.1 not found; `make test-vnni` installs it"
)


def in_an_emulated_processor(program):
    command = [sys.executable, ROOT / "tests/native/emulated_cpu.py", program]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    print(found.stdout)  # for `make test-vnni`
    assert "usable: avx512_vnni\nusable: avx512\nusable: avx2_vnni\nusable: avx2\n" in found.stdout, found.stderr
    return found


@pytest.mark.slow  # a minute in the emulator
@needs_the_emulator
def test_vnni_gives_the_same_numbers_in_an_emulated_processor(vnni_program):
    found = in_an_emulated_processor(vnni_program)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("the same") == 2
    assert found.stdout.count("and portable: largest difference") == 4


@pytest.mark.slow  # three minutes: it compiles the kernel again
@needs_the_emulator
def test_a_wrong_instruction_of_vnni_is_noticed(tmp_path):
    """So these instructions are what runs in the emulated processor, and their numbers are compared."""
    kernel = shutil.copytree(KERNEL, tmp_path / "csrc")
    right = (kernel / "gemm.hpp").read_text()
    assert right.count("vpdpwssd %2") == 2
    (kernel / "gemm.hpp").write_text(right.replace("vpdpwssd %2", "vpdpbusd %2"))  # products of 8 bits
    found = in_an_emulated_processor(vnni_check(tmp_path, kernel))
    assert found.returncode == 1, found.stderr
    assert found.stdout.count("DIFFERENT") == 2
