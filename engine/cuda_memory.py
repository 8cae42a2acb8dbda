"""The few CUDA calls that inference needs, on pycuda or on NVIDIA's cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

Argument: TypeAlias = ctypes.c_float | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_uint64
"""Of a kernel, by value; addresses are c_uint64."""

NO_GPU = "it needs an NVIDIA GPU and its driver, as new as its packages; use --backend onnxruntime where there is none"


class DeviceMemoryError(BackendError):
    """The device has too little free memory."""


class Cuda(Protocol):
    """The current device's memory, streams, events, kernels and graphs.

    Addresses, streams and events are plain integers. What the device does later may fail later: then a later call
    raises the BackendError.

    Attributes:
        name: of the Python package that makes the calls.
        device: the GPU's name.
        capability: its compute capability, such as (8, 9).
    """

    name: str
    device: str
    capability: tuple[int, int]

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in this thread; every other call has to stand within."""
        ...

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        ...

    def allocate(self, size: int) -> int:
        """Take `size` bytes of device memory, aligned to 256 bytes.

        Raises:
            DeviceMemoryError: there are not that many.
        """
        ...

    def release(self, address: int) -> None:
        """Give back what `allocate` took."""
        ...

    def pinned(self, shape: tuple[int, ...] | Triple) -> npt.NDArray[np.uint8]:
        """A uint8 array in host memory that the device copies from and to without staging; held until `close`.

        Raises:
            DeviceMemoryError: the host has too little memory that can be pinned.
        """
        ...

    def stream(self) -> int:
        """A stream that does not wait for the default stream; held until `close`."""
        ...

    def upload(self, target: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        """Queue a copy of a pinned array to device memory."""
        ...

    def download(self, target: npt.NDArray[np.uint8], source: int, stream: int) -> None:
        """Queue a copy of device memory to a pinned array."""
        ...

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes within device memory; the two must not overlap."""
        ...

    def clear(self, address: int, size: int, stream: int) -> None:
        """Queue the setting of `size` bytes of device memory to 0."""
        ...

    def synchronise(self, stream: int) -> None:
        """Wait for everything queued so far."""
        ...

    def event(self, *, timing: bool = False) -> int:
        """An event, which counts as happened until it is recorded; held until `close` or `release_event`.

        Args:
            timing: it can be given to `elapsed`, and costs a little more.
        """
        ...

    def record_event(self, event: int, stream: int) -> None:
        """Let the event happen once all that is queued on the stream until now is done."""
        ...

    def wait_event(self, stream: int, event: int) -> None:
        """Let what is queued on the stream from now on wait for the event as it was last recorded."""
        ...

    def synchronise_event(self, event: int) -> None:
        """Wait, without the interpreter's lock, for the event as it was last recorded."""
        ...

    def elapsed(self, first: int, second: int) -> float | None:
        """Milliseconds between two timing events that were recorded; None while one of them has not happened."""
        ...

    def release_event(self, event: int) -> None:
        """Give back an event."""
        ...

    def kernels(self, source: str, names: Sequence[str]) -> list[Any]:
        """Compile CUDA C for this device; held until `close`.

        Args:
            source: without headers, its kernels `extern "C"`.
            names: of the kernels wanted.

        Returns:
            The kernels in this order, for `launch`.

        Raises:
            BackendError: the compiler is missing or refuses the source.
        """
        ...

    def launch(self, kernel: Any, grid: Triple, block: Triple, arguments: Sequence[Argument], stream: int) -> None:
        """Queue a kernel.

        Args:
            kernel: from `kernels`.
            grid: blocks along x, y and z.
            block: threads of a block along x, y and z.
            arguments: of the types that the kernel declares.
            stream: to queue it on.
        """
        ...

    def begin_capture(self, stream: int) -> None:
        """Record what is queued from here on instead of running it."""
        ...

    def end_capture(self, stream: int) -> Any:
        """End the recording.

        Returns:
            A graph for `replay` and `release_graph`.

        Raises:
            BackendError: something was queued that cannot be recorded. The stream is usable again.
        """
        ...

    def replay(self, graph: Any, stream: int) -> None:
        """Queue what was recorded."""
        ...

    def release_graph(self, graph: Any) -> None:
        """Give back a graph."""
        ...

    def close(self) -> None:
        """Give back all that is still held."""
        ...


def open_cuda() -> Cuda:
    """The first CUDA device, on pycuda where it is installed, for then the user chose it, else on cuda-bindings.

    Raises:
        BackendError: neither package is installed, or there is no driver or GPU.
    """
    if find_spec("pycuda") is not None:
        from fgnet.engine.pycuda_memory import PyCuda

        return PyCuda()
    if find_spec("cuda") is not None and find_spec("cuda.bindings") is not None:
        from fgnet.engine.cuda_bindings_memory import BindingsCuda

        return BindingsCuda()
    raise BackendError("neither pycuda nor cuda-bindings is installed", where="CUDA", remedy="pip install 'fgnet[gpu]'")


def architecture_of(capability: tuple[int, int]) -> str:
    """(8, 9) -> "sm89"."""
    return "sm{}{}".format(*capability)


def packed(arguments: Sequence[Argument]) -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to a kernel's arguments, as the driver's launch reads them; valid as long as the arguments are."""
    return (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))


def not_enough(size: int, free: int) -> DeviceMemoryError:
    """The error for an allocation that does not fit."""
    return DeviceMemoryError(
        f"the GPU has {free / 2**20:,.0f} MiB free, {size / 2**20:,.0f} MiB more are needed",
        where="GPU memory",
        remedy="close other programs on the GPU, or export the model with a smaller patch",
    )
