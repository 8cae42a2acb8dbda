"""The pipeline from gray to finished chunks: reading, copies, network, blending and writing, side by side.

One thread (the caller's) queues the work of blocks on the device's streams and never waits for a block but when two are
under way already. What may start when is said by events alone, so the same code runs on the host, whose streams are
threads, and on a GPU. See docs/streaming.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from fgnet.engine.chunk_sums import ChunkSums, SumPool
from fgnet.engine.chunk_writer import ChunkSink, ChunkWriter
from fgnet.engine.columns import SectionSlots, calls_of, decode_block, load_sections, move_sections
from fgnet.engine.cuda_memory import not_enough
from fgnet.engine.device import Blender, Event, Stage, Stream
from fgnet.engine.gray_reader import GrayReader, GraySource, Sections
from fgnet.engine.run_mask import RunMask
from fgnet.engine.run_plan import ColumnPlan, RunPlan
from fgnet.engine.runner import Runner, call_length
from fgnet.engine.stage_times import StageTimes
from fgnet.postproc.blending import WeightTotals, make_weights
from fgnet.volumes.errors import BackendError, FGNetError
from fgnet.volumes.geometry import Box, Triple

# Blocks whose work is queued: one runs, the next one is ready.
_BLOCKS = 2
_INBOXES = 3


class RunStoppedError(FGNetError):
    """The run was asked to stop, and did so after the block in hand; finished chunks are kept."""


@dataclass
class StreamState:
    """How a run is doing; read by displays while it goes on.

    Attributes:
        blocks: that the run will do.
        done: of them, those that are computed or skipped.
        skipped: of them, those without tissue.
        chunk_voxels: of chunks that were written.
        queues: name -> (sum of the lengths seen, times looked, longest), for the mean length of each queue.
        busy: seconds that each stage worked.
        seconds: since the start.
    """

    blocks: int = 0
    done: int = 0
    skipped: int = 0
    chunk_voxels: int = 0
    queues: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    busy: dict[Stage, float] = field(default_factory=dict)
    seconds: float = 0.0

    def saw(self, queue: str, length: int) -> None:
        """Count how long a queue is now."""
        total, times, longest = self.queues.get(queue, (0, 0, 0))
        self.queues[queue] = (total + length, times + 1, max(longest, length))


@dataclass(frozen=True)
class StreamOptions:
    """What a run is told beside its plan.

    Attributes:
        mask: where the tissue is; everywhere by default.
        done: indices of chunks that are there already.
        tiles: which of the plan's tiles to do; all by default.
        stop: asked before each block whether to stop.
        progress: called after each block.
    """

    mask: RunMask | None = None
    done: Collection[Triple] = ()
    tiles: Sequence[int] | None = None
    stop: Callable[[], bool] = lambda: False
    progress: Callable[[StreamState], None] = lambda _: None


def stream(
    plan: RunPlan, source: GraySource, runner: Runner, sink: ChunkSink, options: StreamOptions | None = None
) -> StreamState:
    """Compute the chunks of a plan.

    Args:
        plan: what to do.
        source: gray.
        runner: the network.
        sink: takes each chunk once, as soon as it is finished.
        options: what else there is to say.

    Returns:
        What was done.

    Raises:
        VolumeError: gray that cannot be read.
        BackendError: the network failed; the block is named.
        OutputError: a chunk that cannot be written.
        RunStoppedError: `options.stop` said so.
    """
    return _Stream(plan, source, runner, sink, options or StreamOptions()).run()


class _Stream:
    """The memory, streams and threads of one run."""

    def __init__(
        self, plan: RunPlan, source: GraySource, runner: Runner, sink: ChunkSink, options: StreamOptions
    ) -> None:
        self.plan, self.runner, self.options = plan, runner, options
        self.device = device = runner.device
        self.state, self.times = StreamState(), StageTimes()
        self._began, self._started = device.busy(), time.perf_counter()
        self.length = call_length(runner.patch[0], runner.sections)
        self.extent = plan.grid.padded[0]
        self._done = frozenset(options.done)
        self._chosen = range(plan.tile_count) if options.tiles is None else options.tiles
        if self._done or options.mask is not None or options.tiles is not None:
            columns = (column for _, columns in self._tiles() for column in columns)
            self.state.blocks = sum(len(column.starts) for column in columns)
        else:
            self.state.blocks = plan.blocks
        weights = make_weights(plan.blending, runner.patch)
        self.blender: Blender = device.blender(weights, WeightTotals.of(weights, plan.grid))
        free = device.free_bytes()
        if free is not None and plan.sum_bytes > free:
            raise not_enough(plan.sum_bytes, free)
        self.pool = SumPool(device, plan.chunk)
        self.gray_stream: Stream = device.stream("gray")
        self.blend_stream: Stream = device.stream("blend")
        section = (self.length, *runner.patch[1:])
        self.inboxes = deque((device.empty(section), device.event(), device.event()) for _ in range(_INBOXES))
        self.outboxes = deque(
            (device.empty((3, *runner.patch)), device.event(), device.event()) for _ in range(_BLOCKS)
        )
        self.under_way: deque[tuple[Box, Event]] = deque()
        self.source, self.sink = source, sink

    def run(self) -> StreamState:
        """Do all tiles."""
        with ExitStack() as cleanup:
            writer = ChunkWriter(self.sink, self.device, self.plan.chunk, self.times, self._wrote)
            failed = True
            cleanup.callback(lambda: writer.close(failed=failed))
            # The reader is ahead, by a tile where it has to be: it goes over the columns by itself.
            columns = (column for _, columns in self._tiles() for column in columns)
            reader = GrayReader(self.source, self.runner.patch, self.length, columns, self.device, self.times)
            cleanup.callback(reader.close)
            try:
                self._run_tiles(reader, writer)
            except RunStoppedError:
                raise
            except Exception:
                # Others may meet what failed in a block before this thread does: this names the block.
                self._wait(0)
                raise
            failed = False
        self._look()
        return self.state

    def _run_tiles(self, reader: GrayReader, writer: ChunkWriter) -> None:
        for wanted, columns in self._tiles():
            sums = ChunkSums(self.plan, wanted, columns, self.pool)
            for index in sums.untouched():
                writer.put(index, self.plan.chunk_box(index), None)
            for column in columns:
                self._column(column, reader, writer, sums)
        self._wait(0)

    def _tiles(self) -> Iterator[tuple[list[Triple], list[ColumnPlan]]]:
        """Chunks to be made and columns of each tile, one tile after the other."""
        for number in self._chosen:
            tile = self.plan.tile_box(number)
            if wanted := [index for index in self.plan.chunks_of(tile) if index not in self._done]:
                yield wanted, list(self._columns(tile, wanted))

    def _columns(self, tile: Box, wanted: Sequence[Triple]) -> Iterator[ColumnPlan]:
        """The columns of a tile, without blocks that reach into no chunk to be made or hold no tissue."""
        if not self._done and self.options.mask is None:
            yield from self.plan.columns_of(tile)
            return
        missing, mask, plan = set(wanted), self.options.mask, self.plan
        for column in plan.columns_of(tile):
            blocks = ((start, plan.block((start, column.y, column.x))) for start in column.starts)
            starts = [start for start, block in blocks if not missing.isdisjoint(plan.chunks_of(block))]
            if starts and mask is not None:
                present = mask.column(column, self.runner.patch)
                starts = [start for start in starts if present(start)]
            if starts:
                yield ColumnPlan(column.y, column.x, tuple(starts))

    def _column(self, column: ColumnPlan, reader: GrayReader, writer: ChunkWriter, sums: ChunkSums) -> None:
        """Do the blocks of a column; what was read for them goes back to the reader."""
        slots = SectionSlots(self.runner.patch[0], self.length, self.runner.slots, self.extent)
        held: dict[int, Sections] = {}
        seen = _GrayRange()
        unread = deque(calls_of(column.starts, self.runner.patch[0], self.length, self.extent))
        for start in column.starts:
            if self.options.stop():
                self._wait(0)
                raise RunStoppedError("stopped on request; what is finished is kept", remedy="--resume continues it")
            needed = calls_of([start], self.runner.patch[0], self.length, self.extent)
            for first in [first for first in held if first < needed[0]]:
                reader.release(held.pop(first))
            while unread and unread[0] <= needed[-1]:
                self.state.saw("read", reader.ahead)
                sections = reader.next()
                held[unread.popleft()] = sections
                seen.add(sections)
            block = self.plan.block((start, column.y, column.x))
            if seen.constant(start, start + self.runner.patch[0]):
                self.state.skipped += 1
            else:
                self._block(block, slots, held, reader, sums)
            self._finish(block, writer, sums)
            self.state.done += 1
            self._look()
            self.options.progress(self.state)
        for sections in held.values():
            reader.release(sections)

    def _block(
        self, block: Box, slots: SectionSlots, held: dict[int, Sections], reader: GrayReader, sums: ChunkSums
    ) -> None:
        """Queue the work of a block, once the one before the last is through."""
        self._wait(_BLOCKS - 1)
        try:
            self._queue(block, slots, held, reader, sums)
        except Exception:
            # On a CPU what is queued fails later, and may be met here: if it is of an earlier block, this names that.
            self._wait(0)
            with self._named(block):
                raise

    def _queue(
        self, block: Box, slots: SectionSlots, held: dict[int, Sections], reader: GrayReader, sums: ChunkSums
    ) -> None:
        device, runner = self.device, self.runner
        placement = slots.place(block.start[0])
        move_sections(runner, placement)
        for first, slot in placement.calls:
            sections = held.pop(first)
            inbox, uploaded, emptied = self.inboxes[0]
            self.inboxes.rotate(-1)
            device.wait(self.gray_stream, emptied)
            device.upload(inbox, sections.gray, self.gray_stream)
            device.record(uploaded, self.gray_stream)
            device.record(sections.free, self.gray_stream)
            reader.release(sections)
            device.wait(runner.stream, uploaded)
            load_sections(runner, inbox, slot)
            device.record(emptied, runner.stream)
        affinities, decoded, blended = self.outboxes[0]
        self.outboxes.rotate(-1)
        device.wait(runner.stream, blended)
        decode_block(runner, placement.slot, affinities)
        device.record(decoded, runner.stream)
        device.wait(self.blend_stream, decoded)
        for index in sums.reached(block):
            self.blender.accumulate(
                sums.sums(index), self.plan.chunk_box(index), affinities, block.start, self.blend_stream
            )
        device.record(blended, self.blend_stream)
        self.under_way.append((block, blended))

    def _finish(self, block: Box, writer: ChunkWriter, sums: ChunkSums) -> None:
        """Hand over the chunks that were waiting for this block only."""
        device = self.device
        for index, chunk_sums in sums.count(block):
            box = self.plan.chunk_box(index)
            self.state.saw("write", writer.waiting)
            if chunk_sums is None:
                writer.put(index, box, None)
                continue
            slot = writer.slot()
            self.blender.normalise(chunk_sums, box, slot.buffer, self.blend_stream)
            device.download(slot.staging, slot.buffer, self.blend_stream)
            device.record(slot.ready, self.blend_stream)
            self.pool.give_back(chunk_sums)
            writer.put(index, box, slot)

    def _wait(self, blocks: int) -> None:
        """Wait until at most so many blocks are under way."""
        self.state.saw("network", len(self.under_way))
        while len(self.under_way) > blocks:
            block, blended = self.under_way.popleft()
            try:
                with self._named(block):
                    self.device.synchronise(blended)
            except Exception:
                self.under_way.clear()
                raise

    @contextmanager
    def _named(self, block: Box) -> Iterator[None]:
        """Lets what fails inside say in which block it did."""
        try:
            yield
        except FGNetError as error:
            error.add_note(f"in the block {block}")
            raise
        except MemoryError:
            raise
        except Exception as error:  # runtimes of networks raise whatever they like
            raise BackendError(
                f"the network failed in the block {block}: {error}",
                where=f"backend {self.runner.name}",
                remedy="try another --backend; finished chunks are kept, and --resume goes on from them",
            ) from error

    def _look(self) -> None:
        """Bring times up to date."""
        busy = {stage: seconds - self._began[stage] for stage, seconds in self.device.busy().items()}
        self.state.busy = self.times.merged(busy)
        self.state.seconds = time.perf_counter() - self._started

    def _wrote(self, voxels: int) -> None:
        self.state.chunk_voxels += voxels


class _GrayRange:
    """Tells of a column's blocks whether they are of one gray value: then there is no tissue, and affinities are 0."""

    def __init__(self) -> None:
        self._sections: dict[int, tuple[int, int]] = {}

    def add(self, sections: Sections) -> None:
        """Remember the range of gray of sections that were read."""
        ranges = zip(sections.lowest, sections.highest, strict=True)
        self._sections.update(enumerate(ranges, start=sections.first))

    def constant(self, first: int, stop: int) -> bool:
        """Whether sections first .. stop - 1, which were read, are of one gray value."""
        ranges = [self._sections[section] for section in range(first, stop)]
        return min(low for low, _ in ranges) == max(high for _, high in ranges)
