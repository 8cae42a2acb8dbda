"""What the streaming pipeline asks of the place where a network runs: memory, streams, events, blending.

There are two: `host_device` (plain memory; a stream is a thread) and `cuda_device` (one NVIDIA GPU). What is queued on
a stream runs in order; streams run beside each other, and wait for each other by events only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blend_weights import BlendWeights, WeightTotals
from fgnet.volumes.geometry import Box, Triple

Stage = Literal["read", "upload", "encode", "decode", "blend", "normalise", "download", "write"]
"""What a run's time is counted for, in the order of the data."""

STAGES: tuple[Stage, ...] = ("read", "upload", "encode", "decode", "blend", "normalise", "download", "write")


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of a device, contiguous.

    Attributes:
        address: of its first byte, in the device's address space.
        shape: of what lies in it.
        dtype: of its values.
        array: the same memory as an array, where the device is the host.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    array: npt.NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def host(self) -> npt.NDArray[Any]:
        """The array, of a buffer in host memory."""
        assert self.array is not None  # noqa: S101 - runners on the CPU are given buffers of the host
        return self.array


class Stream(Protocol):
    """Work in order."""


class Event(Protocol):
    """A place in a stream that others can wait for."""


class Blender(Protocol):
    """Blends patches into the accumulators of chunks, on the device."""

    def accumulate(self, sums: Buffer, box: Box, affinities: Buffer, start: Triple, stream: Stream) -> None:
        """Queue the addition of a patch, times its weights, to a chunk's sums.

        Args:
            sums: (3, z, y, x) float32 of the chunk, or more memory than that.
            box: the chunk's, in voxels of the volume.
            affinities: (3, z, y, x) uint8 of the patch.
            start: the patch's first voxel; the part of it that lies outside the box is left out.
            stream: of the device.
        """
        ...

    def normalise(self, sums: Buffer, box: Box, target: Buffer, stream: Stream) -> None:
        """Queue the division by the weights, rounding to (3, z, y, x) uint8 in `target`; sums become 0 again."""
        ...


class Device(Protocol):
    """Where a runner runs.

    Attributes:
        kind: `host` or `cuda`.
        name: for people.
    """

    kind: Literal["host", "cuda"]
    name: str

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Buffer:
        """Memory of the device, all bytes 0.

        Raises:
            DeviceMemoryError: there is not enough.
        """
        ...

    def staging(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Host memory that the device copies from and to without a detour (pinned)."""
        ...

    def stream(self, name: str) -> Stream:
        """The stream of a name, made when it is first asked for."""
        ...

    def event(self) -> Event:
        """A new event, which has happened."""
        ...

    def call(self, stream: Stream, function: Callable[[], None], stage: Stage) -> None:
        """Run a function in a stream's order: on a GPU at once, for there it only queues work on that stream."""
        ...

    def upload(self, target: Buffer, source: npt.NDArray[np.uint8], stream: Stream) -> None:
        """Queue a copy of staging memory to the device."""
        ...

    def download(self, target: npt.NDArray[np.uint8], source: Buffer, stream: Stream) -> None:
        """Queue a copy from the device to staging memory."""
        ...

    def record(self, event: Event, stream: Stream) -> None:
        """Let an event happen once all that is queued on the stream until now is done."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Let what is queued on the stream from now on wait for the event as it was last recorded."""
        ...

    def synchronise(self, event: Event) -> None:
        """Wait for an event as it was last recorded.

        Raises:
            Exception: what something queued before it, on its stream or on those that it waited for, has raised.
        """
        ...

    def blender(self, weights: BlendWeights, totals: WeightTotals) -> Blender:
        """What blends on this device."""
        ...

    def busy(self) -> dict[Stage, float]:
        """Seconds that each stage has worked so far; not those of work that still runs."""
        ...

    def free_bytes(self) -> int | None:
        """Memory of the device that is free; None for the host, whose memory is not ours to plan with."""
        ...

    def close(self) -> None:
        """End the streams and give back all memory; once is enough, and twice does no harm."""
        ...
