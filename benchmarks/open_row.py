"""A row while it is measured, and its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.engine_results import RowResult, settled
from fgnet.benchmarks.roofline import Limit, Roofline
from fgnet.benchmarks.row_process import RowProcess
from fgnet.benchmarks.rows import Row
from fgnet.engine.bundle import BundleManifest


@dataclass
class OpenRow:
    """A row that was made ready, and what was measured of it.

    Attributes:
        row: which.
        process: that runs it.
        told: by the process when it was ready.
        device_memory: bytes of the GPU's that it took; None on a CPU.
        affinities: (3, z, y, x) of one block, for comparison.
        windows: what the process told of each.
        beside: the reference's seconds in the same rounds; empty without one.
        failed: whether it failed since.
    """

    row: Row
    process: RowProcess
    told: dict[str, Any]
    device_memory: int | None
    affinities: npt.NDArray[np.uint8]
    windows: list[dict[str, Any]] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    failed: bool = False

    @property
    def seconds(self) -> list[float]:
        """Of each window."""
        return [float(window["seconds"]) for window in self.windows]

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the reference beside it, by the median speeds of both; None without one."""
        if not self.beside:
            return None
        return median(1 / seconds for seconds in self.seconds) / median(1 / seconds for seconds in self.beside)


def results_of(
    rows: Sequence[OpenRow], manifest: BundleManifest, blocks: int, agreement: float, roofline: Roofline | None
) -> tuple[RowResult, ...]:
    """A result for each row, the fastest first.

    Args:
        rows: that were timed.
        manifest: of the bundle that they ran.
        blocks: of a window.
        agreement: share to which the last windows have to agree.
        roofline: what the rows could reach at most.
    """
    reference = next((row for row in rows if row.row.is_reference), None)
    ways = (row for row in rows if row.row.is_eager and row.row.keeps_memory and row.row.batch == 1)
    kept = next((row.ratio for row in ways if row.ratio is not None), None)
    results = [
        _result(
            row, reference, kept, manifest, blocks, agreement, None if roofline is None else roofline.limit(row.row)
        )
        for row in rows
    ]
    return tuple(sorted(results, key=lambda result: -result.voxels_per_second))


def _found_equal(row: Row, manifest: BundleManifest) -> bool | None:
    """What the export found of a way to run the bundle's graphs; PyTorch's own ways are none."""
    reports = [
        one for one in manifest.parity if (one.get("backend"), one.get("precision")) == (row.backend, row.precision)
    ]
    return all(bool(one.get("passed")) for one in reports) if reports and not row.whole else None


def _result(
    opened: OpenRow,
    reference: OpenRow | None,
    kept: float | None,
    manifest: BundleManifest,
    blocks: int,
    agreement: float,
    limit: Limit | None,
) -> RowResult:
    """One row's result; `kept` is the ratio of eager FP32 with memory kept."""
    row, told, voxels = opened.row, opened.told, math.prod(manifest.stride)
    rates = [blocks * voxels / seconds for seconds in opened.seconds]
    middle = median(rates)
    ratio = opened.ratio
    difference = None
    if reference is not None:
        difference = float(np.abs(opened.affinities.astype(np.int16) - reference.affinities).mean()) / 255
    joules = [window["joules"] for window in opened.windows if window["joules"] is not None]
    peaks = [window["peak_memory_bytes"] for window in (told, *opened.windows)]
    return RowResult(
        name=row.name,
        backend=row.backend,
        precision=row.precision,
        device=str(told["device"]),
        version=str(told["version"]),
        threads=told["threads"],
        batch=row.batch,
        voxels_per_second=middle,
        all_voxels_per_second=tuple(rates),
        slowest=min(rates),
        fastest=max(rates),
        spread=(max(rates) - min(rates)) / 2 / middle,
        settled=settled(opened.seconds, agreement),
        windows=len(rates),
        seconds_per_block=voxels / middle,
        ratio=ratio,
        all_ratios=tuple(there / here for there, here in zip(opened.beside, opened.seconds, strict=False)),
        ratio_memory_kept=None if ratio is None or kept is None else ratio / kept,
        mean_difference=difference,
        equal=_found_equal(row, manifest),
        open_seconds=told["open_seconds"],
        warm_up_seconds=told["warm_up_seconds"],
        peak_memory_bytes=None if None in peaks else max(peaks),
        device_memory_bytes=opened.device_memory,
        page_faults_per_block=median(window["page_faults"] for window in opened.windows) / blocks,
        joules_per_gigavoxel=median(joules) / (blocks * voxels) * 1e9 if joules else None,
        flops_per_voxel=None if limit is None else limit.flops_per_voxel,
        bytes_per_voxel=None if limit is None else limit.bytes_per_voxel,
        limit_voxels_per_second=None if limit is None else limit.voxels_per_second,
        limited_by=None if limit is None else limit.by,
        share_of_limit=None if limit is None else middle / limit.voxels_per_second,
    )
