"""CUDA through pycuda (the driver API), and its graphs, which pycuda does not wrap, through the driver itself."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.cuda_memory import NO_GPU, not_enough
from fgnet.volumes.errors import BackendError

_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PyCuda:
    """The first device that CUDA_VISIBLE_DEVICES leaves, with its primary context, which TensorRT uses as well.

    Raises:
        BackendError: pycuda cannot be loaded, or there is no driver or GPU.
    """

    name = "pycuda"

    def __init__(self) -> None:
        try:
            driver: Any = import_module("pycuda.driver")
            self._library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
            driver.init()
            count = driver.Device.count()
        except Exception as error:  # ImportError, OSError, or an error of the driver, which has no base class of ours
            raise BackendError(f"no NVIDIA GPU can be used ({error})", where="CUDA", remedy=NO_GPU) from error
        if not count:
            raise BackendError("the driver finds no NVIDIA GPU", where="CUDA", remedy=NO_GPU)
        self._driver = driver
        device = driver.Device(0)
        self.device: str = str(device.name())
        major, minor = device.compute_capability()
        self.capability: tuple[int, int] = (int(major), int(minor))
        self._context = device.retain_primary_context()
        self._addresses: dict[int, Any] = {}
        self._pinned: list[Any] = []
        self._streams: dict[int, Any] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread, and nothing else after."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        return int(self._driver.mem_get_info()[0])

    def allocate(self, size: int) -> int:
        """Take device memory; cuMemAlloc aligns to 256 bytes."""
        try:
            allocation = self._driver.mem_alloc(size)
        except self._driver.MemoryError as error:
            raise not_enough(size, self.free_bytes()) from error
        self._addresses[int(allocation)] = allocation
        return int(allocation)

    def release(self, address: int) -> None:
        """Give back device memory."""
        self._addresses.pop(address).free()

    def pinned(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """A uint8 array in pinned host memory."""
        try:
            array: npt.NDArray[np.uint8] = self._driver.pagelocked_empty(shape, np.uint8)
        except self._driver.MemoryError as error:
            raise not_enough(int(np.prod(shape)), self.free_bytes()) from error
        self._pinned.append(array)
        return array

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        stream = self._driver.Stream(_STREAM_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def upload(self, target: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        """Queue a copy to the device."""
        self._driver.memcpy_htod_async(target, source, self._streams[stream])

    def download(self, target: npt.NDArray[np.uint8], source: int, stream: int) -> None:
        """Queue a copy to the host."""
        self._driver.memcpy_dtoh_async(target, source, self._streams[stream])

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy within the device."""
        self._driver.memcpy_dtod_async(target, source, size, self._streams[stream])

    def synchronise(self, stream: int) -> None:
        """Wait for the stream."""
        self._streams[stream].synchronize()

    def begin_capture(self, stream: int) -> None:
        """Start to record; what other threads do meanwhile is not our concern."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> Any:
        """End the recording, and make it ready to run."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return ready

    def replay(self, graph: Any, stream: int) -> None:
        """Queue what was recorded."""
        self._call("cuGraphLaunch", graph, ctypes.c_void_p(stream))

    def release_graph(self, graph: Any) -> None:
        """Give back a graph."""
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back device memory, pinned memory and streams, and the primary context."""
        with self.current():
            for address in sorted(self._addresses):
                self.release(address)
            for array in self._pinned:
                array.base.free()
            self._pinned.clear()
            self._streams.clear()
        # Its destructor releases the primary context; detach() would leave it current in this thread.
        del self._context

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise BackendError(f"{function} failed (CUDA error {status})", where="CUDA")
