"""Ways from volume to segmentation, gone in turn; one that fails is left out from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fgnet.benchmarks.pipeline_run import Decoding, Measured, Task, run_way
from fgnet.benchmarks.pipeline_ways import LeftOut, Way
from fgnet.volumes.errors import BackendError


class Rounds:
    """The ways, and what was measured of each.

    Args:
        ways: to be gone; the first one of fgnet-run must not fail.
        left_out: takes those that fail.
        folder: for their outputs.
        say: told how far it is.

    Attributes:
        measured: of each way that did not fail, all of its rounds.
    """

    def __init__(self, ways: Sequence[Way], left_out: list[LeftOut], folder: Path, say: Callable[[str], None]) -> None:
        self.measured: dict[Way, list[Measured]] = {way: [] for way in ways}
        self._first = next(way for way in ways if way.kind == "fgnet-run")
        self._left_out, self._say = left_out, say
        self._outputs = {way: folder / f"{number}.zarr" for number, way in enumerate(ways)}

    def output(self, way: Way) -> Path:
        """Where the last segmentation of a way lies."""
        return self._outputs[way]

    @property
    def reference(self) -> Way | None:
        """The paper's way as it comes, if nothing went wrong with it."""
        return next((way for way in self.measured if way.is_reference), None)

    def warm_up(self, task: Task) -> Decoding:
        """Segment a block in every way, unmeasured.

        Kernels are compiled once per installation, and libraries read from the disk once in a while: neither is a part
        of what a way takes.

        Args:
            task: whose volume is the block.

        Returns:
            How fgnet-run decoded it by waterz, which PyTorch's ways are to do too; else what the task says.

        Raises:
            BackendError: the first way of fgnet-run failed.
        """
        decoding = task.decoding
        for way in [self._first, *(way for way in self.measured if way != self._first)]:
            if way.keeps_memory and any(way.kind == other.kind for other in self.measured if not other.keeps_memory):
                continue  # the same program, which is warm
            self._say(f"one block to warm up: {way.name}")
            measured = self._go(way, replace(task, decoding=decoding))
            if measured is not None and way == self._first:
                decoding = Decoding.of_run(measured.decoding, task.bundle)
        return decoding

    def once(self, task: Task, title: str) -> None:
        """Go every way.

        Raises:
            BackendError: the first way of fgnet-run failed.
        """
        for way in list(self.measured):
            if (measured := self._go(way, task)) is not None:
                self.measured[way].append(measured)
                self._say(f"{title}: {way.name}: {measured.seconds:.1f} s")

    def _go(self, way: Way, task: Task) -> Measured | None:
        try:
            return run_way(way, task, self._outputs[way])
        except BackendError as error:
            if way == self._first:
                raise
            self._say(f"{way.name} is left out: {error.what}")
            del self.measured[way]
            self._left_out.append(LeftOut(way.name, error.what))
            return None
