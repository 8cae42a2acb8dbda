"""Which chunks a block reaches into, which of them are finished by it, and where their sums lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from fgnet.engine.device import Buffer, Device
from fgnet.engine.run_plan import ColumnPlan, RunPlan
from fgnet.volumes.geometry import Box, Triple


class SumPool:
    """Memory for the sums of chunks, taken when it is first needed and used again.

    Args:
        device: whose memory.
        chunk: (z, y, x) of the largest chunk.
    """

    def __init__(self, device: Device, chunk: Triple) -> None:
        self._device, self._shape = device, (3, *chunk)
        self._free: list[Buffer] = []
        self.taken = 0

    def take(self) -> Buffer:
        """Sums that are 0.

        Raises:
            DeviceMemoryError: there is no memory for more.
        """
        if self._free:
            return self._free.pop()
        self.taken += 1
        return self._device.empty(self._shape, np.float32)

    def give_back(self, sums: Buffer) -> None:
        """Sums that were set to 0, or will be before what is queued next."""
        self._free.append(sums)


class ChunkSums:
    """The chunks of a tile that are to be made.

    Args:
        plan: of the run.
        wanted: chunks that are to be made.
        columns: the blocks that will be run or counted.
        pool: gives memory.
    """

    def __init__(self, plan: RunPlan, wanted: Collection[Triple], columns: Iterable[ColumnPlan], pool: SumPool) -> None:
        self._plan, self._pool = plan, pool
        self._left = dict.fromkeys(wanted, 0)
        self._sums: dict[Triple, Buffer] = {}
        for column in columns:
            for start in column.starts:
                for index in self.reached(plan.block((start, column.y, column.x))):
                    self._left[index] += 1

    def untouched(self) -> list[Triple]:
        """Chunks that no block reaches into; they are not waited for any more."""
        empty = [index for index, left in self._left.items() if not left]
        for index in empty:
            del self._left[index]
        return empty

    def reached(self, block: Box) -> list[Triple]:
        """Chunks to be made that a block reaches into."""
        return [index for index in self._plan.chunks_of(block) if index in self._left]

    def sums(self, index: Triple) -> Buffer:
        """Where the sums of a chunk lie."""
        if index not in self._sums:
            self._sums[index] = self._pool.take()
        return self._sums[index]

    def count(self, block: Box) -> list[tuple[Triple, Buffer | None]]:
        """Count a block as done.

        Returns:
            The chunks that are finished by it, with their sums; None where no block added anything. Give the sums back
            to the pool.
        """
        finished: list[tuple[Triple, Buffer | None]] = []
        for index in self.reached(block):
            self._left[index] -= 1
            if not self._left[index]:
                del self._left[index]
                finished.append((index, self._sums.pop(index, None)))
        return finished
