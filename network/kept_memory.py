"""How does PyTorch on a CPU run where the C library keeps the memory that was freed?

PyTorch asks the C library anew for the memory of every tensor. glibc takes that of large ones from the kernel and gives
it back, so that each step of a network waits for the same pages to be filled with zeros again.
"""

from __future__ import annotations

import ctypes

from fgnet.volumes.errors import BackendError

# Of glibc's malloc.h: what its allocator is told by, and values that make it keep what was freed.
_KEEP = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 << 20)}


def keep_memory() -> None:
    """Tell the C library to serve large arrays from a heap that only grows; this cannot be undone in a process.

    Raises:
        BackendError: it is not glibc, or refuses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all(mallopt(option, value) for option, value in _KEEP.values()):
        raise BackendError("this system's C library cannot be told to keep memory", where="mallopt")
