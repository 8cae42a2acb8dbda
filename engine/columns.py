"""Blocks of one column, each section of which is encoded once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fgnet.engine.runner import Runner, encoder_calls
from fgnet.volumes.errors import GeometryError


class Column:
    """Which sections of a column of blocks have their features in which slots of a runner.

    Blocks come in ascending z. Sections that a block shares with the one before it are not encoded again. A runner
    serves one column at a time.

    Args:
        runner: holds the features.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        # Sections base .. done - 1 have features, in slots 0 .. done - base - 1.
        self._base = self._done = 0

    def affinities(self, start: int, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Affinities of the next block.

        Args:
            start: its first section.
            block: (z, y, x) uint8 gray.

        Returns:
            (3, z, y, x) uint8, valid until the next call.

        Raises:
            GeometryError: the block begins below the sections whose features are held.
        """
        runner, depth = self._runner, self._runner.patch[0]
        if start < self._base:
            raise GeometryError(
                f"the block at section {start} comes after one whose features begin at {self._base}", where="column"
            )
        stop = start + depth
        if start >= self._done:
            self._base = self._done = start
        elif stop > self._base + runner.slots:
            runner.move(start - self._base, 0, self._done - start)
            self._base = start
        for first in encoder_calls(self._done, stop, runner.sections, start):
            runner.encode(block[first - start : first - start + runner.sections], first - self._base)
        self._done = max(self._done, stop)
        return runner.decode(block, start - self._base)
