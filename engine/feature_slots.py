"""Gray and features of sections in device memory, slot after slot, so that two engines share them without a copy."""

from __future__ import annotations

from collections.abc import Callable

from fgnet.engine.cuda_memory import Cuda, DeviceMemoryError
from fgnet.engine.device import Buffer

GRAY = "gray"


class FeatureSlots:
    """One buffer for the gray and one for each feature, of `slots` sections.

    Args:
        cuda: the device, which has to be current for every call.
        section_bytes: of each feature of one section, and of its gray under the name "gray".
        slots: sections to hold; fewer are held where they do not fit.
        least: sections that are of use; see `runner.least_slots`.
        say: told that fewer fit.

    Attributes:
        slots: sections that are held.

    Raises:
        DeviceMemoryError: the least that is of use does not fit; with figures.
    """

    def __init__(
        self, cuda: Cuda, section_bytes: dict[str, int], *, slots: int, least: int, say: Callable[[str], None]
    ) -> None:
        self._cuda = cuda
        self._section_bytes = section_bytes
        self._buffers: dict[str, int] = {}
        wanted = self.slots = max(slots, least)
        section = sum(section_bytes.values())
        while not self._take():
            free = cuda.free_bytes()
            self.slots = fewer_slots(self.slots, least, section, free)
            if self.slots == 0:
                raise DeviceMemoryError(
                    f"gray and features of the {least} sections that a block needs take "
                    f"{least * section / 2**20:,.0f} MiB, and the GPU has {free / 2**20:,.0f} MiB free beside the "
                    "engines",
                    where=cuda.device,
                    remedy="close other programs on the GPU, or export the model with a smaller patch",
                )
        if self.slots < wanted:
            say(f"the GPU's memory holds gray and features of {self.slots} sections, not of {wanted}")

    def at(self, slot: int) -> dict[str, int]:
        """The addresses of gray and features of the slots from `slot` on, by name."""
        return {name: self._buffers[name] + slot * size for name, size in self._section_bytes.items()}

    def load(self, gray: Buffer, slot: int, stream: int) -> None:
        """Queue the copy of gray (n, y, x) uint8, which lies on the device, to the slots from `slot` on."""
        self._cuda.copy(self.at(slot)[GRAY], gray.address, gray.nbytes, stream)

    def move(self, source: int, target: int, count: int, stream: int) -> None:
        """Queue copies of `count` sections down, from `source` to `target`."""
        for first, length in pieces(source, target, count):
            here, there = self.at(source + first), self.at(target + first)
            for name, size in self._section_bytes.items():
                self._cuda.copy(there[name], here[name], length * size, stream)

    def _take(self) -> bool:
        try:
            for name, size in self._section_bytes.items():
                self._buffers[name] = self._cuda.allocate(self.slots * size)
        except DeviceMemoryError:
            for address in self._buffers.values():
                self._cuda.release(address)
            self._buffers.clear()
            return False
        return True


def pieces(source: int, target: int, count: int) -> list[tuple[int, int]]:
    """(first, length) of copies that together move `count` sections down, none of which overlaps itself.

    They have to be made in this order, for a copy may write where the one before it read.

    Args:
        source: first section that is moved.
        target: where it goes, below `source`.
        count: sections.
    """
    step = source - target
    return [(first, min(step, count - first)) for first in range(0, count, step)]


def fewer_slots(slots: int, least: int, section_bytes: int, free_bytes: int) -> int:
    """How many slots to try where `slots` did not fit; 0 if not even the least did.

    Args:
        slots: that did not fit.
        least: sections that are of use.
        section_bytes: gray and features of one section.
        free_bytes: device memory that is free, of which a tenth is left for what the library takes later.
    """
    fit = min(slots - 1, free_bytes * 9 // 10 // max(1, section_bytes))
    return max(fit, least) if slots > least else 0
