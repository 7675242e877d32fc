"""Make the C library keep freed memory: clearing the pages of short-lived tensors can cost more than the arithmetic."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

#: Parameters of glibc's mallopt(3): the free memory above which it is returned to the system; requests served by mmap.
_TRIM_THRESHOLD: Final = (-1, 2**31 - 1)
_MMAP_MAX: Final = (-4, 0)


def keep_freed_memory() -> bool:
    """Let glibc's malloc reuse large blocks instead of returning them to the system; affects the whole process.

    By default every large tensor is new memory whose pages the kernel has to clear, which takes more than half of the
    time of embedding on a CPU (`docs/results.md`). In return the process holds its peak memory until it exits. The
    `diml` commands call it; the library does not, as the setting belongs to the application.

    Returns:
        Whether the setting was applied; False on systems without glibc.

    Example:
        >>> keep_freed_memory()  # doctest: +SKIP
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in (_TRIM_THRESHOLD, _MMAP_MAX))


def return_freed_memory() -> bool:
    """Return free memory to the system now, of all threads; for what was unusually large, such as a huge image.

    Returns:
        Whether there was any to return; False on systems without glibc.

    Example:
        >>> return_freed_memory()  # doctest: +SKIP
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and malloc_trim(0) == 1
