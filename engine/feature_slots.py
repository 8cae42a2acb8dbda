"""The features of sections in device memory, slot after slot, so that two engines share them without a copy."""

from __future__ import annotations

from collections.abc import Callable

from fgnet.engine.cuda_memory import Cuda, DeviceMemoryError


class FeatureSlots:
    """One buffer for each feature, of `slots` sections.

    Args:
        cuda: the device, which has to be current for every call.
        section_bytes: of each feature of one section, by name.
        slots: sections to hold; fewer are held where they do not fit.
        depth: sections of a block, the least that is of use.
        say: told that fewer fit.

    Attributes:
        slots: sections that are held.

    Raises:
        DeviceMemoryError: the features of one block do not fit; with figures.
    """

    def __init__(
        self, cuda: Cuda, section_bytes: dict[str, int], *, slots: int, depth: int, say: Callable[[str], None]
    ) -> None:
        self._cuda = cuda
        self._section_bytes = section_bytes
        self._buffers: dict[str, int] = {}
        wanted = self.slots = max(slots, depth)
        section = sum(section_bytes.values())
        while not self._take():
            free = cuda.free_bytes()
            self.slots = fewer_slots(self.slots, depth, section, free)
            if self.slots == 0:
                raise DeviceMemoryError(
                    f"the features of the {depth} sections of a block take {depth * section / 2**20:,.0f} MiB, and the "
                    f"GPU has {free / 2**20:,.0f} MiB free beside the engines",
                    where=cuda.device,
                    remedy="close other programs on the GPU, or export the model with a smaller patch",
                )
        if self.slots < wanted:
            say(f"the GPU's memory holds the features of {self.slots} sections, not of {wanted}")

    def at(self, slot: int) -> dict[str, int]:
        """The addresses of all features of the slots from `slot` on, by name."""
        return {name: self._buffers[name] + slot * size for name, size in self._section_bytes.items()}

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


def fewer_slots(slots: int, depth: int, section_bytes: int, free_bytes: int) -> int:
    """How many slots to try where `slots` did not fit; 0 if even a block's did not.

    Args:
        slots: that did not fit.
        depth: sections of a block.
        section_bytes: features of one section.
        free_bytes: device memory that is free, of which a tenth is left for what the library takes later.
    """
    fit = min(slots - 1, free_bytes * 9 // 10 // max(1, section_bytes))
    return max(fit, depth) if slots > depth else 0
