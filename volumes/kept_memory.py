"""How does a process keep the memory that it frees, for what it asks for next?

Networks on a CPU and decoders ask the C library anew for the memory of every large array. glibc takes that from the
kernel and gives it back, so that each step waits for the same pages to be filled with zeros again: of eager PyTorch
that is half of the time and more, of the blockwise decoder up to a tenth.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h: what its allocator is told by.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8

# With one heap for all threads, one uses what another has freed.
_KEEP = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20}

# Much as glibc does by itself once arrays of 32 MiB have come and gone; but there stays one heap for all threads.
_GIVE_BACK = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}


def keep_memory() -> bool:
    """Tell the C library to serve all arrays from one heap that only grows; whether it does: others than glibc do not.

    Heaps that other threads already have are used on; so this belongs to the beginning of a process.
    """
    return _tell(_KEEP)


def give_memory_back() -> bool:
    """Give free memory back to the system, now and from now on; whether the C library does.

    This is for what needs much memory and frees little, such as waterz, and before other processes go on.
    """
    if not _tell(_GIVE_BACK):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def _tell(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in options.items())
