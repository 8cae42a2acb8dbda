"""What the runners whose network reads and writes host memory have in common: the gray of sections, and their slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.device import Buffer
from fgnet.engine.feature_slots import pieces
from fgnet.engine.host_device import HostDevice
from fgnet.engine.runner import least_slots
from fgnet.volumes.geometry import Triple


class HostRunner(ABC):
    """The slots of a runner in host memory; backends derive from it and add `encode` and `decode`.

    Args:
        name: the backend.
        precision: of the arithmetic.
        patch: (z, y, x) voxels of a block.
        sections: that one call of the encoder takes; 0 without one.
        slots: sections that are held; twice a block's by default.
    """

    def __init__(self, name: str, precision: str, patch: Triple, sections: int, slots: int | None) -> None:
        self.name, self.precision, self.patch, self.sections = name, precision, patch, sections
        self.slots = max(slots or 2 * patch[0], least_slots(patch[0], sections))
        self.device = HostDevice()
        self.stream = self.device.stream(name)
        self.gray = np.zeros((self.slots, *patch[1:]), np.uint8)

    @abstractmethod
    def features(self) -> Sequence[Any]:
        """Arrays of features whose first axis is the slots; tensors of PyTorch will do."""

    def load(self, gray: Buffer, slot: int) -> None:
        """Copy gray (n, y, x) uint8 to the slots from `slot` on."""
        self.gray[slot : slot + gray.shape[0]] = gray.host

    def move(self, source: int, target: int, count: int) -> None:
        """Copy gray and features of `count` sections down, `source` to `target`."""
        for first, length in pieces(source, target, count):
            for array in (self.gray, *self.features()):
                array[target + first : target + first + length] = array[source + first : source + first + length]

    def block(self, slot: int) -> npt.NDArray[np.uint8]:
        """The gray (z, y, x) of the block whose sections begin at a slot."""
        return self.gray[slot : slot + self.patch[0]]

    def close(self) -> None:
        """End the stream, and give back the memory of the slots."""
        self.device.close()
        self.gray = self.gray[:0].copy()
