"""How fast could a row be? What its network computes and moves for a voxel, against the most that the device does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fgnet.benchmarks.device_peaks import DevicePeaks, measure_peaks
from fgnet.benchmarks.rows import Row
from fgnet.engine.bundle import Bundle, Precision
from fgnet.volumes.errors import FGNetError

_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}

COUNTED = (
    "operations: 2 x multiply-adds of the graphs' Conv, ConvTranspose, Gemm and MatMul; bytes: what these read and "
    "write, each tensor once for each of them, all else taken as done on the way"
)
"""What is counted of a graph, in words."""


@dataclass(frozen=True)
class Work:
    """What a network costs, for each voxel that comes out.

    Attributes:
        flops_alone: where every block encodes all of its sections, as PyTorch's own ways do.
        flops_reusing: where each section is encoded once.
        numbers_alone: numbers that products read and write.
        numbers_reusing: likewise.
    """

    flops_alone: float
    flops_reusing: float
    numbers_alone: float
    numbers_reusing: float


@dataclass(frozen=True)
class Limit:
    """What a row could reach at most.

    Attributes:
        flops_per_voxel: of output.
        bytes_per_voxel: of output.
        voxels_per_second: with the device's operations, or its memory, never waiting.
        by: "operations" or "memory", whichever is less.
    """

    flops_per_voxel: float
    bytes_per_voxel: float
    voxels_per_second: float
    by: str


@dataclass(frozen=True)
class Roofline:
    """The limits of a benchmark.

    Attributes:
        peaks: of the device; None where they were not measured.
        work: of the network; None where it could not be counted.
        reason: why either is missing; None where neither is.
    """

    peaks: DevicePeaks | None
    work: Work | None
    reason: str | None

    def limit(self, row: Row) -> Limit | None:
        """A row's limit; None where there is no peak of its arithmetic."""
        if self.peaks is None or self.work is None:
            return None
        computed = arithmetic(row)
        peak = self.peaks.flops_per_second.get(computed)
        if peak is None:
            return None
        flops = self.work.flops_alone if row.whole else self.work.flops_reusing
        moved = _BYTES[computed] * (self.work.numbers_alone if row.whole else self.work.numbers_reusing)
        by_operations, by_memory = peak / flops, self.peaks.bytes_per_second / moved
        least = "operations" if by_operations <= by_memory else "memory"
        return Limit(flops, moved, min(by_operations, by_memory), least)

    def measured_again(self, rows: Sequence[Row], threads: int | None) -> Roofline:
        """With the device's peaks of now, where they are higher than those of before the rows."""
        if self.peaks is None:
            return self
        try:
            again = measure_peaks(rows[0].device, _wanted(rows), threads)
        except FGNetError:
            return self
        return replace(self, peaks=self.peaks.or_better(again))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**asdict(self), "counted": COUNTED}


def arithmetic(row: Row) -> Precision:
    """What a row's products compute in: on a CPU fp16 graphs are computed in fp32, by ONNX Runtime and by OpenVINO."""
    return "fp32" if row.device == "cpu" and row.precision == "fp16" else row.precision


def find_roofline(bundle: Bundle, rows: Sequence[Row], threads: int | None) -> Roofline:
    """Count a bundle's graphs and measure the device that rows run on.

    Args:
        bundle: the model; its first graphs are counted, for those of other precisions multiply and add the same.
        rows: for which precisions are wanted; all on one device.
        threads: on the CPU; as many as there are cores by default.
    """
    try:
        peaks = measure_peaks(rows[0].device, _wanted(rows), threads)
    except FGNetError as error:
        return Roofline(None, None, str(error))
    try:
        return Roofline(peaks, count_work(bundle), None)
    except FGNetError as error:
        return Roofline(peaks, None, str(error))


def _wanted(rows: Sequence[Row]) -> list[Precision]:
    return list(dict.fromkeys(arithmetic(row) for row in rows))


def count_work(bundle: Bundle) -> Work:
    """What a bundle's graphs cost for each voxel of output.

    Raises:
        BackendError: the package onnx is not installed.
        BundleError: a graph that cannot be read.
    """
    from fgnet.export.graph_inspection import inspect_graph
    from fgnet.export.inspection import cost_of

    graphs = bundle.manifest.graphs[0]
    encoder = None if graphs.encoder is None else inspect_graph(bundle.path / graphs.encoder)
    decoder = inspect_graph(bundle.path / graphs.decoder)
    operations = cost_of(bundle.manifest, None if encoder is None else encoder.flops, decoder.flops)
    moved = cost_of(bundle.manifest, None if encoder is None else encoder.moved, decoder.moved)
    return Work(operations.voxel_alone, operations.voxel_reusing, moved.voxel_alone, moved.voxel_reusing)
