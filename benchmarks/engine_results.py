"""What a benchmark of engines found: one result for each row, and what can be read from its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fgnet.benchmarks.machine import Machine
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
        voxels_per_second: of output; the median of the windows.
        slowest: window's voxels per second.
        fastest: the same.
        spread: half of the range of the windows, as a share of the median.
        settled: whether the last windows agree.
        windows: that were timed.
        seconds_per_block: the median.
        ratio: of its speed to eager FP32's in the same round, the median over rounds; None without eager FP32.
        ratio_memory_kept: of its speed to eager FP32's with memory kept, the quotient of their ratios; None without it.
        mean_difference: of its affinities (0 to 1) from eager FP32's, on one block.
        open_seconds: loading, and building an engine where there is none yet.
        warm_up_seconds: the first blocks, compilation included where that is a part of them.
        peak_memory_bytes: most of the machine's memory that its process held at a time; None where nothing says.
        device_memory_bytes: of the GPU's memory after the warm-up; None on a CPU.
        page_faults_per_block: pages of memory that the system had to hand out, the median.
    """

    name: str
    backend: str
    precision: Precision
    device: str
    version: str
    threads: int | None
    voxels_per_second: float
    slowest: float
    fastest: float
    spread: float
    settled: bool
    windows: int
    seconds_per_block: float
    ratio: float | None
    ratio_memory_kept: float | None
    mean_difference: float | None
    open_seconds: float
    warm_up_seconds: float
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    page_faults_per_block: float


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
        gray: what was run on, in words.
        apart: whether each row ran beside eager FP32 alone; else all ran in turn.
        results: the fastest first.
        failed: rows without a result.
        no_reference: why there is no eager FP32 to compare with; None where there is.
    """

    machine: Machine
    model: str
    patch: Triple
    stride: Triple
    blocks: int
    gray: str
    apart: bool
    results: tuple[RowResult, ...]
    failed: tuple[FailedRow, ...]
    no_reference: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        data = {**asdict(self), "machine": self.machine.to_dict()}
        data["results"] = [{key: _rounded(value) for key, value in result.items()} for result in data["results"]]
        return data


def settled(seconds: Sequence[float], agreement: float) -> bool:
    """Whether the last windows agree: the slowest took at most a share of `agreement` longer than the fastest."""
    last = seconds[-LAST_ROUNDS:]
    return len(last) == LAST_ROUNDS and max(last) <= (1 + agreement) * min(last)


def _rounded(value: Any) -> Any:
    """A number without digits that say nothing."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
