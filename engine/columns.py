"""Blocks of one column, each section of which is loaded and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fgnet.engine.device import Buffer
from fgnet.engine.runner import Runner, call_length
from fgnet.volumes.errors import GeometryError

ReadSections = Callable[[int, int], npt.NDArray[np.uint8]]
"""(first section, how many) -> (n, y, x) uint8 gray of a column."""


@dataclass(frozen=True)
class Placement:
    """What has to happen before a block can be decoded, in this order, and where it lies then.

    Attributes:
        move: (source slot, target slot, sections), or None.
        calls: (first section, slot) of each call of `load` and `encode`.
        slot: of the block's first section.
    """

    move: tuple[int, int, int] | None
    calls: tuple[tuple[int, int], ...]
    slot: int


class SectionSlots:
    """Which sections of a column lie in which slots, by arithmetic alone.

    Sections are loaded and encoded in calls of a fixed length at its multiples, counted from the first section of the
    volume; the last call reaches back from the volume's end. So a section's features come from the same call on the
    same sections in every run, whatever region it computes and wherever it starts: the same bits.

    Args:
        depth: sections of a block.
        length: sections of a call.
        slots: that there are, at least `least_slots`.
        extent: sections of the padded volume.
    """

    def __init__(self, depth: int, length: int, slots: int, extent: int) -> None:
        self._depth, self._length, self._slots, self._extent = depth, length, slots, extent
        # Sections base .. done - 1 lie in slots 0 .. done - base - 1.
        self._base = self._done = 0

    def place(self, start: int) -> Placement:
        """Make room for the block at a section; blocks come in ascending order.

        Raises:
            GeometryError: the block begins below the sections that are held.
        """
        if start < self._base:
            raise GeometryError(
                f"the block at section {start} comes after one whose sections begin at {self._base}", where="column"
            )
        if start >= self._done:
            self._base = self._done = call_of(start, self._length, self._extent)
        calls = list(calls_of([start], self._depth, self._length, self._extent, self._done))
        stop = max(self._done, calls[-1] + self._length if calls else 0)
        move = None
        if stop - self._base > self._slots:
            # A block that starts a column has its sections from slot 0 on, so what is held here begins below it.
            move = (start - self._base, 0, self._done - start)
            self._base = start
        self._done = stop
        return Placement(move, tuple((first, first - self._base) for first in calls), start - self._base)


def call_of(section: int, length: int, extent: int) -> int:
    """First section of the call that a section is loaded and encoded by."""
    return min(section // length * length, extent - length)


def calls_of(starts: Iterable[int], depth: int, length: int, extent: int, done: int = 0) -> list[int]:
    """First sections of the calls that the blocks at ascending `starts` need, each once.

    Args:
        starts: first sections of the blocks.
        depth: sections of a block.
        length: sections of a call.
        extent: sections of the padded volume.
        done: sections below are there already.
    """
    calls = []
    for start in starts:
        section = max(start, done)
        while section < start + depth:
            calls.append(call_of(section, length, extent))
            section = done = calls[-1] + length
    return calls


class Column:
    """A column of blocks through a runner, one after the other; what the streaming pipeline does without overlap.

    Args:
        runner: serves one column at a time.
        extent: sections of the padded volume.
        read: gives the gray of sections.
    """

    def __init__(self, runner: Runner, extent: int, read: ReadSections) -> None:
        self._runner, self._read = runner, read
        depth = runner.patch[0]
        self._length = call_length(depth, runner.sections)
        self._slots = SectionSlots(depth, self._length, runner.slots, extent)
        device = runner.device
        self._gray = device.empty((self._length, *runner.patch[1:]))
        self._gray_staging = device.staging(self._gray.shape)
        self._affinities = device.empty((3, *runner.patch))
        self._affinities_staging = device.staging(self._affinities.shape)
        self._event = device.event()

    def affinities(self, start: int) -> npt.NDArray[np.uint8]:
        """Affinities (3, z, y, x) uint8 of the block at a section, valid until the next call.

        Raises:
            GeometryError: the block begins below the sections that are held.
        """
        runner, device = self._runner, self._runner.device
        placement = self._slots.place(start)
        move_sections(runner, placement)
        for first, slot in placement.calls:
            # The staging memory is free once the copy before is done.
            device.synchronise(self._event)
            np.copyto(self._gray_staging, self._read(first, self._length))
            device.upload(self._gray, self._gray_staging, runner.stream)
            device.record(self._event, runner.stream)
            load_sections(runner, self._gray, slot)
        decode_block(runner, placement.slot, self._affinities)
        device.download(self._affinities_staging, self._affinities, runner.stream)
        device.record(self._event, runner.stream)
        device.synchronise(self._event)
        return self._affinities_staging


def move_sections(runner: Runner, placement: Placement) -> None:
    """Queue the move of a placement, if it has one."""
    if placement.move is not None:
        source, target, count = placement.move
        runner.device.call(runner.stream, lambda: runner.move(source, target, count), "encode")


def load_sections(runner: Runner, gray: Buffer, slot: int) -> None:
    """Queue a call of `load`, and of `encode` where the network has an encoder."""
    runner.device.call(runner.stream, lambda: runner.load(gray, slot), "upload")
    if runner.sections:
        runner.device.call(runner.stream, lambda: runner.encode(slot), "encode")


def decode_block(runner: Runner, slot: int, affinities: Buffer) -> None:
    """Queue a call of `decode`."""
    runner.device.call(runner.stream, lambda: runner.decode(slot, affinities), "decode")


def run_block(runner: Runner, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Affinities (3, z, y, x) uint8 of one block (z, y, x) on its own."""
    return Column(runner, len(block), lambda first, count: block[first : first + count]).affinities(0).copy()


def warm_up(runner: Runner) -> None:
    """On a GPU, run one block of noise: what is prepared at the first call, and recorded, is not timed with the rest.

    On a CPU a block takes longer than anything that is prepared for it.
    """
    if runner.device.kind == "host":
        return
    run_block(runner, np.random.default_rng(0).integers(0, 256, runner.patch, dtype=np.uint8))
