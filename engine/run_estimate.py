"""What a plan will take: work by stage, bytes read and written, and memory, reckoned before anything runs."""

from __future__ import annotations

import math
import os
from typing import Any

from fgnet.engine.columns import calls_of
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.runner import call_length
from fgnet.postproc.blockwise_plan import BlockPlan, BlockwiseOptions, fitting_block
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import Volume
from fgnet.volumes.section_cache import BUDGET

# Of waterz 0.10.1 (docs/decoding.md): bytes per voxel, its float32 copy of the affinities included.
_WATERZ = (30, 49)
# Of a voxel of a block (`BlockwiseOptions`); sections take half of it (`fitting_block`). Recorded runs of two workers,
# their libraries included, lie within: 0.77 GiB of sections, 0.83 in 3-D, for 128 x 1024 x 1024 voxels.
_BLOCKWISE = {"sections": (20, 45), "affinity": (40, 90)}
_STAGING_AHEAD, _INBOXES, _OUTBOXES, _OUTPUT_SLOTS = 6, 3, 2, 3


def estimate(
    plan: RunPlan,
    *,
    sections: int,
    chunks: tuple[int, ...] | None,
    voxel_bytes: float,
    waterz: bool,
    written: int | None = None,
    section_cache: int = 0,
    blockwise: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Work and memory of a plan, as plain data.

    Args:
        plan: what will be done.
        sections: of one call of the encoder; 0 without one.
        chunks: (z, y, x) of the input, if its format has any.
        voxel_bytes: of the input for a voxel of the network's grid: of one voxel, where they are the same.
        waterz: whether waterz makes a segmentation of the whole region.
        written: voxels of the output, where they are others than the plan's.
        section_cache: see `section_cache_bytes`.
        blockwise: see `blockwise_bytes`.

    Returns:
        Work, and memory of the host and of the device for each process. The network's own memory is not in it: what a
        backend takes to work in is known when it has run.
    """
    grid, depth = plan.grid, plan.grid.patch[0]
    length = call_length(depth, sections)
    columns = calls = 0
    read = 0.0
    for tile in plan.tiles:
        levels, rows, across = grid.covering(tile)
        starts = [grid.starts[0][i] for i in levels]
        needed = calls_of(starts, depth, length, grid.padded[0])
        columns += len(rows) * len(across)
        calls += len(rows) * len(across) * len(needed)
        z = _decoded(needed[0], needed[-1] + length, grid.volume[0], chunks, 0)
        y, x = (
            sum(_decoded(grid.starts[axis][i], grid.starts[axis][i] + grid.patch[axis], grid.volume[axis], chunks, axis)
                for i in places)
            for axis, places in ((1, rows), (2, across))
        )  # fmt: skip
        read += z * y * x * voxel_bytes
    block, section, chunk = math.prod(grid.patch), math.prod(grid.patch[1:]), math.prod(plan.chunk)
    host: dict[str, Any] = {
        "staging_bytes": (-(-depth // length) + _STAGING_AHEAD) * length * section,
        "finished_chunk_bytes": _OUTPUT_SLOTS * 3 * chunk,
        "column_bytes": round(2 * ((chunks[-3] if chunks else 64) + length) * section * voxel_bytes),
    }
    device = {
        "sum_bytes": plan.sum_bytes,
        "block_bytes": _INBOXES * length * section + _OUTBOXES * 3 * block,
        "finished_chunk_bytes": _OUTPUT_SLOTS * 3 * chunk,
    }
    voxels = plan.region.size if written is None else written
    return {
        "work": {
            "columns": columns,
            "sections_encoded": calls * length if sections else 0,
            "blocks_decoded": plan.blocks,
            "times_each_voxel_is_predicted": round(plan.blocks * block / plan.region.size, 2),
            "bytes_decoded_from_input": round(read),
            "bytes_of_affinities": 3 * voxels,
            "bytes_of_segmentation": 8 * voxels if waterz or any(blockwise) else 0,
        },
        "host_memory": {
            **host,
            "section_cache_bytes": section_cache,
            "waterz_bytes": [low * voxels for low in _WATERZ] if waterz else [0, 0],
            "blockwise_bytes": list(blockwise),
        },
        "device_memory": device,
    }


def section_cache_bytes(volume: Volume, plan: RunPlan) -> int:
    """Bytes of decoded sections that a process keeps while it reads; 0 where sections are not kept.

    Args:
        volume: that is read, (z, y, x).
        plan: of the run; its grid may be of other voxels.
    """
    return min(_sections_bytes(volume, plan, plan.region), BUDGET)


def decoded_again(volume: Volume, plan: RunPlan) -> str | None:
    """What to say of a run that decodes the sections of images once for each column of blocks; None of any other.

    Columns go through the same sections one after the other: where these are more than are kept, none is found again.

    Args:
        volume: that is read, (z, y, x).
        plan: of the run; its grid may be of other voxels.
    """
    tile = plan.tile_box(0)
    _, rows, across = plan.grid.covering(tile)
    columns = len(rows) * len(across)
    needed = _sections_bytes(volume, plan, tile)
    if needed <= BUDGET or columns == 1:
        return None
    return (
        f"the decoded sections take {needed / 2**30:.1f} GiB, and {BUDGET / 2**30:.1f} GiB of them are kept: each is"
        f" decoded again for each of {columns} columns of blocks (convert the volume to Zarr, or give a --roi of fewer"
        " sections)"
    )


def _sections_bytes(volume: Volume, plan: RunPlan, box: Box) -> int:
    """Of the sections that blocks over a box need; 0 where sections are not kept."""
    if volume.address.kind not in ("tiff", "sections") or volume.chunks is None:
        return 0
    levels = plan.grid.covering(box)[0]
    starts = [plan.grid.starts[0][i] for i in levels]
    # Whole sections are kept, whatever the region is along y and x.
    share = min((starts[-1] + plan.grid.patch[0] - starts[0]) / plan.grid.volume[0], 1)
    return math.ceil(share * volume.shape[0]) * math.prod(volume.shape[1:]) * volume.dtype.itemsize


def blockwise_bytes(shape: Triple, options: RunOptions) -> tuple[int, int]:
    """Bytes, at least and at most, of the blocks that are decoded at a time; 0 without the blockwise decoder.

    What reaches over blocks comes on top: up to `options.graph_memory`, before blocks are put together in groups.

    Args:
        shape: (z, y, x) of the region.
        options: of the run.
    """
    if options.decoder != "blockwise":
        return 0, 0
    watershed = WatershedOptions(flow=options.decoding.fragments)
    plan = BlockPlan(shape, BlockwiseOptions(block=fitting_block(shape, watershed), watershed=watershed))
    workers = options.crew.workers if options.crew else options.threads or len(os.sched_getaffinity(0))
    voxels = min(workers, math.prod(plan.counts)) * plan.box((0, 0, 0)).size
    low, high = _BLOCKWISE[watershed.flow]
    return low * voxels, high * voxels


def _decoded(first: int, stop: int, extent: int, chunks: tuple[int, ...] | None, axis: int) -> int:
    """Voxels along an axis that are decoded to get at some of them: whole chunks."""
    stop = min(stop, extent)
    if chunks is None:
        return stop - first
    step = chunks[axis - 3]
    return min(-(-stop // step) * step, extent) - first // step * step
