"""What `fgnet-run --dry-run` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fgnet.cli.console import print_json, print_renderable, print_text

if TYPE_CHECKING:
    from fgnet.engine.bundle import Bundle
    from fgnet.engine.network_grid import NetworkGrid
    from fgnet.engine.run_options import RunOptions
    from fgnet.volumes.reading import Volume

_STAGING = ("staging", "finished_chunk", "column")


def print_plan(
    volume: Volume,
    mask: Volume | None,
    bundle: Bundle,
    options: RunOptions,
    *,
    grid: NetworkGrid | None,
    shares: int,
    as_json: bool,
) -> None:
    """Plan a run and print what it will do and take; nothing is written.

    With a grid of the network's own, the plan is of that, and what is written is of the volume's. The mask is read, to
    count the blocks that it leaves; whatever else is said is of all blocks.

    Raises:
        FGNetError: what the run itself would refuse before it starts.
    """
    from fgnet.engine.pipeline import plan_run
    from fgnet.engine.rescaled_streaming import plan_network
    from fgnet.engine.run_continuation import refuse_outputs
    from fgnet.engine.run_estimate import blockwise_bytes, decoded_again, estimate, section_cache_bytes
    from fgnet.engine.run_mask import RunMask, blocks_left
    from fgnet.volumes.geometry import as_triple

    tissue = None if mask is None else RunMask(mask, as_triple(volume.shape, "shape"))
    refuse_outputs(options, volume, mask, rescales=grid is not None)
    source, region = volume, (options.box or volume.box).shape
    written, voxel_bytes = (options.box or volume.box).size, float(volume.dtype.itemsize)
    if grid is None:
        plan = plan_run(volume, bundle.manifest.patch, options, shares=shares)
    else:
        voxel_bytes *= math.prod(grid.rescaling(volume).factors)
        volume, _, plan = plan_network(volume, grid, bundle.manifest.patch, options, shares=shares)
        if mask is not None:
            tissue = RunMask(grid.tissue(mask, source), plan.grid.volume)
    left = None if tissue is None else blocks_left(tissue, plan)
    figures = estimate(
        plan,
        sections=bundle.manifest.sections if bundle.manifest.graphs[0].encoder else 0,
        chunks=volume.chunks,
        voxel_bytes=voxel_bytes,
        waterz=options.decoder == "waterz",
        written=written,
        section_cache=section_cache_bytes(source, plan),
        blockwise=blockwise_bytes(region, options),
    )
    again = decoded_again(source, plan)
    if as_json:
        scale = {} if grid is None else {"network_voxel_size": list(grid.voxel_size)}
        masked = {} if left is None else {"blocks_with_tissue": left}
        print_json({"plan": plan.to_dict(), **scale, **masked, **figures, "warning": again})
        return
    print_renderable(_table(plan.to_dict(), figures, left))
    if again is not None:
        print_text(f"warning: {again}")


def _table(plan: dict[str, Any], figures: dict[str, Any], left: int | None) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    work, host, device = figures["work"], figures["host_memory"], figures["device_memory"]
    repeated = plan["blocks"] / plan["blocks_without_tiles"] - 1
    low, high = host["waterz_bytes"]
    rows = [
        ("region", plan["region"], f"of {_product(plan['volume'])} voxels (z, y, x)"),
        ("blocks", f"{plan['blocks']:,}", f"of {_product(plan['patch'])}, stride {_product(plan['stride'])}"),
        ("tiles", f"{plan['tiles']:,}", f"of {_product(plan['tile'])}, {repeated:.1%} of the blocks run twice"),
        ("columns", f"{work['columns']:,}", "z before x before y; each section of a column is encoded once"),
        ("sections encoded", f"{work['sections_encoded']:,}", f"{_product(plan['patch'][1:])} each"),
        ("predictions per voxel", f"{work['times_each_voxel_is_predicted']}", plan["blending"]),
        ("output chunks", f"{plan['chunks']:,}", f"of {_product(plan['chunk'])}, each written once"),
        ("decoded from the input", _bytes(work["bytes_decoded_from_input"]), "whole chunks, once for each column"),
        ("affinities", _bytes(work["bytes_of_affinities"]), "before compression"),
        ("sums of unfinished chunks", _bytes(device["sum_bytes"]), "memory of the device, at most"),
        ("blocks in flight", _bytes(device["block_bytes"] + device["finished_chunk_bytes"]), "memory of the device"),
        ("staging", _bytes(sum(host[f"{name}_bytes"] for name in _STAGING)), "memory of the host"),
    ]
    if left is not None:
        rows.insert(2, ("blocks with tissue", f"{left:,}", "by the mask; all else is said of all blocks"))
    if kept := host["section_cache_bytes"]:
        rows.append(
            ("sections kept", _bytes(kept), "memory of the host, of each process that reads; decoded as a whole")
        )
    if high:
        rows.append(("waterz", f"{_bytes(low)} to {_bytes(high)}", "memory of the host, for the whole region at once"))
    low, high = host["blockwise_bytes"]
    if high:
        rows.append(
            ("decoding", f"{_bytes(low)} to {_bytes(high)}", "memory of the host, a block for each thread or worker")
        )
    rows.append(
        ("network and libraries", "not counted", "for nano on a CPU 0.6 to 1.3 GiB of each process, by backend")
    )
    for row in rows:
        table.add_row(*row)
    return table


def _product(values: list[int]) -> str:
    return " x ".join(map(str, values))


def _bytes(count: int) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"
