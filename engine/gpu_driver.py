"""Which NVIDIA GPUs are there? Asked of the driver itself, which needs no package."""

from __future__ import annotations

import ctypes
from functools import cache

from fgnet.engine.cuda_memory import architecture_of

_LIBRARY = "libcuda.so.1"

_COMPUTE_CAPABILITY = (75, 76)
"""The driver's CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def gpu_present() -> bool:
    """Whether the NVIDIA driver is there and finds a GPU."""
    return gpu_count() > 0


@cache
def gpu_count() -> int:
    """How many GPUs the NVIDIA driver finds."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@cache
def gpu_architecture() -> str | None:
    """Of the GPU that programs run on by default, such as "sm90"; None where there is none."""
    if not gpu_present():
        return None
    driver, device, values = ctypes.CDLL(_LIBRARY), ctypes.c_int(0), (ctypes.c_int(0), ctypes.c_int(0))
    asked = [driver.cuDeviceGet(ctypes.byref(device), 0)]
    asked += [
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        for value, attribute in zip(values, _COMPUTE_CAPABILITY, strict=True)
    ]
    return None if any(asked) else architecture_of((values[0].value, values[1].value))
