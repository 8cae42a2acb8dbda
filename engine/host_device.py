"""The host as a device: plain memory, streams that are threads, events between them.

The pipeline runs here as it does on a GPU, work on different streams side by side, so that what it forgets to wait for
shows in its tests on any machine. Numba's kernels and the runtimes of networks release the interpreter's lock.
"""

from __future__ import annotations

import platform
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.engine.device import STAGES, Buffer, Event, Stage, Stream
from fgnet.engine.nvtx_ranges import named_range
from fgnet.postproc.blend_weights import BlendWeights, WeightTotals
from fgnet.postproc.blending import add_patch, finish_chunk
from fgnet.volumes.geometry import Box, Triple


class HostEvent:
    """A place in a stream, as it was last recorded; one that never was has happened."""

    def __init__(self) -> None:
        self.happened: Future[None] = Future()
        self.happened.set_result(None)


class HostStream:
    """A thread that does what it is given, in order; once something failed, the rest is dropped.

    Args:
        name: of the thread.

    Attributes:
        failure: the first thing that went wrong.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self.failure: BaseException | None = None
        # The thread does not hold the stream, which can so be forgotten without being closed, and neither does it hold
        # what went wrong, whose traceback may lead to the stream.
        self._thread = threading.Thread(target=_work, args=(self._work, weakref.ref(self)), name=name, daemon=True)
        self._thread.start()

    def queue(self, work: Callable[[], None]) -> None:
        """Do this after all that was queued before.

        Raises:
            RuntimeError: the stream was closed, and what waits for this work would wait forever.
        """
        if self._closed:
            raise RuntimeError(f"the stream {self._thread.name} is closed")
        self._work.put(work)

    def close(self) -> None:
        """End the thread once it has done what is queued."""
        self._closed = True
        self._work.put(None)
        self._thread.join()

    def __del__(self) -> None:
        self._work.put(None)


def _work(queue: SimpleQueue[Callable[[], None] | None], stream_of: weakref.ref[HostStream]) -> None:
    while (work := queue.get()) is not None:
        try:
            work()
        except BaseException as error:  # whatever it is, whoever waits for the stream gets it
            stream = stream_of()
            if stream is not None and stream.failure is None:
                stream.failure = error
            del stream
        del work  # what it holds may be the stream itself


class HostDevice:
    """Plain memory and threads."""

    kind: Literal["host", "cuda"] = "host"

    def __init__(self) -> None:
        self.name = platform.processor() or platform.machine()
        self._streams: dict[str, HostStream] = {}
        self._busy: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Buffer:
        """Memory, all bytes 0."""
        return host_buffer(np.zeros(shape, dtype))

    def staging(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Memory like any other."""
        return np.zeros(shape, np.uint8)

    def stream(self, name: str) -> HostStream:
        """The thread of a name, or a new one where it failed."""
        stream = self._streams.get(name)
        if stream is None or stream.failure is not None:
            stream = self._streams[name] = HostStream(name)
        return stream

    def event(self) -> HostEvent:
        """An event that has happened."""
        return HostEvent()

    def call(self, stream: Stream, function: Callable[[], None], stage: Stage) -> None:
        """Run a function in the stream's thread, once all before it is done."""
        thread = _thread_of(stream)

        def work() -> None:
            if thread.failure is not None:
                return
            began = time.perf_counter()
            with named_range(stage):
                function()
            with self._lock:
                self._busy[stage] += time.perf_counter() - began

        thread.queue(work)

    def upload(self, target: Buffer, source: npt.NDArray[np.uint8], stream: Stream) -> None:
        """Queue a copy."""
        self.call(stream, lambda: np.copyto(target.host, source), "upload")

    def download(self, target: npt.NDArray[np.uint8], source: Buffer, stream: Stream) -> None:
        """Queue a copy."""
        self.call(stream, lambda: np.copyto(target, source.host), "download")

    def record(self, event: Event, stream: Stream) -> None:
        """Let the event happen once the stream is there, or fail as the stream did."""
        thread = _thread_of(stream)
        happened: Future[None] = Future()
        _place(event).happened = happened

        def work() -> None:
            if thread.failure is None:
                happened.set_result(None)
            else:
                happened.set_exception(thread.failure)

        thread.queue(work)

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream wait; it fails where what it waits for did."""
        happened = _place(event).happened
        _thread_of(stream).queue(happened.result)

    def synchronise(self, event: Event) -> None:
        """Wait in the calling thread."""
        _place(event).happened.result()

    def blender(self, weights: BlendWeights, totals: WeightTotals) -> HostBlender:
        """Numba's kernels."""
        return HostBlender(self, weights, totals)

    def busy(self) -> dict[Stage, float]:
        """Seconds by stage."""
        with self._lock:
            return dict(self._busy)

    def free_bytes(self) -> int | None:
        """Not ours to plan with."""
        return None

    def close(self) -> None:
        """End the streams' threads."""
        while self._streams:
            self._streams.popitem()[1].close()


class HostBlender:
    """Blends by `postproc.blending`."""

    def __init__(self, device: HostDevice, weights: BlendWeights, totals: WeightTotals) -> None:
        self._device, self._weights, self._totals = device, weights, totals

    def accumulate(self, sums: Buffer, box: Box, affinities: Buffer, start: Triple, stream: Stream) -> None:
        """Queue the addition of a patch."""
        values = _chunk(sums, box)
        self._device.call(stream, lambda: add_patch(values, box, affinities.host, start, self._weights), "blend")

    def normalise(self, sums: Buffer, box: Box, target: Buffer, stream: Stream) -> None:
        """Queue the division by the weights."""
        values, out = _chunk(sums, box), _chunk(target, box)

        def work() -> None:
            finish_chunk(values, box, self._totals, out)

        self._device.call(stream, work, "normalise")


def host_buffer(array: npt.NDArray[Any]) -> Buffer:
    """A contiguous array as a buffer of the host."""
    return Buffer(array.ctypes.data, array.shape, array.dtype, array)


def _thread_of(stream: Stream) -> HostStream:
    if not isinstance(stream, HostStream):
        raise TypeError(f"a {type(stream).__name__} belongs to another device")
    return stream


def _place(event: Event) -> HostEvent:
    if not isinstance(event, HostEvent):
        raise TypeError(f"a {type(event).__name__} belongs to another device")
    return event


def _chunk(buffer: Buffer, box: Box) -> npt.NDArray[Any]:
    """The first values of a buffer as the (3, z, y, x) of a box, which may be smaller than the buffer."""
    return buffer.host.reshape(-1)[: 3 * box.size].reshape(3, *box.shape)
