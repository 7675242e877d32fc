"""Ask the C library to keep freed memory: tensors come and go, and fresh pages cost more than the arithmetic."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

#: Names of glibc's mallopt(3): return memory to the system only above this much; never serve requests by mmap.
_TRIM_THRESHOLD: Final = (-1, 2**31 - 1)
_MMAP_MAX: Final = (-4, 0)


def keep_freed_memory() -> bool:
    """Set glibc's malloc to reuse large blocks instead of returning them. It changes the whole process, so ask for it.

    By default every large tensor is fresh memory whose pages the kernel has to clear: more than half of the time of
    embedding on a CPU (`docs/results.md`). The price: the process keeps its peak until it ends. Our commands do it.

    Returns:
        Whether it was done: False on systems without glibc, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in (_TRIM_THRESHOLD, _MMAP_MAX))
