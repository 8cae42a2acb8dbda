"""What a benchmark of ways from volume to segmentation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fgnet.benchmarks.machine import Machine
from fgnet.benchmarks.pipeline_ways import Kind, LeftOut
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True)
class PipelineRow:
    """One way from volume to segmentation.

    Attributes:
        name: of the way, in words.
        kind: "paper", "monai" or "fgnet-run".
        keeps_memory: whether the C library was told to keep its memory.
        command: to repeat the row alone, where it is a command that users type; else empty.
        backend: that ran the network.
        precision: of its arithmetic.
        device: that it ran on.
        threads: of one call on the CPU, where that is known.
        decoder: "waterz" or "blockwise".
        seconds: from the start of the process to its end; the median of the repeats.
        all_seconds: of every repeat.
        voxels_per_second: of the volume, from `seconds`.
        ratio: how many times as fast as the reference, the paper's way as it comes; None without it.
        ratio_memory_kept: the same of the paper's way with memory kept.
        peak_memory_bytes: most of all repeats; None where the system does not tell. Of fgnet-run with --processes, that
            of the first process alone.
        stages: seconds of each, of the median repeat; one after the other, they add up to its seconds. "start" is all
            that no other stage is.
        busy: of fgnet-run, seconds that each part of "affinities" worked; they overlap.
        segments: that were found.
        voi_to_reference: in bits, over all voxels; None without the reference.
        arand_to_reference: likewise.
        voi_to_truth: in bits, over voxels whose true label is not 0; None without labels.
        voi_split_to_truth: its part of objects cut apart.
        voi_merge_to_truth: its part of objects merged.
        arand_to_truth: likewise.
        delta_voi: `voi_to_truth` less the reference's; above 0 is worse than the reference.
        delta_arand: likewise.
    """

    name: str
    kind: Kind
    keeps_memory: bool
    command: tuple[str, ...]
    backend: str
    precision: str
    device: str
    threads: int | None
    decoder: str
    seconds: float
    all_seconds: tuple[float, ...]
    voxels_per_second: float
    ratio: float | None
    ratio_memory_kept: float | None
    peak_memory_bytes: int | None
    stages: dict[str, float]
    busy: dict[str, float]
    segments: int
    voi_to_reference: float | None
    arand_to_reference: float | None
    voi_to_truth: float | None
    voi_split_to_truth: float | None
    voi_merge_to_truth: float | None
    arand_to_truth: float | None
    delta_voi: float | None
    delta_arand: float | None


@dataclass(frozen=True)
class PipelineBenchmark:
    """All rows.

    Attributes:
        model: its name.
        patch: (z, y, x) voxels of a block.
        volume: what was segmented, in words.
        shape: (z, y, x) voxels of it.
        repeats: of every row.
        decoding: of PyTorch's ways, by waterz: threshold, options and minimum size.
        command: that measures this again.
        machine: that was measured.
        results: PyTorch's ways, then fgnet-run's.
        left_out: ways without a result.
        ratio: how many times as fast as the reference fgnet-run is, in its first row; None without the reference.
        ratio_memory_kept: the same of the reference with memory kept.
    """

    model: str
    patch: Triple
    volume: str
    shape: Triple
    repeats: int
    decoding: dict[str, Any]
    command: tuple[str, ...]
    machine: Machine
    results: tuple[PipelineRow, ...]
    left_out: tuple[LeftOut, ...]
    ratio: float | None
    ratio_memory_kept: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "machine": self.machine.to_dict()}
