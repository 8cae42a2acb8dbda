"""What does the NVIDIA driver say of its GPUs? Asked of its management library itself, which needs no package."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_TEXT = 96


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver prints it.
        architecture: compute capability, such as "sm89".
        memory_bytes: all of its memory.
        used_bytes: what any program holds of it.
        driver: version of the driver.
    """

    name: str
    architecture: str
    memory_bytes: int
    used_bytes: int
    driver: str


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that the driver finds; none where there is no driver."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    with _started(library) as running:
        if not running:
            return ()
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return tuple(_describe(library, index) for index in range(count.value))


def used_joules() -> float | None:
    """Energy that the first GPU, on which programs run by default, has used since its driver was loaded.

    None where there is no driver or no GPU, or one that does not count its energy, as those before Volta do not.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    with _started(library) as running:
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong(0)
        if not running or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
            return None
        if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1000


@contextmanager
def _started(library: Any) -> Iterator[bool]:
    running = library.nvmlInit_v2() == 0
    try:
        yield running
    finally:
        if running:
            library.nvmlShutdown()


def _describe(library: Any, index: int) -> Gpu:
    """One GPU; a question that the driver does not answer leaves an empty name or zeros."""
    device = ctypes.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
    name, driver = ctypes.create_string_buffer(_TEXT), ctypes.create_string_buffer(_TEXT)
    library.nvmlDeviceGetName(device, name, _TEXT)
    library.nvmlSystemGetDriverVersion(driver, _TEXT)
    memory = _Memory()
    library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(
        name.value.decode(errors="replace"),
        f"sm{major.value}{minor.value}",
        int(memory.total),
        int(memory.used),
        driver.value.decode(errors="replace"),
    )
