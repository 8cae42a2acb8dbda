"""The whole way of a volume: gray -> affinities -> segmentation -> OME-Zarr."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.inference import StageSeconds, plan_blocks, predict_affinities
from fgnet.engine.runner import Runner, warm_up
from fgnet.postproc.blending import WeightKind
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.output_store import ZarrFormat
from fgnet.volumes.reading import Volume, check_gray, read_gray
from fgnet.volumes.space import Space
from fgnet.volumes.writing import MultiscaleWriter, create_image, create_labels

AFFINITIES_GROUP = "affinities"
"""Where `--save-affinities` puts them inside the output."""

Report = Callable[[str, int], None]
"""Called with the stage that is running and the voxels that it has just finished."""


@dataclass(frozen=True)
class RunOptions:
    """What a run does with a volume.

    Attributes:
        output: the Zarr store to create; its root is the segmentation.
        threshold: agglomeration score, 0 to 1: higher merges more.
        decoding: how waterz makes fragments and scores contacts.
        stride: voxels between patches (z, y, x); half a patch by default.
        box: the region to segment; everything by default.
        blending: how overlapping patches are weighed.
        min_size: voxels below which a segment becomes background.
        rescale: gray values that become 0 and 255; without it only uint8 is accepted.
        save_affinities: whether they are kept, in `affinities` inside the output.
        zarr_format: 3 (OME-NGFF 0.5) or 2 (0.4).
        overwrite: whether an earlier output is replaced.
        threads: for blending.
    """

    output: Path
    threshold: float
    decoding: WaterzOptions = field(default_factory=WaterzOptions)
    stride: Triple | None = None
    box: Box | None = None
    blending: WeightKind = "gaussian"
    min_size: int = 0
    rescale: tuple[float, float] | None = None
    save_affinities: bool = False
    zarr_format: ZarrFormat = 3
    overwrite: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse a threshold that no score can reach.

        Raises:
            DecodingError: it is not from 0 to 1.
        """
        if not 0 <= self.threshold <= 1:
            raise DecodingError(f"it is {self.threshold}", where="threshold", remedy="give a score from 0 to 1")


@dataclass(frozen=True, eq=False)
class Run:
    """What a run made.

    Attributes:
        box: the region that was segmented.
        gray: (z, y, x) uint8 of its middle section, with one section of depth.
        affinities: (3, z, y, x) uint8 of the region.
        segmentation: (z, y, x) uint64 of the region, ids 1 .. segments.
        segments: how many.
        seconds: of each stage.
    """

    box: Box
    gray: npt.NDArray[np.uint8]
    affinities: npt.NDArray[np.uint8]
    segmentation: npt.NDArray[np.uint64]
    segments: int
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Gray:
    """A volume as a source of uint8 gray."""

    volume: Volume
    rescale: tuple[float, float] | None

    @property
    def shape(self) -> Triple:
        return as_triple(self.volume.shape, "shape")

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        return read_gray(self.volume, box, rescale=self.rescale)


def segment_volume(volume: Volume, runner: Runner, options: RunOptions, report: Report | None = None) -> Run:
    """Segment a region of a volume and write it as OME-NGFF labels.

    Options are checked before an earlier output is replaced. The output is created before anything is computed, so
    that one that cannot be written is refused at once; it opens as an image only when it is complete.

    Args:
        volume: gray (z, y, x).
        runner: the network.
        options: what to do.
        report: told about progress.

    Raises:
        VolumeError, GeometryError, DecodingError, OutputError: as said there.
    """
    check_gray(volume, rescale=options.rescale)
    source = _Gray(volume, options.rescale)
    box = options.box or volume.box
    plan_blocks(source.shape, runner.patch, box=box, stride=options.stride)
    space = volume.space.shifted(box.start)
    writer, affinity_writer = _create_outputs(options, box.shape, space, volume.name)
    say = report or (lambda *_: None)
    seconds: dict[str, float] = {}
    clock = time.perf_counter

    started = clock()
    warm_up(runner)
    seconds["warm_up"] = clock() - started

    stages = StageSeconds()
    affinities = predict_affinities(
        source,
        runner,
        box=box,
        stride=options.stride,
        blending=options.blending,
        progress=lambda voxels: say("affinities", voxels),
        seconds=stages,
        threads=options.threads,
    )
    seconds |= {"read": stages.read, "infer": stages.infer, "blend": stages.blend}
    if affinity_writer is not None:
        started = clock()
        _write(affinity_writer, affinities)
        seconds["write_affinities"] = clock() - started

    started = clock()
    (segmentation,) = decode_waterz(affinities, [options.threshold], options.decoding)
    if options.min_size > 1:
        segmentation = remove_small(segmentation, options.min_size)
    segmentation = compact_ids(segmentation)
    seconds["decode"] = clock() - started
    say("segmentation", box.size)

    started = clock()
    _write(writer, segmentation)
    seconds["write"] = clock() - started

    middle = box.start[0] + box.shape[0] // 2
    section = Box((middle, *box.start[1:]), (middle + 1, *box.stop[1:]))
    return Run(box, source.gray(section), affinities, segmentation, int(segmentation.max()), seconds)


def _create_outputs(
    options: RunOptions, shape: Triple, space: Space, name: str
) -> tuple[MultiscaleWriter, MultiscaleWriter | None]:
    common: dict[str, Any] = {"space": space, "zarr_format": options.zarr_format}
    writer = create_labels(
        options.output,
        shape=shape,
        name=f"{name} segmentation",
        overwrite=options.overwrite,
        replaces=[AFFINITIES_GROUP],
        **common,
    )
    if not options.save_affinities:
        return writer, None
    affinities = create_image(
        options.output,
        group=AFFINITIES_GROUP,
        shape=(3, *shape),
        dtype=np.uint8,
        axes="czyx",
        name=f"{name} affinities",
        **common,
    )
    return writer, affinities


def _write(writer: MultiscaleWriter, array: npt.NDArray[Any]) -> None:
    writer.write(Box.from_shape(array.shape[-3:]), array)
    writer.build_pyramid()
    writer.finish()
