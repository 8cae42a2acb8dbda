"""Reads the sections of columns ahead of the network, in a thread, into staging memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fgnet.engine.columns import calls_of
from fgnet.engine.device import Device, Event
from fgnet.engine.nvtx_ranges import named_range
from fgnet.engine.run_plan import ColumnPlan
from fgnet.engine.stage_times import StageTimes
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.grid import mirror_pad

# Sections of a volume whose format has no chunks are read this many at a time.
_SECTIONS = 64
_AHEAD = 4
_POLL_SECONDS = 0.1


class GraySource(Protocol):
    """Where gray comes from: a volume's shape (z, y, x), and uint8 gray of any box inside it."""

    @property
    def shape(self) -> Triple:
        """Extent (z, y, x) in voxels."""
        ...

    @property
    def chunk_depth(self) -> int | None:
        """Sections that are decoded together, None where the format has no chunks."""
        ...

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        """The box's values; it lies inside the volume."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Gray (z, y, x) uint8 that is in memory already."""

    array: npt.NDArray[np.uint8]

    @property
    def shape(self) -> Triple:
        """Extent (z, y, x) in voxels."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def chunk_depth(self) -> int | None:
        """There are no chunks."""
        return None

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        """The box as a view."""
        return self.array[box.slices]


@dataclass(frozen=True, eq=False)
class Sections:
    """The gray of a call of `load`.

    Attributes:
        first: section.
        gray: (n, y, x) uint8 in staging memory.
        lowest: gray value of each section.
        highest: gray value of each section.
        free: recorded once it was copied from; the memory is filled again after it.
    """

    first: int
    gray: npt.NDArray[np.uint8]
    lowest: list[int]
    highest: list[int]
    free: Event


class GrayReader:
    """Reads the sections of columns, one column after the other, a few calls ahead.

    Args:
        source: gray.
        patch: (z, y, x) voxels of a block.
        length: sections of a call.
        columns: in the order in which they are run.
        device: whose staging memory is filled.
        times: told how long reading took.
    """

    def __init__(
        self,
        source: GraySource,
        patch: Triple,
        length: int,
        columns: Iterable[ColumnPlan],
        device: Device,
        times: StageTimes,
    ) -> None:
        self._source, self._patch, self._length = source, patch, length
        self._extent = max(source.shape[0], patch[0])
        self._columns, self._device, self._times = columns, device, times
        # Those of a block may all be held at a time.
        held = 2 + -(-patch[0] // length)
        self._free: Queue[tuple[npt.NDArray[np.uint8], Event]] = Queue()
        for _ in range(held + _AHEAD):
            self._free.put((device.staging((length, *patch[1:])), device.event()))
        self._read: Queue[Sections | BaseException] = Queue(_AHEAD)
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read", daemon=True)
        self._thread.start()

    @property
    def ahead(self) -> int:
        """Calls that are read and wait for the network."""
        return self._read.qsize()

    def next(self) -> Sections:
        """The next call of the column in hand, or the first one of the next column.

        Raises:
            VolumeError: it cannot be read.
        """
        found = self._read.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def release(self, sections: Sections) -> None:
        """Let the memory be filled again, once its event has happened."""
        self._free.put((sections.gray, sections.free))

    def close(self) -> None:
        """End the thread; what it has read is dropped."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for column in self._columns:
                if self._cancelled.is_set():
                    return
                for sections in self._column(column):
                    if not self._hand_over(sections):
                        return
        except BaseException as error:  # whatever it is, the pipeline raises it
            self._hand_over(error)

    def _column(self, column: ColumnPlan) -> Iterator[Sections]:
        piece, begin = np.empty((0, 0, 0), np.uint8), 0
        calls = calls_of(column.starts, self._patch[0], self._length, self._extent)
        for first in calls:
            stop = first + self._length
            memory = self._take()
            if memory is None:
                return
            gray, free = memory
            began = time.perf_counter()
            with named_range("read"):
                if first < begin or stop > begin + len(piece):
                    begin, end = self._piece_from(first, stop, calls[-1] + self._length)
                    piece = self._load(column, begin, end)
                np.copyto(gray, piece[first - begin : stop - begin])
                lowest, highest = gray.min((1, 2)).tolist(), gray.max((1, 2)).tolist()
            self._times.add("read", time.perf_counter() - began)
            yield Sections(first, gray, lowest, highest, free)

    def _piece_from(self, first: int, stop: int, last: int) -> tuple[int, int]:
        """Sections to read in one go: up to the end of a chunk, so that none is decoded for every call."""
        if self._source.shape[0] < self._patch[0]:
            return 0, self._extent
        step = self._source.chunk_depth or _SECTIONS
        return first, min(-(-stop // step) * step, last)

    def _load(self, column: ColumnPlan, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Sections (z, y, x) of a column, mirrored where the volume is smaller than a block."""
        _, rows, columns = self._patch
        box = Box((begin, column.y, column.x), (end, column.y + rows, column.x + columns))
        gray = self._source.gray(box.intersect(Box.from_shape(self._source.shape)))
        return mirror_pad(gray, as_triple((end - begin, rows, columns), "sections"))

    def _take(self) -> tuple[npt.NDArray[np.uint8], Event] | None:
        """Staging memory that is free; None if the reader was cancelled."""
        while not self._cancelled.is_set():
            try:
                gray, event = self._free.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            self._device.synchronise(event)
            return gray, event
        return None

    def _hand_over(self, item: Sections | BaseException) -> bool:
        while not self._cancelled.is_set():
            try:
                self._read.put(item, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False
