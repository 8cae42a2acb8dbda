"""How long does it take from a volume on the disk to its segmentation on the disk, and is the segmentation the same?

A way of PyTorch's users and fgnet-run, each in a process of its own, in turn. Every segmentation is held against the
reference's and against the truth, so that speed does not hide damage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.machine import describe_machine
from fgnet.benchmarks.pipeline_results import PipelineBenchmark, PipelineRow
from fgnet.benchmarks.pipeline_rounds import Rounds
from fgnet.benchmarks.pipeline_run import Decoding, Measured, Task
from fgnet.benchmarks.pipeline_ways import BASELINES, Way, plan_ways, require_comparable
from fgnet.benchmarks.result_file import without_folders
from fgnet.benchmarks.scale_benchmark import write_volume
from fgnet.engine.bundle import Bundle, default_bundle
from fgnet.engine.gpu_driver import gpu_present
from fgnet.engine.torch_runner import Device
from fgnet.postproc.metrics import Scores, score
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.reading import check_gray, check_labels, open_volume, read_gray, read_labels

Say = Callable[[str], None]
Labels = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class PipelineVolume:
    """What is segmented.

    Attributes:
        address: of uint8 gray.
        labels: address of its true labels, of the same shape; None if nobody knows them.
        name: in words.
    """

    address: str
    labels: str | None
    name: str


@dataclass(frozen=True)
class PipelineOptions:
    """What is measured.

    Attributes:
        baselines: PyTorch's ways, of `BASELINES`.
        run: options of fgnet-run.
        more_runs: options of further rows of fgnet-run.
        repeats: of every row.
        device: of all rows; by default PyTorch takes a GPU if there is one, and fgnet-run chooses.
        threads: of one call on the CPU, of all rows; each one's own choice by default.
        command: that measures this again, to be kept with the result.

    Raises:
        BackendError: there is no such baseline, or an option of fgnet-run is not for a comparison.
    """

    baselines: Sequence[str] = BASELINES
    run: Sequence[str] = ()
    more_runs: Sequence[Sequence[str]] = ()
    repeats: int = 3
    device: Device | None = None
    threads: int | None = None
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_comparable(self.baselines, (self.run, *self.more_runs))


def measure_pipelines(
    bundle: Bundle, volume: PipelineVolume, options: PipelineOptions, *, folder: Path, say: Say
) -> PipelineBenchmark:
    """Segment a volume in every way, all of them in turn, and then again.

    Each way first segments one block, which is not measured. A way that fails is left out, unless it is the
    first one of fgnet-run.

    Args:
        bundle: the model.
        volume: what to segment.
        options: what to measure.
        folder: for outputs, which are deleted.
        say: told how far it is.

    Raises:
        BackendError: fgnet-run failed.
        VolumeError: gray or labels that do not do.
    """
    shape = _check(volume)
    device: Device = options.device or ("cuda" if gpu_present() else "cpu")
    ways, left_out = plan_ways(
        bundle, device, baselines=options.baselines, run=options.run, more_runs=options.more_runs
    )
    machine = describe_machine()
    told = Decoding.advised(bundle)
    task = Task(bundle, volume.address, device, told, options.device is not None, options.threads)
    with tempfile.TemporaryDirectory(dir=folder, prefix="fgnet-pipeline-") as place:
        rounds = Rounds(ways, left_out, Path(place), say)
        block = replace(task, volume=_one_block(volume, bundle, Path(place)))
        task = replace(task, decoding=rounds.warm_up(block))
        for number in range(1, options.repeats + 1):
            rounds.once(task, f"round {number} of {options.repeats}")
        say("comparing the segmentations")
        scores = _Scored.of(volume, shape, rounds)
    results = tuple(
        _result(way, measured, scores, rounds, task, voxels=int(np.prod(shape)))
        for way, measured in rounds.measured.items()
    )
    ours = next(row for row in results if row.kind == "fgnet-run")
    return PipelineBenchmark(
        model=bundle.manifest.name,
        patch=bundle.manifest.patch,
        volume=volume.name,
        shape=shape,
        repeats=options.repeats,
        decoding=asdict(task.decoding),
        command=tuple(options.command),
        machine=machine,
        results=results,
        left_out=tuple(left_out),
        ratio=ours.ratio,
        ratio_memory_kept=ours.ratio_memory_kept,
    )


@dataclass(frozen=True, eq=False)
class _Scored:
    """Of each way: scores against the reference's segmentation, and against the truth; None where there is none."""

    to_reference: dict[Way, Scores | None]
    to_truth: dict[Way, Scores | None]

    @classmethod
    def of(cls, volume: PipelineVolume, shape: Triple, rounds: Rounds) -> _Scored:
        """Score the last segmentation of each way."""
        reference = None if rounds.reference is None else _labels(str(rounds.output(rounds.reference)), shape)
        truth = None if volume.labels is None else _labels(volume.labels, shape)
        to_reference: dict[Way, Scores | None] = {}
        to_truth: dict[Way, Scores | None] = {}
        for way in rounds.measured:
            labels = _labels(str(rounds.output(way)), shape)
            # Background of the reference is compared too: it is no voxel that nobody knows.
            to_reference[way] = None if reference is None else score(labels, reference, ignore=())
            to_truth[way] = None if truth is None else score(labels, truth)
        return cls(to_reference, to_truth)


def _result(
    way: Way, measured: Sequence[Measured], scores: _Scored, rounds: Rounds, task: Task, *, voxels: int
) -> PipelineRow:
    seconds = [one.seconds for one in measured]
    median = float(np.median(seconds))
    # Of an even number of repeats, the faster one of the middle.
    middle = measured[int(np.argsort(seconds)[(len(seconds) - 1) // 2])]
    kept = next((other for other in rounds.measured if other.kind == "paper" and other.keeps_memory), None)
    near, true = scores.to_reference[way], scores.to_truth[way]
    best = None if rounds.reference is None else scores.to_truth[rounds.reference]
    peaks = [one.peak_memory_bytes for one in measured if one.peak_memory_bytes is not None]
    return PipelineRow(
        name=" ".join(map(without_folders, way.name.split(" "))),
        kind=way.kind,
        keeps_memory=way.keeps_memory,
        command=_command(way, task),
        **middle.runner,
        decoder=middle.decoding.get("decoder", "waterz"),
        seconds=round(median, 3),
        all_seconds=tuple(round(one, 3) for one in seconds),
        voxels_per_second=round(voxels / median),
        ratio=_ratio(rounds, rounds.reference, median),
        ratio_memory_kept=_ratio(rounds, kept, median),
        peak_memory_bytes=max(peaks, default=None),
        stages={stage: round(taken, 3) for stage, taken in middle.stages.items()},
        busy=middle.busy,
        segments=middle.segments,
        voi_to_reference=_rounded(near and near.voi),
        arand_to_reference=_rounded(near and near.arand),
        voi_to_truth=_rounded(true and true.voi),
        voi_split_to_truth=_rounded(true and true.voi_split),
        voi_merge_to_truth=_rounded(true and true.voi_merge),
        arand_to_truth=_rounded(true and true.arand),
        delta_voi=None if true is None or best is None else _rounded(true.voi - best.voi),
        delta_arand=None if true is None or best is None else _rounded(true.arand - best.arand),
    )


def _command(way: Way, task: Task) -> tuple[str, ...]:
    if way.kind != "fgnet-run":
        return ()
    model = () if task.bundle.path == default_bundle() else ("--model", str(task.bundle.path))
    device = ("--device", task.device) if task.device_asked else ()
    threads = () if task.threads is None else ("--threads", str(task.threads))
    return ("fgnet-run", "VOLUME", *map(without_folders, (*model, *way.options)), *device, *threads)


def _ratio(rounds: Rounds, reference: Way | None, seconds: float) -> float | None:
    if reference is None:
        return None
    return round(float(np.median([one.seconds for one in rounds.measured[reference]])) / seconds, 3)


def _rounded(value: Any) -> float | None:
    return None if value is None else round(value, 6)


def _check(volume: PipelineVolume) -> Triple:
    """The shape of a volume that every way takes, and whose labels are of use."""
    with open_volume(volume.address, holds="gray") as gray:
        check_gray(gray)
        shape = as_triple(gray.shape, "shape")
    if volume.labels is not None:
        with open_volume(volume.labels, holds="labels") as labels:
            check_labels(labels)
            if labels.shape != shape:
                raise VolumeError(
                    f"the labels have shape {labels.shape}, the volume {shape}",
                    where=labels.address,
                    remedy="give labels of every voxel of the volume, or leave --labels out",
                )
            if not read_labels(labels, labels.box).any():
                raise VolumeError("all labels are 0", where=labels.address, remedy="leave --labels out")
    return shape


def _one_block(volume: PipelineVolume, bundle: Bundle, folder: Path) -> str:
    """Address of a block from a corner of a volume."""
    with open_volume(volume.address, holds="gray") as gray:
        box = Box.from_shape(bundle.manifest.patch).intersect(gray.box)
        block = read_gray(gray, box)
    path = folder / "block.zarr"
    write_volume(path, box.shape, block)
    return str(path)


def _labels(address: str, shape: Triple) -> Labels:
    with open_volume(address, holds="labels") as volume:
        return read_labels(volume, Box.from_shape(shape))
