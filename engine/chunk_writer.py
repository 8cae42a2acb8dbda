"""Takes finished chunks from the device and writes them, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fgnet.engine.device import Buffer, Device, Event
from fgnet.engine.nvtx_ranges import named_range
from fgnet.engine.stage_times import StageTimes
from fgnet.volumes.geometry import Box, Triple

_IN_FLIGHT = 3


class ChunkSink(Protocol):
    """Where finished chunks go."""

    def write(self, index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None, /) -> None:
        """Keep a chunk; when this returns, it is kept for good.

        Args:
            index: of the chunk.
            box: its voxels, in the volume.
            affinities: (3, z, y, x) uint8; None for zeros.
        """
        ...


@dataclass(frozen=True, eq=False)
class OutputSlot:
    """Memory that a finished chunk passes through.

    Attributes:
        buffer: of the device, uint8.
        staging: of the host, of the same size.
        ready: recorded once the chunk has arrived in the host's.
    """

    buffer: Buffer
    staging: npt.NDArray[np.uint8]
    ready: Event


class ChunkWriter:
    """Writes chunks in the order in which they are handed over.

    Args:
        sink: keeps them.
        device: that they come from.
        chunk: (z, y, x) of the largest.
        times: told how long writing took.
        told: called after every chunk with its voxels.
    """

    def __init__(
        self, sink: ChunkSink, device: Device, chunk: Triple, times: StageTimes, told: Callable[[int], None]
    ) -> None:
        self._sink, self._device, self._times, self._told = sink, device, times, told
        shape = (3, *chunk)
        self._free: Queue[OutputSlot | None] = Queue()
        for _ in range(_IN_FLIGHT):
            self._free.put(OutputSlot(device.empty(shape), device.staging(shape), device.event()))
        self._work: Queue[tuple[Triple, Box, OutputSlot | None] | None] = Queue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Chunks that are finished and not yet written."""
        return self._work.qsize()

    def slot(self) -> OutputSlot:
        """Memory for the next chunk, once there is some.

        Raises:
            OutputError: an earlier chunk could not be written.
        """
        slot = self._free.get()
        if slot is None:
            assert self._failure is not None  # noqa: S101 - it ends the thread
            raise self._failure
        return slot

    def put(self, index: Triple, box: Box, slot: OutputSlot | None) -> None:
        """Write a chunk once its slot's event has happened; without a slot it is zeros."""
        self._work.put((index, box, slot))

    def close(self, *, failed: bool = False) -> None:
        """Write what was handed over, and end the thread.

        Args:
            failed: whether an error is on its way already, so that the writer's own is not to replace it.

        Raises:
            OutputError: a chunk could not be written.
        """
        self._work.put(None)
        self._thread.join()
        if self._failure is not None and not failed:
            raise self._failure

    def _run(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                index, box, slot = work
                values = None
                if slot is not None:
                    self._device.synchronise(slot.ready)
                    values = slot.staging.reshape(-1)[: 3 * box.size].reshape(3, *box.shape)
                began = time.perf_counter()
                with named_range("write"):
                    self._sink.write(index, box, values)
                self._times.add("write", time.perf_counter() - began)
                self._told(box.size)
                if slot is not None:
                    self._free.put(slot)
        except BaseException as error:  # whatever it is, the pipeline raises it
            self._failure = error
            self._free.put(None)
