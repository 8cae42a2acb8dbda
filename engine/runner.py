"""The one contract that every backend fulfils: gray in, affinities out, features of sections kept in between."""

from __future__ import annotations

from typing import Any, Protocol

from fgnet.engine.device import Buffer, Device, Stream
from fgnet.volumes.geometry import Triple


class Runner(Protocol):
    """A network made ready on one backend and device.

    Sections lie in numbered slots in the memory of the device: their gray, brought there by `load`, and their
    features, which `encode` computes and which depend on one section only. `decode` makes the affinities of the
    block whose sections lie in consecutive slots. So a section that lies in several blocks is loaded and encoded once.

    These three and `move` belong into the order of `stream`: call them by `device.call(runner.stream, ...)`. Where the
    device is a GPU they only queue work on that stream.

    Attributes:
        name: the backend, as `--backend` names it.
        precision: of the arithmetic, as `--precision` names it.
        patch: (z, y, x) voxels of a block.
        sections: that one call of `encode` takes; 0 for a network that computes nothing section by section.
        slots: sections that are held at once, at least `least_slots(patch[0], sections)`.
    """

    name: str
    precision: str
    patch: Triple
    sections: int
    slots: int

    @property
    def device(self) -> Device:
        """Where its buffers lie."""
        ...

    @property
    def stream(self) -> Stream:
        """Of the device, in whose order it works."""
        ...

    def load(self, gray: Buffer, slot: int) -> None:
        """Copy the gray of some sections, (n, y, x) uint8, to the slots from `slot` on."""
        ...

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on, as many as a call takes."""
        ...

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Compute the affinities of the block whose sections lie in the slots from `slot` on.

        Args:
            slot: of its first section.
            affinities: (3, z, y, x) uint8 to be written, 255 is 1.0; channels (z, y, x).
        """
        ...

    def move(self, source: int, target: int, count: int) -> None:
        """Copy gray and features of `count` sections from the slots at `source` down to those at `target`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads, as plain data."""
        ...

    def close(self) -> None:
        """Give back what the runner holds, its device too; once is enough, and twice does no harm."""
        ...


def call_length(depth: int, sections: int) -> int:
    """Sections that are loaded at a time: those of a call of the encoder, or half a block where there is none.

    Args:
        depth: sections of a block.
        sections: of a call of the encoder; 0 for a network without one.
    """
    return sections or max(1, depth // 2)


def least_slots(depth: int, sections: int) -> int:
    """Slots that any block needs whose sections are loaded in calls at multiples of their length.

    Args:
        depth: sections of a block.
        sections: of a call of the encoder; 0 for a network without one.
    """
    return depth + 2 * (call_length(depth, sections) - 1)
