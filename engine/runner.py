"""The one contract that every backend fulfils: gray in, affinities out, features of sections kept in between."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.volumes.geometry import Triple


class Runner(Protocol):
    """A network made ready on one backend and device.

    The network runs in two halves. `encode` computes what depends on one section only and keeps it in numbered slots,
    in the memory of the device; `decode` makes the affinities of the block whose sections lie in consecutive slots. So
    a section that lies in several blocks is encoded once.

    Attributes:
        name: the backend, as `--backend` names it.
        precision: of the arithmetic, as `--precision` names it.
        patch: (z, y, x) voxels of a block.
        sections: that one call of `encode` takes; 0 for a network that computes nothing section by section.
        slots: sections whose features are held at once, at least as many as a block has.
    """

    name: str
    precision: str
    patch: Triple
    sections: int
    slots: int

    def encode(self, gray: npt.NDArray[np.uint8], slot: int) -> None:
        """Compute the features of some sections.

        Args:
            gray: (sections, y, x) uint8.
            slot: of the first of them.
        """
        ...

    def decode(self, gray: npt.NDArray[np.uint8], slot: int) -> npt.NDArray[np.uint8]:
        """Affinities of a block whose sections were encoded before.

        Args:
            gray: (z, y, x) uint8 of the block.
            slot: of its first section.

        Returns:
            (3, z, y, x) uint8, 255 is 1.0; channels (z, y, x). Valid until the next call.
        """
        ...

    def move(self, source: int, target: int, count: int) -> None:
        """Copy the features of `count` sections from the slots at `source` to those at `target`, which lie below."""
        ...

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads, as plain data."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


def run_block(runner: Runner, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Affinities (3, z, y, x) uint8 of one block (z, y, x) on its own."""
    depth = runner.patch[0]
    for first in encoder_calls(0, depth, runner.sections, 0):
        runner.encode(block[first : first + runner.sections], first)
    return runner.decode(block, 0)


def encoder_calls(done: int, stop: int, sections: int, lowest: int) -> list[int]:
    """First sections of the encoder's calls that bring sections `done` .. `stop` into slots.

    The encoder takes a fixed number of sections: where fewer are missing, the call reaches back over sections that are
    there already, which comes to the same features, but not below `lowest`.

    Args:
        done: sections that are encoded already.
        stop: one past the last section that is needed.
        sections: of one call; 0 for a network without encoder.
        lowest: first section that has a slot.
    """
    if sections == 0:
        return []
    calls = []
    while done < stop:
        first = max(lowest, min(done, stop - sections))
        calls.append(first)
        done = first + sections
    return calls


def warm_up(runner: Runner) -> None:
    """Run one block of noise, so that what a backend prepares at its first call is not timed with the rest."""
    run_block(runner, np.random.default_rng(0).integers(0, 256, runner.patch, dtype=np.uint8))
