"""CUDA through pycuda (the driver API).

What is queued goes through the driver itself: pycuda wraps no graphs, and its errors are none of ours.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.cuda_memory import NO_GPU, Argument, not_enough, packed
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_EVENT_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC
_EVENT_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_NOT_READY = 600  # CUDA_ERROR_NOT_READY


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
        self._thread = threading.get_ident()
        self._addresses: dict[int, Any] = {}
        self._pinned: list[Any] = []
        self._streams: list[Any] = []
        self._events: set[int] = set()
        self._modules: list[ctypes.c_void_p] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread, and nothing else after."""
        with self._translated():
            self._context.push()
        try:
            yield
        finally:
            with self._translated():
                self._context.pop()

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        with self._translated():
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
        self._pinned.append(array.base)
        return array

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        with self._translated():
            stream = self._driver.Stream(_STREAM_NON_BLOCKING)
        self._streams.append(stream)
        return int(stream.handle)

    def upload(self, target: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        """Queue a copy to the device."""
        self._copy("cuMemcpyHtoDAsync_v2", target, source.ctypes.data, source.nbytes, stream)

    def download(self, target: npt.NDArray[np.uint8], source: int, stream: int) -> None:
        """Queue a copy to the host."""
        self._copy("cuMemcpyDtoHAsync_v2", target.ctypes.data, source, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy within the device."""
        self._copy("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """Queue the setting of device memory to 0."""
        self._call(
            "cuMemsetD8Async",
            ctypes.c_uint64(address),
            ctypes.c_ubyte(0),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def synchronise(self, stream: int) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def event(self, *, timing: bool = False) -> int:
        """An event. Who waits for it sleeps: the cores are needed to read and write."""
        event = ctypes.c_void_p()
        flags = _EVENT_BLOCKING_SYNC | (0 if timing else _EVENT_DISABLE_TIMING)
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(flags))
        self._events.add(event.value or 0)
        return event.value or 0

    def record_event(self, event: int, stream: int) -> None:
        """Let the event happen once the stream is there."""
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait_event(self, stream: int, event: int) -> None:
        """Let the stream wait for the event."""
        self._call("cuStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(event), ctypes.c_uint(0))

    def synchronise_event(self, event: int) -> None:
        """Wait for the event; ctypes lets the interpreter's lock go."""
        self._call("cuEventSynchronize", ctypes.c_void_p(event))

    def elapsed(self, first: int, second: int) -> float | None:
        """Milliseconds between two events."""
        milliseconds = ctypes.c_float()
        arguments = ctypes.byref(milliseconds), ctypes.c_void_p(first), ctypes.c_void_p(second)
        status = self._library.cuEventElapsedTime(*arguments)
        if status == _NOT_READY:
            return None
        self._require("cuEventElapsedTime", status)
        return milliseconds.value

    def release_event(self, event: int) -> None:
        """Give back an event."""
        self._events.remove(event)
        self._call("cuEventDestroy_v2", ctypes.c_void_p(event))

    def kernels(self, source: str, names: Sequence[str]) -> list[Any]:
        """Compile with nvcc, which pycuda was built with, and which has to be on the path."""
        compiler: Any = import_module("pycuda.compiler")
        architecture = "sm_{}{}".format(*self.capability)
        try:
            cubin: bytes = compiler.compile(source, no_extern_c=True, options=["--fmad=false"], arch=architecture)
        except (OSError, self._driver.CompileError) as error:
            raise BackendError(
                f"nvcc does not compile the kernels ({error})",
                where="CUDA",
                remedy="put the CUDA toolkit's nvcc on the path, or uninstall pycuda to use cuda-bindings",
            ) from error
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), cubin)
        self._modules.append(module)
        return [self._function(module, name) for name in names]

    def launch(self, kernel: Any, grid: Triple, block: Triple, arguments: Sequence[Argument], stream: int) -> None:
        """Queue a kernel."""
        sizes = (ctypes.c_uint(size) for size in (*grid, *block, 0))
        self._call("cuLaunchKernel", kernel, *sizes, ctypes.c_void_p(stream), packed(arguments), None)

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
        """Give back device memory, pinned memory, kernels, events and streams, and the primary context."""
        with self.current(), self._translated():
            for address in sorted(self._addresses):
                self.release(address)
            while self._pinned:
                self._pinned.pop().free()
            while self._modules:
                self._call("cuModuleUnload", self._modules.pop())
            for event in sorted(self._events):
                self.release_event(event)
            self._streams.clear()
        # Left to its destructor, pycuda would detach the primary context as if it were an ordinary one, and not release
        # it. detach() makes it current for that, in the thread that retained it only, and leaves it so.
        with self._translated():
            self._context.detach()
        if threading.get_ident() == self._thread:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns pycuda's errors into ours."""
        try:
            yield
        except self._driver.Error as error:
            raise BackendError(f"the GPU fails ({error})", where="CUDA") from error

    def _copy(self, function: str, target: int, source: int, size: int, stream: int) -> None:
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self._call(function, *addresses, ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def _function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def _call(self, function: str, *arguments: Any) -> None:
        self._require(function, getattr(self._library, function)(*arguments))

    def _require(self, function: str, status: int) -> None:
        if status:
            raise BackendError(f"{function} failed (CUDA error {status})", where="CUDA")
