"""What does the NVIDIA driver say of its GPUs? Asked of its management library itself, which needs no package."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_LIBRARY, _CUDA = "libnvidia-ml.so.1", "libcuda.so.1"
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
    """The GPUs that the driver finds, that on which programs run by default first; none where there is no driver."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    with _started(library) as running:
        if not running:
            return ()
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        found = (_handle(library, index) for index in range(count.value))
        devices = [device for device in found if device is not None]
        first = _default(library)
        devices.sort(key=lambda device: first is not None and device.value != first.value)
        return tuple(_describe(library, device) for device in devices)


def used_joules() -> float | None:
    """Energy that the GPU on which programs run by default has used since its driver was loaded.

    None where there is no driver or no GPU, or one that does not count its energy, as those before Volta do not.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    with _started(library) as running:
        millijoules = ctypes.c_ulonglong(0)
        if not running or (device := _default(library)) is None:
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


def _default(library: Any) -> ctypes.c_void_p | None:
    """The GPU on which programs run by default; None where there is none.

    CUDA counts GPUs in another order than the management library, and only those that CUDA_VISIBLE_DEVICES names: the
    identity tells which one it is.
    """
    identity, number, device = (ctypes.c_ubyte * 16)(), ctypes.c_int(0), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL(_CUDA)
        known = (
            driver.cuInit(0) == 0
            and driver.cuDeviceGet(ctypes.byref(number), 0) == 0
            and driver.cuDeviceGetUuid_v2(ctypes.byref(identity), number) == 0
        )
    except (OSError, AttributeError):
        known = False
    name = f"GPU-{uuid.UUID(bytes=bytes(identity))}".encode()
    if known and library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(device)) == 0:
        return device
    return _handle(library, 0)


def _handle(library: Any, index: int) -> ctypes.c_void_p | None:
    device = ctypes.c_void_p()
    return device if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0 else None


def _describe(library: Any, device: ctypes.c_void_p) -> Gpu:
    """One GPU; a question that the driver does not answer leaves an empty name or zeros."""
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
