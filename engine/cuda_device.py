"""One NVIDIA GPU as a device of the streaming pipeline: memory, streams, events, and the time of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.engine.cuda_blending import CudaBlender
from fgnet.engine.cuda_clock import StageClock
from fgnet.engine.cuda_memory import Argument, Cuda, DeviceMemoryError
from fgnet.engine.cuda_reuse import Reuse
from fgnet.engine.device import Buffer, Event, Stage, Stream
from fgnet.engine.nvtx_ranges import named_range
from fgnet.postproc.blend_weights import BlendWeights, WeightTotals
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True, eq=False)
class CudaStream:
    """A stream of a CudaDevice.

    Attributes:
        handle: CUDA's.
        name: for people.
    """

    handle: int
    name: str


@dataclass(frozen=True, eq=False)
class CudaEvent:
    """An event of a CudaDevice.

    Attributes:
        handle: CUDA's.
    """

    handle: int


class CudaDevice:
    """Memory, streams and events of one GPU. Any thread may call it.

    What is queued is never waited for but by `synchronise`, `empty` and `constant`. Buffers, staging memory, streams
    and events that nobody refers to any more are used again; all is given back by `close`.

    Args:
        cuda: whose memory is given back by `close`.
    """

    kind: Literal["host", "cuda"] = "cuda"

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.name = cuda.device
        self._clock = StageClock(cuda)
        self._closed = False
        self._memory: Reuse[int] = Reuse()
        self._pinned: Reuse[npt.NDArray[np.uint8]] = Reuse()
        self._events: Reuse[int] = Reuse()
        self._idle_streams: Reuse[int] = Reuse()
        self._kernels: dict[str, list[Any]] = {}
        with cuda.current():
            self._filling = cuda.stream()
        self._streams = [self._filling]

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Buffer:
        """Memory of the GPU, aligned to 256 bytes, all bytes 0.

        Raises:
            DeviceMemoryError: there is not enough.
        """
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        with self.cuda.current():
            buffer = Buffer(self._take(size), shape, np.dtype(dtype))
            self._memory.return_with(buffer, size, buffer.address)
            self.cuda.clear(buffer.address, size, self._filling)
            self.cuda.synchronise(self._filling)
        return buffer

    def staging(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Pinned host memory; what lies in it is undefined.

        Raises:
            DeviceMemoryError: the host has too little that can be pinned.
        """
        size = int(np.prod(shape))
        if (pinned := self._pinned.take(size)) is None:
            with self.cuda.current():
                pinned = self.cuda.pinned((size,))
        else:
            self._finish()
        # Views of what is returned refer to `lent`, which refers to a memoryview: it lives as long as any of them.
        lent = np.frombuffer(pinned.data, np.uint8)
        self._pinned.return_with(lent, size, pinned)
        return lent.reshape(shape)

    def constant(self, array: npt.NDArray[np.float32]) -> Buffer:
        """A copy on the GPU."""
        buffer, staged = self.empty(array.shape, np.float32), self.staging((array.nbytes,))
        staged[:] = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
        with self.cuda.current():
            self.cuda.upload(buffer.address, staged, self._filling)
            self.cuda.synchronise(self._filling)
        return buffer

    def stream(self, name: str) -> CudaStream:
        """A stream that waits for no other."""
        if (handle := self._idle_streams.take(0)) is None:
            with self.cuda.current():
                handle = self.cuda.stream()
            self._streams.append(handle)
        stream = CudaStream(handle, name)
        self._idle_streams.return_with(stream, 0, handle)
        return stream

    def event(self) -> CudaEvent:
        """An event that has happened; it can be recorded again and again."""
        with self.cuda.current():
            if (handle := self._events.take(0)) is None:
                handle = self.cuda.event()
            else:
                self.cuda.record_event(handle, self._filling)
        event = CudaEvent(handle)
        self._events.return_with(event, 0, handle)
        return event

    def kernels(self, source: str, names: Sequence[str]) -> list[Any]:
        """Kernels of a CUDA C source, which is compiled once; see `Cuda.kernels`."""
        if source not in self._kernels:
            with self.cuda.current():
                self._kernels[source] = self.cuda.kernels(source, names)
        return self._kernels[source]

    def call(self, stream: Stream, function: Callable[[], None], stage: Stage) -> None:
        """Run a function now, with the GPU current, that queues work on the stream; the work's time counts for a stage.

        Raises:
            BackendError: what the function raises, or work that was queued before has failed.
        """
        with named_range(stage), self.cuda.current(), self._clock.timed(stage, handle_of(stream)):
            function()

    def upload(self, target: Buffer, source: npt.NDArray[np.uint8], stream: Stream) -> None:
        """Queue a copy of staging memory to the GPU.

        Raises:
            ValueError: the array is larger than the buffer, or not in one piece.
        """
        _require_room(source, source.nbytes, target.nbytes)
        self.call(stream, lambda: self.cuda.upload(target.address, source, handle_of(stream)), "upload")

    def download(self, target: npt.NDArray[np.uint8], source: Buffer, stream: Stream) -> None:
        """Queue a copy of the GPU's memory, as much as the array holds.

        Raises:
            ValueError: the array is larger than the buffer, or not in one piece.
        """
        _require_room(target, target.nbytes, source.nbytes)
        self.call(stream, lambda: self.cuda.download(target, source.address, handle_of(stream)), "download")

    def record(self, event: Event, stream: Stream) -> None:
        """Let an event happen once all that is queued on the stream until now is done."""
        with self.cuda.current():
            self.cuda.record_event(handle_of(event), handle_of(stream))

    def wait(self, stream: Stream, event: Event) -> None:
        """Let what is queued on the stream from now on wait for the event as it was last recorded."""
        with self.cuda.current():
            self.cuda.wait_event(handle_of(stream), handle_of(event))

    def synchronise(self, event: Event) -> None:
        """Wait for an event as it was last recorded.

        Raises:
            BackendError: work on the GPU has failed.
        """
        with self.cuda.current():
            self.cuda.synchronise_event(handle_of(event))

    def blender(self, weights: BlendWeights, totals: WeightTotals) -> CudaBlender:
        """What blends on this GPU.

        Raises:
            BackendError: its kernels cannot be compiled.
        """
        return CudaBlender(self, weights, totals)

    def busy(self) -> dict[Stage, float]:
        """Seconds that each stage has worked so far on the GPU; stages on different streams may overlap."""
        if self._closed:
            return self._clock.seconds()
        with self.cuda.current():
            return self._clock.read()

    def free_bytes(self) -> int | None:
        """Memory of the GPU that is free, or ours and not in use."""
        with self.cuda.current():
            return self.cuda.free_bytes() + self._memory.bytes

    def launch(self, kernel: Any, grid: Triple, block: Triple, arguments: Sequence[Argument], stream: Stream) -> None:
        """Queue a kernel; to be called by `call`."""
        self.cuda.launch(kernel, grid, block, arguments, handle_of(stream))

    def close(self) -> None:
        """Give back all memory, streams and events; once is enough, and twice does no harm."""
        if self._closed:
            return
        self._closed = True
        well = self.settle()
        try:
            self.cuda.close()
        except BackendError:
            # A GPU that failed gives nothing back, and that it failed was raised where somebody waited for it.
            if well:
                raise

    def settle(self) -> bool:
        """Wait for all that is queued, before what it uses is torn down; whether it succeeded. Raises nothing."""
        try:
            self._finish()
        except BackendError:
            return False
        return True

    def _take(self, size: int) -> int:
        """Memory that is not in use, else new; all that is not in use is given back where there is no room."""
        address = self._memory.take(size)
        if address is not None:
            self._finish()
            return address
        try:
            return self.cuda.allocate(size)
        except DeviceMemoryError:
            spare = self._memory.drain()
            if not spare:
                raise
        self._finish()
        for address in spare:
            self.cuda.release(address)
        return self.cuda.allocate(size)

    def _finish(self) -> None:
        """Wait for all streams, for they may still use memory whose buffer is gone."""
        with self.cuda.current():
            for stream in tuple(self._streams):
                self.cuda.synchronise(stream)


def handle_of(made: Stream | Event) -> int:
    """CUDA's handle of a stream or event of a CudaDevice.

    Raises:
        TypeError: it belongs to another device.
    """
    if not isinstance(made, CudaStream | CudaEvent):
        raise TypeError(f"a {type(made).__name__} belongs to another device")
    return made.handle


def _require_room(array: npt.NDArray[Any], wanted: int, held: int) -> None:
    if not array.flags.c_contiguous or wanted > held:
        raise ValueError(f"{wanted} bytes of an array with strides {array.strides} for a buffer of {held} bytes")
