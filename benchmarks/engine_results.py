"""What a benchmark of engines found: one result for each row, and what can be read from its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fgnet.benchmarks.machine import Machine
from fgnet.benchmarks.roofline import Roofline
from fgnet.engine.bundle import Precision
from fgnet.volumes.geometry import Triple

LAST_ROUNDS = 3


@dataclass(frozen=True)
class RowResult:
    """What was measured of one row.

    Attributes:
        name: of the row.
        backend: that ran it.
        precision: of its arithmetic.
        device: that it ran on.
        version: of the backend.
        threads: of one call on the CPU.
        batch: blocks of one call.
        voxels_per_second: of output; the median of the windows.
        all_voxels_per_second: of every window, in their order.
        slowest: window's voxels per second.
        fastest: the same.
        spread: half of the range of the windows, as a share of the median.
        settled: whether the last windows agree.
        windows: that were timed.
        seconds_per_block: the median.
        ratio: of its speed to eager FP32's in the same rounds, the quotient of the medians; None without eager FP32.
        all_ratios: of every round that both ran.
        ratio_memory_kept: of its speed to eager FP32's with memory kept, the quotient of their ratios; None without it.
        mean_difference: of its affinities (0 to 1) from eager FP32's, on one block.
        equal: whether the export found its segmentations equal to eager PyTorch's; None where it did not compare them.
        open_seconds: loading, and building an engine where there is none yet.
        warm_up_seconds: the first blocks, compilation included where that is a part of them.
        peak_memory_bytes: most of the machine's memory that its process held at a time; None where nothing says.
        device_memory_bytes: of the GPU's memory after the warm-up; None on a CPU.
        page_faults_per_block: pages of memory that the system had to hand out, the median.
        joules_per_gigavoxel: of output, the median; of the whole device. None where nothing counts energy.
        flops_per_voxel: what its network multiplies and adds for a voxel of output; None where that is not known.
        bytes_per_voxel: what its products read and write; likewise.
        limit_voxels_per_second: what the device's peaks allow; None where they were not measured at its precision.
        limited_by: "operations" or "memory".
        share_of_limit: that it reached.
    """

    name: str
    backend: str
    precision: Precision
    device: str
    version: str
    threads: int | None
    batch: int
    voxels_per_second: float
    all_voxels_per_second: tuple[float, ...]
    slowest: float
    fastest: float
    spread: float
    settled: bool
    windows: int
    seconds_per_block: float
    ratio: float | None
    all_ratios: tuple[float, ...]
    ratio_memory_kept: float | None
    mean_difference: float | None
    equal: bool | None
    open_seconds: float
    warm_up_seconds: float
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    page_faults_per_block: float
    joules_per_gigavoxel: float | None
    flops_per_voxel: float | None
    bytes_per_voxel: float | None
    limit_voxels_per_second: float | None
    limited_by: str | None
    share_of_limit: float | None


@dataclass(frozen=True)
class FailedRow:
    """A row that could not be measured.

    Attributes:
        name: of the row.
        backend: that should have run it.
        precision: of its arithmetic.
        device: that it should have run on.
        reason: what happened.
    """

    name: str
    backend: str
    precision: Precision
    device: str
    reason: str


@dataclass(frozen=True)
class EngineBenchmark:
    """A benchmark of engines.

    Attributes:
        machine: that was measured.
        model: its name.
        patch: (z, y, x) voxels of a block.
        stride: (z, y, x) voxels between blocks, whose product is the output of one.
        blocks: of a window.
        launches: processes that each row was measured in, one after the other.
        gray: what was run on, in words.
        apart: whether each row ran beside eager FP32 alone; else all ran in turn.
        results: the fastest first.
        failed: rows without a result.
        no_reference: why there is no eager FP32 to compare with; None where there is.
        roofline: what the device does at most, and what is counted of the network; None where it was not asked for.
        energy: "source" of the energy of the rows, and the "reason" where there is none.
    """

    machine: Machine
    model: str
    patch: Triple
    stride: Triple
    blocks: int
    launches: int
    gray: str
    apart: bool
    results: tuple[RowResult, ...]
    failed: tuple[FailedRow, ...]
    no_reference: str | None
    roofline: Roofline | None
    energy: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        roofline = None if self.roofline is None else self.roofline.to_dict()
        data = {**asdict(self), "machine": self.machine.to_dict(), "roofline": roofline}
        data["results"] = [{key: _rounded(value) for key, value in result.items()} for result in data["results"]]
        return data


def settled(seconds: Sequence[float], agreement: float) -> bool:
    """Whether the last windows agree: the slowest took at most a share of `agreement` longer than the fastest."""
    last = seconds[-LAST_ROUNDS:]
    return len(last) == LAST_ROUNDS and max(last) <= (1 + agreement) * min(last)


def _rounded(value: Any) -> Any:
    """A number, or several, without digits that say nothing."""
    if isinstance(value, tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def unequal_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What to say of rows, as plain data, whose speed nobody gets: fgnet-run does not run them."""
    unequal = [row["name"] for row in rows if row.get("equal") is False]
    if not unequal:
        return []
    return [f"fgnet-run refuses what the export found not equal to eager PyTorch: {', '.join(unequal)}."]
