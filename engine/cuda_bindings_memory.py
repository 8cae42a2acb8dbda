"""CUDA through NVIDIA's own package, cuda-bindings: the runtime API, and the driver's for kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.cuda_compiler import compile_kernels
from fgnet.engine.cuda_memory import NO_GPU, Argument, not_enough, packed
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple


class BindingsCuda:
    """The first device that CUDA_VISIBLE_DEVICES leaves, with its primary context, which TensorRT uses as well.

    Raises:
        BackendError: there is no driver or GPU.
    """

    name = "cuda-bindings"

    def __init__(self) -> None:
        runtime: Any = import_module("cuda.bindings.runtime")
        self._runtime = runtime
        self._driver: Any = import_module("cuda.bindings.driver")
        self._addresses: set[int] = set()
        self._pinned: list[int] = []
        self._streams: list[int] = []
        self._events: set[int] = set()
        self._modules: list[Any] = []
        try:
            count = self._call("cudaGetDeviceCount")
        except (BackendError, RuntimeError) as error:  # RuntimeError: the driver's library is not there at all
            raise BackendError(f"no NVIDIA GPU can be used ({error})", where="CUDA", remedy=NO_GPU) from error
        if not count:
            raise BackendError("the driver finds no NVIDIA GPU", where="CUDA", remedy=NO_GPU)
        with self.current():
            name = self._call("cudaGetDeviceProperties", 0).name
            self.device: str = name.decode() if isinstance(name, bytes) else str(name)
            attributes = runtime.cudaDeviceAttr
            self.capability: tuple[int, int] = (
                int(self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)),
                int(self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)),
            )

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread."""
        self._call("cudaSetDevice", 0)
        yield

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        """Take device memory; cudaMalloc aligns to 256 bytes."""
        address = int(self._call("cudaMalloc", size, wanted=size))
        self._addresses.add(address)
        return address

    def release(self, address: int) -> None:
        """Give back device memory."""
        self._addresses.remove(address)
        self._call("cudaFree", address)

    def pinned(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """A uint8 array in pinned host memory."""
        size = int(np.prod(shape))
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault, wanted=size))
        self._pinned.append(address)
        memory = memoryview((ctypes.c_uint8 * size).from_address(address))
        return np.frombuffer(memory, np.uint8).reshape(shape)

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        stream = int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))
        self._streams.append(stream)
        return stream

    def upload(self, target: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        """Queue a copy to the device."""
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, target: npt.NDArray[np.uint8], source: int, stream: int) -> None:
        """Queue a copy to the host."""
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost", stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy within the device."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice", stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """Queue the setting of device memory to 0."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def synchronise(self, stream: int) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", stream)

    def event(self, *, timing: bool = False) -> int:
        """An event. Who waits for it sleeps: the cores are needed to read and write."""
        flags = self._runtime.cudaEventBlockingSync | (0 if timing else self._runtime.cudaEventDisableTiming)
        event = int(self._call("cudaEventCreateWithFlags", flags))
        self._events.add(event)
        return event

    def record_event(self, event: int, stream: int) -> None:
        """Let the event happen once the stream is there."""
        self._call("cudaEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Let the stream wait for the event."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronise_event(self, event: int) -> None:
        """Wait for the event."""
        self._call("cudaEventSynchronize", event)

    def elapsed(self, first: int, second: int) -> float | None:
        """Milliseconds between two events."""
        status, milliseconds = self._runtime.cudaEventElapsedTime(first, second)
        if status == self._runtime.cudaError_t.cudaErrorNotReady:
            self._runtime.cudaGetLastError()  # which this sets, though nothing failed
            return None
        self._require("cudaEventElapsedTime", status)
        return float(milliseconds)

    def release_event(self, event: int) -> None:
        """Give back an event."""
        self._events.remove(event)
        self._call("cudaEventDestroy", event)

    def kernels(self, source: str, names: Sequence[str]) -> list[Any]:
        """Compile with NVRTC."""
        module = self._drive("cuModuleLoadData", compile_kernels(source, self.capability))
        self._modules.append(module)
        return [self._drive("cuModuleGetFunction", module, name.encode()) for name in names]

    def launch(self, kernel: Any, grid: Triple, block: Triple, arguments: Sequence[Argument], stream: int) -> None:
        """Queue a kernel."""
        pointers = packed(arguments)
        self._drive("cuLaunchKernel", kernel, *grid, *block, 0, stream, ctypes.addressof(pointers), 0)

    def begin_capture(self, stream: int) -> None:
        """Start to record; what other threads do meanwhile is not our concern."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """End the recording, and make it ready to run."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def replay(self, graph: Any, stream: int) -> None:
        """Queue what was recorded."""
        self._call("cudaGraphLaunch", graph, stream)

    def release_graph(self, graph: Any) -> None:
        """Give back a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back device memory, pinned memory, kernels, events and streams."""
        with self.current():
            for address in sorted(self._addresses):
                self.release(address)
            while self._pinned:
                self._call("cudaFreeHost", self._pinned.pop())
            while self._modules:
                self._drive("cuModuleUnload", self._modules.pop())
            for event in sorted(self._events):
                self.release_event(event)
            while self._streams:
                self._call("cudaStreamDestroy", self._streams.pop())

    def _copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, size, getattr(self._runtime.cudaMemcpyKind, kind), stream)

    def _call(self, function: str, *arguments: Any, wanted: int = 0) -> Any:
        """Call the runtime: every function of it returns its status first."""
        status, *results = getattr(self._runtime, function)(*arguments)
        self._require(function, status, wanted)
        return results[0] if len(results) == 1 else tuple(results)

    def _require(self, function: str, status: Any, wanted: int = 0) -> None:
        errors = self._runtime.cudaError_t
        if status == errors.cudaErrorMemoryAllocation:
            # The status stays set otherwise, and the next call of a library that looks at it would fail.
            self._runtime.cudaGetLastError()
            raise not_enough(wanted, self.free_bytes() if wanted else 0)
        if status != errors.cudaSuccess:
            self._runtime.cudaGetLastError()
            text = self._runtime.cudaGetErrorString(status)[1]
            raise BackendError(f"{function} failed ({text.decode()})", where="CUDA")

    def _drive(self, function: str, *arguments: Any) -> Any:
        """Call the driver, likewise."""
        status, *results = getattr(self._driver, function)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            text = self._driver.cuGetErrorString(status)[1]
            raise BackendError(f"{function} failed ({text.decode() if text else status})", where="CUDA")
        return results[0] if results else None
