"""Affinities of a volume by a network that sees it at another voxel size, in two steps that both go on after a kill.

The network's grid is streamed as any other volume is, into a store of its own beside the output, with a journal of its
own. Then the output's chunks are made of it, one by one, and noted in the journal of the run. So the output has the
voxels of the input, and what follows (masks, decoders, a kill) is as without rescaling.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fgnet.engine.network_grid import NetworkGrid
from fgnet.engine.pipeline import Streamer, StreamJob, plan_run
from fgnet.engine.run_continuation import open_run
from fgnet.engine.run_identity import identity
from fgnet.engine.run_journal import RunJournal
from fgnet.engine.run_mask import RunMask
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import JournaledSink, network_store
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.streaming import RunStoppedError, StreamState
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.output_store import explained
from fgnet.volumes.reading import Volume
from fgnet.volumes.removal import remove_folder


def plan_network(
    volume: Volume, grid: NetworkGrid, patch: Triple, options: RunOptions, *, shares: int = 1
) -> tuple[Volume, RunOptions, RunPlan]:
    """The run on the network's grid that a run needs.

    Args:
        volume: of the run.
        grid: that the network sees.
        patch: (z, y, x) voxels of a block.
        options: of the run.
        shares: processes that are to share the tiles.

    Returns:
        The volume as the network sees it, options and plan.

    Raises:
        VolumeError, GeometryError: as for `pipeline.plan_run` and `NetworkGrid.gray`.
    """
    view = grid.gray(volume)
    asked = replace(
        options,
        output=network_store(options.output),
        decoder="none",
        box=grid.rescaling(volume).network_box(options.box or volume.box),
        rescale=None,
        overwrite=not options.resume,
        more_thresholds=(),
        crew=None,
        graph=None,
        graph_threshold=None,
    )
    return view, asked, plan_run(view, patch, asked, shares=shares)


class RescaledStreamer:
    """Lets another streamer work on the network's grid, and brings its affinities back to the volume's.

    Args:
        streamer: makes affinities.
        grid: that it works on.
    """

    shares = 1

    def __init__(self, streamer: Streamer, grid: NetworkGrid) -> None:
        self.patch = streamer.patch
        self.identity = {**streamer.identity, "network voxel size": list(grid.voxel_size)}
        self._streamer, self._grid = streamer, grid

    def __call__(self, job: StreamJob) -> StreamState:
        """Make all chunks that the journal has not."""
        missing = [index for index in job.plan.chunks_of(job.plan.region) if index not in job.journal.done]
        store = network_store(job.options.output)
        with RunJournal(store, anew=not job.options.resume) as journal:
            state = self._stream(job, journal, missing) if missing else StreamState()
            with explained(store):
                remove_folder(store)
            journal.remove()
        return state

    def _stream(self, job: StreamJob, journal: RunJournal, missing: list[Triple]) -> StreamState:
        view, options, plan = plan_network(
            job.volume, self._grid, self.patch, job.options, shares=self._streamer.shares
        )
        near = None if job.mask is None else self._grid.tissue(job.mask, job.volume)
        named = identity(
            plan,
            view,
            rescale=self._grid.gray_range,
            mask=near,
            network=self.identity,
            zarr_format=options.zarr_format,
        )
        outputs = open_run(journal, plan, view, options, named=named, wanted=options.wanted)
        inner = replace(
            job, plan=plan, volume=view, mask=near, options=options, outputs=outputs, journal=journal, grid=self._grid
        )
        state = self._streamer(inner)
        self._bring_back(job, missing, outputs.affinities, plan.region, state)
        return state

    def _bring_back(
        self, job: StreamJob, missing: list[Triple], source: MultiscaleWriter, held: Box, state: StreamState
    ) -> None:
        """Write the chunks of the output that are missing."""
        rescaling = self._grid.rescaling(job.volume)
        origin = [-first for first in held.start]
        tissue = None if job.mask is None else RunMask(job.mask, job.plan.grid.volume)
        sink = JournaledSink(job.outputs.affinities, job.journal, job.plan.region, tissue)
        for index in missing:
            if job.stop():
                raise RunStoppedError("stopped on request; what is finished is kept", remedy="--resume continues it")
            began = time.perf_counter()
            box = job.plan.chunk_box(index)
            sink.write(index, box, rescaling.affinities(box, lambda needed: source.read(needed.shift(origin))))
            seconds = time.perf_counter() - began
            state.seconds += seconds
            state.busy["write"] = state.busy.get("write", 0.0) + seconds
            job.progress(state)
