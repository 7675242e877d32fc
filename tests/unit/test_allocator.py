"""The setting of the C library, tested in a separate process, as it cannot be reverted."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from diml.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory() is True
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 128 * 2**20
for turn in range(4):
    block = libc.malloc(size)
    ctypes.memset(block, turn, size)
    libc.free(block)
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(memory: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, memory], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    assert faults("kept") < faults("default") / 10
