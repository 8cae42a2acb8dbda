"""How many output voxels a second does each way of running a bundle give, on the same blocks, measured in turn?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.engine_results import LAST_ROUNDS, EngineBenchmark, FailedRow, settled
from fgnet.benchmarks.machine import available_memory, describe_machine
from fgnet.benchmarks.nvidia_driver import gpus
from fgnet.benchmarks.open_row import OpenRow, results_of
from fgnet.benchmarks.roofline import find_roofline
from fgnet.benchmarks.row_process import RowProcess
from fgnet.benchmarks.rows import Row, RowPlan
from fgnet.engine.bundle import Bundle
from fgnet.volumes.errors import BackendError

Say = Callable[[str], None]

# A library's threads go on looking for work for a while after a call, up to 200 ms by their defaults: time that would
# be taken from the row that comes next.
_REST_SECONDS = 0.3

# Rows that keep memory, or compile, take up to half as much again as eager PyTorch.
_MEMORY_MARGIN = 1.5


@dataclass(frozen=True)
class EngineOptions:
    """How to measure.

    Attributes:
        blocks: of one window, which is timed as a whole.
        repeats: most windows of a row in each of its processes.
        launches: processes of each row, one after the other: what the first one found of the machine, of memory most of
            all, is found anew by the next.
        agreement: once the last three windows of every row agree to this share, its processes run no more rounds.
        threads: of one call on the CPU; each backend's own choice by default.
        apart: whether only one row is held in memory at a time, beside eager FP32; as memory demands by default.
        roofline: whether the device's peaks are measured and the graphs counted first.
    """

    blocks: int = 4
    repeats: int = 7
    launches: int = 1
    agreement: float = 0.05
    threads: int | None = None
    apart: bool | None = None
    roofline: bool = True


@dataclass(frozen=True)
class _Session:
    """What all rows of one measurement share."""

    bundle: Bundle
    options: EngineOptions
    folder: Path
    say: Say
    failed: list[FailedRow]

    @property
    def gray(self) -> Path:
        """The file of the column."""
        return self.folder / "gray.npy"


def measure_engines(
    bundle: Bundle,
    gray: npt.NDArray[np.uint8],
    plan: RowPlan,
    options: EngineOptions,
    *,
    source: str,
    say: Say = lambda _: None,
) -> EngineBenchmark:
    """Measure rows in turn, each in a process of its own.

    A window is so many consecutive blocks of one column in its steady state: our backends encode the sections that are
    new and decode the block, PyTorch's own ways run the whole network on every block. A round is one window of each
    row, so that what else a machine does hits all rows alike. The output of a block is the product of the stride. What
    rows tell of their start is that of their first process, before which nothing was compiled.

    Args:
        bundle: the model, its files checked.
        gray: (z, y, x) uint8 of as many sections as the blocks of a window advance; a ring, so that every window has
            the same blocks.
        plan: the rows.
        options: how.
        source: of the gray, in words.
        say: told how far it is.

    Raises:
        BackendError: no row could be measured; with the reasons.
    """
    machine = describe_machine()
    roofline = None
    if options.roofline:
        say("matrix products and copies, for the peaks of the device")
        roofline = find_roofline(bundle, plan.rows, options.threads)
    with tempfile.TemporaryDirectory(prefix="fgnet-bench-") as folder:
        session = _Session(bundle, options, Path(folder), say, [])
        np.save(session.gray, gray)
        measured, apart = _measure(session, plan.rows)
    if roofline is not None:
        say("matrix products and copies again")
        roofline = roofline.measured_again(plan.rows, options.threads)
    if not measured:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in session.failed)
        raise BackendError(f"no row could be measured ({reasons})", where=bundle.path)
    missing = next(
        (f"{row.name} failed: {row.reason}" for row in session.failed if row.name == plan.rows[0].name), None
    )
    return EngineBenchmark(
        machine=machine,
        model=bundle.manifest.name,
        patch=bundle.manifest.patch,
        stride=bundle.manifest.stride,
        blocks=options.blocks,
        launches=options.launches,
        gray=source,
        apart=apart,
        results=results_of(measured, bundle.manifest, options.blocks, options.agreement, roofline),
        failed=tuple(session.failed),
        no_reference=plan.no_reference or (missing if plan.rows[0].is_reference else None),
        roofline=roofline,
        energy=measured[0].told["energy"],
    )


def _measure(session: _Session, rows: Sequence[Row]) -> tuple[list[OpenRow], bool]:
    """The rows that could be measured, and whether they were measured apart."""
    with ExitStack() as held:
        waiting = iter(rows)
        # The first row, eager FP32 if it runs at all, shows how much memory a row takes.
        first = next(_opened(session, waiting, held), None)
        if first is None:
            return [], False
        rest = list(waiting)
        apart = session.options.apart
        if apart is None:
            apart = _memory_is_short(first, len(rest))
            if apart:
                session.say("memory may be too small for all rows at once, so they are measured one by one")
        if not apart:
            every = [first, *_opened(session, rest, held)]
            _run_launches(session, every, held)
            return [row for row in every if not row.failed], False
        every = [first]
        if not first.row.is_reference or not rest:
            _run_launches(session, [first], held)
            first.process.close()
        for row in rest:
            with ExitStack() as own:
                for opened in _opened(session, [row], own):
                    every.append(opened)
                    beside = [first] if first.row.is_reference and not first.failed else []
                    _run_launches(session, [*beside, opened], held)
                    opened.process.close()
        # Where no other row could be opened, the reference has not run yet.
        if not first.windows and not first.failed:
            _run_launches(session, [first], held)
        return [row for row in every if not row.failed], True


def _opened(session: _Session, rows: Iterable[Row], held: ExitStack) -> Iterator[OpenRow]:
    """Open rows one after the other; those that cannot be opened are noted as failed."""
    for row in rows:
        session.say(f"{row.name}: opening")
        folder = Path(tempfile.mkdtemp(dir=session.folder))
        before = _device_memory(row)
        process = held.enter_context(RowProcess(row, folder))
        try:
            told = process.open(session.bundle, session.gray, session.options.threads)
        except BackendError as error:
            _note_failure(session, row, error)
            process.close()
            continue
        session.say(f"{row.name}: ready after {told['open_seconds'] + told['warm_up_seconds']:.1f} s")
        after = _device_memory(row)
        taken = None if before is None or after is None else max(after - before, 0)
        yield OpenRow(row, process, told, taken, np.load(process.affinities))


def _run_launches(session: _Session, rows: Sequence[OpenRow], held: ExitStack) -> None:
    """Run the rounds of some rows in their processes, then in new ones."""
    asked = [row for row in rows if not row.row.is_reference] or rows
    _run_rounds(session, rows)
    for number in range(2, session.options.launches + 1):
        if all(row.failed for row in asked):
            return
        session.say(f"processes once more, {number} of {session.options.launches}")
        # All are ended before one begins, so that they start where the first ones did: on a machine without them.
        for row in rows:
            row.process.close()
        for row in rows:
            if not row.failed:
                _launch_again(session, row, held)
        _run_rounds(session, [row for row in rows if not row.failed])


def _launch_again(session: _Session, row: OpenRow, held: ExitStack) -> None:
    # In the same folder: what was compiled is not compiled again.
    row.process = held.enter_context(RowProcess(row.row, row.process.folder))
    try:
        row.process.open(session.bundle, session.gray, session.options.threads)
    except BackendError as error:
        _note_failure(session, row.row, error)
        row.process.close()
        row.failed = True


def _run_rounds(session: _Session, rows: Sequence[OpenRow]) -> None:
    """Time a window of each row in turn until all agree with their last ones, or the most rounds were run."""
    options, alive = session.options, list(rows)
    for number in range(1, options.repeats + 1):
        session.say(f"round {number} of at most {options.repeats}")
        reference = None
        for row in list(alive):
            time.sleep(_REST_SECONDS)
            try:
                window = row.process.window(options.blocks)
            except BackendError as error:
                _note_failure(session, row.row, error)
                row.failed = True
                alive.remove(row)
                continue
            row.windows.append(window)
            if row.row.is_reference:
                reference = float(window["seconds"])
            if reference is not None:
                row.beside.append(reference)
        if number >= LAST_ROUNDS and all(settled(row.seconds, options.agreement) for row in alive):
            return


def _note_failure(session: _Session, row: Row, error: BackendError) -> None:
    reason = error.what if error.where in (None, row.name) else str(error)
    session.failed.append(FailedRow(row.name, row.backend, row.precision, row.device, reason))
    session.say(f"{row.name}: failed, {reason}")


def _memory_is_short(first: OpenRow, others: int) -> bool:
    """Whether so many other rows might not fit beside the first one, which shows what a row needs."""
    free, needed = available_memory(), first.told["peak_memory_bytes"]
    if free is not None and needed is not None and others * int(needed) * _MEMORY_MARGIN > free:
        return True
    found = gpus() if first.row.device == "cuda" else ()
    # Programs that are not told otherwise run on the first GPU.
    return bool(found and others * (first.device_memory or 0) > found[0].memory_bytes - found[0].used_bytes)


def _device_memory(row: Row) -> int | None:
    """Bytes of GPU memory in use, by whatever program."""
    return sum(gpu.used_bytes for gpu in gpus()) if row.device == "cuda" else None
