"""Run a static Linux program for x86-64 in an emulated processor: a Xeon of 2023, with AVX-512 VNNI and AVX-VNNI.

    python -m pip install --no-deps bochscpu-python==0.3.1
    python tests/native/emulated_cpu.py PROGRAM

The processor is that of Bochs (LGPL), a tool of these tests that diml itself does not need. Python is called for system
calls only: the program can print, allocate memory and end. All others do not exist, which the C library copes with.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
import sys
from pathlib import Path
from typing import NoReturn

import bochscpu.cpu
import bochscpu.memory

XEON = 28  # the place of sapphire_rapids among the processors that this version of Bochs knows
MEMORY = 128 << 20  # virtual and physical addresses are the same
PAGE_TABLES = 0x1000, 0x2000, 0x3000
KERNEL = 0x4000  # where a system call jumps to
STACK = MEMORY - 0x1000  # grows down
WRITE, MPROTECT, BRK, ARCH_PRCTL, EXIT_GROUP = 1, 10, 12, 158, 231
SET_FS, NOT_KNOWN = 0x1002, -38  # the code of ARCH_SET_FS, -ENOSYS


def end(status: int, message: str = "") -> NoReturn:
    print(message, end="", file=sys.stderr, flush=True)
    os._exit(status)  # the package does not survive an orderly end


def choose_processor() -> None:
    """The package always takes one without VNNI, unless its library is asked for another before it makes one."""
    library = ctypes.CDLL(bochscpu._bochscpu.__file__)
    library.sim_get_param_enum.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.sim_get_param_enum(b"cpu.model"))
    library._ZN14bx_param_num_c9set_rangeEmm(model, ctypes.c_uint64(0), ctypes.c_uint64(XEON))
    library._ZN14bx_param_num_c3setEl(model, ctypes.c_int64(XEON))


def prepared_memory() -> mmap.mmap:
    """Memory with page tables, the code of a system call and the stack of a program without arguments."""
    memory = mmap.mmap(-1, MEMORY)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in range(0, MEMORY, mmap.PAGESIZE):
        bochscpu.memory.page_insert(page, start + page)
    for table, entry in itertools.pairwise(PAGE_TABLES):
        struct.pack_into("<Q", memory, table, entry | 0b111)  # present, writable, for users
    for page in range(MEMORY >> 21):  # of 2 MB
        struct.pack_into("<Q", memory, PAGE_TABLES[-1] + 8 * page, page << 21 | 0b10000111)
    memory[KERNEL : KERNEL + 3] = bytes.fromhex("480f07")  # sysretq
    name, zeros, page_size, random, none = STACK + 0x100, STACK + 0x200, 6, 25, 0
    memory[name : name + 7] = b"program"
    struct.pack_into("<10Q", memory, STACK, 1, name, none, none, page_size, mmap.PAGESIZE, random, zeros, none, none)
    return memory


def load(program: bytes, memory: mmap.mmap) -> tuple[int, int]:
    """Copies the program to its addresses; where it starts, and the first address after it."""
    kind, _, _, start, headers = struct.unpack_from("<HHIQQ", program, 16)
    size, count = struct.unpack_from("<HH", program, 54)
    if program[:5] != b"\x7fELF\x02" or kind != 2:
        end(2, "PROGRAM: need a 64-bit program that was linked with -static -no-pie\n")
    last = 0
    for at in range(headers, headers + size * count, size):
        kind, _, offset, address, _, stored, used = struct.unpack_from("<IIQQQQQ", program, at)
        if kind == 1:
            memory[address : address + stored] = program[offset : offset + stored]
            last = max(last, address + used)
    return start, last


def segment(selector: int, attributes: int, base: int = 0) -> bochscpu.Segment:
    made = bochscpu.Segment()
    made.present, made.selector, made.base, made.limit, made.attr = True, selector, base, 0xFFFFFFFF, attributes
    return made


def user_state(start: int) -> bochscpu.State:
    """Registers of a program about to start, in 64-bit mode with AVX-512 turned on."""
    state = bochscpu.State()
    state.cr0, state.cr3, state.cr4 = 0x80010033, PAGE_TABLES[0], 0x40620  # paging; OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
    state.efer, state.xcr0 = 0xD01, 0xE7  # long mode, syscall; x87, SSE, AVX, AVX-512
    state.star, state.lstar = 0x23 << 48 | 0x10 << 32, KERNEL
    state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
    state.cs = segment(0x33, 0xA0FB)
    state.ss = state.ds = state.es = state.fs = state.gs = segment(0x2B, 0xC0F3)
    state.rip, state.rsp, state.rflags = start, STACK, 2
    return state


def run(program: bytes) -> None:
    choose_processor()
    session, hook, memory = bochscpu.Session(), bochscpu.Hook(), prepared_memory()
    start, allocated = load(program, memory)

    def answer(number: int, first: int, second: int, third: int) -> int:
        nonlocal allocated
        if number == WRITE:
            return os.write(first, memory[second : second + third])
        if number == BRK:
            allocated = max(allocated, first if first < STACK - (8 << 20) else 0)
            return allocated
        if number == ARCH_PRCTL and first == SET_FS:
            session.cpu.fs = segment(0, 0xC0F3, second)
            return 0
        if number == EXIT_GROUP:
            end(first)
        return 0 if number == MPROTECT else NOT_KNOWN

    def branch(_session, _id, _kind, _from_segment, _from, _to_segment, to):
        if to == KERNEL:
            cpu = session.cpu
            cpu.rax = answer(cpu.rax, cpu.rdi, cpu.rsi, cpu.rdx) % 2**64

    def fail(_session, _id, vector, _code):
        end(3, f"exception {vector} of the processor at {session.cpu.rip:#x}\n")

    hook.far_branch, hook.exception = branch, fail
    session.cpu.state = user_state(start)
    session.run([hook])


if __name__ == "__main__":
    run(Path(sys.argv[1]).read_bytes())
