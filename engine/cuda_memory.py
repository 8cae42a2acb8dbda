"""The few CUDA calls that inference needs, on pycuda or on NVIDIA's cuda-bindings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

NO_GPU = "it needs an NVIDIA GPU and its driver; use --backend onnxruntime where there is none"


class DeviceMemoryError(BackendError):
    """The device has too little free memory."""


class Cuda(Protocol):
    """The current device's memory, streams and graphs. Addresses and streams are plain integers.

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

    def synchronise(self, stream: int) -> None:
        """Wait for everything queued so far."""
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


def not_enough(size: int, free: int) -> DeviceMemoryError:
    """The error for an allocation that does not fit."""
    return DeviceMemoryError(
        f"the GPU has {free / 2**20:,.0f} MiB free, {size / 2**20:,.0f} MiB more are needed",
        where="GPU memory",
        remedy="close other programs on the GPU, or export the model with a smaller patch",
    )
