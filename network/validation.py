"""How good is a network while it is trained? A labelled region is predicted, decoded and scored, as in production."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import fastremap
import numpy as np
import numpy.typing as npt

from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.engine.torch_runner import TorchRunner
from fgnet.network.config import FGNetConfig
from fgnet.network.data import LabelledVolume
from fgnet.network.model import FGNet
from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_in_turn
from fgnet.postproc.metrics import Scores, score
from fgnet.postproc.watershed import WatershedOptions
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Box, Triple, as_triple

MIN_SIZE = 100
"""Voxels of the smallest true object that checkpoints are chosen by: smaller ones are mostly cut off by the region."""

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class Validation:
    """Scores a network on one labelled region; a `Validate` of `training.train`.

    Attributes:
        volume: the region; none of it should be trained on.
        thresholds: agglomeration scores that are tried, in increasing order.
        patch: (z, y, x) voxels predicted at once; the network's own by default.
        stride: voxels between patches; half a patch by default, so that each voxel is predicted eight times.
        min_size: ground-truth objects with fewer voxels are not scored, and neither is the background.
        decoder: "waterz" or "blockwise", as of fgnet-run.
        decoding: its settings; of them the blockwise decoder reads which fragments are made.
        device: where the network runs, "cpu" or "cuda".

    Raises:
        TrainingError: nothing to score, or thresholds that the decoder would refuse after hours of training.
    """

    volume: LabelledVolume
    thresholds: tuple[float, ...] = THRESHOLDS
    patch: Triple | None = None
    stride: Triple | None = None
    min_size: int = MIN_SIZE
    decoder: Literal["waterz", "blockwise"] = "waterz"
    decoding: WaterzOptions = field(default_factory=WaterzOptions)
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        require_objects(self.volume, self.min_size)
        levels = self.thresholds
        rising = all(low < high for low, high in itertools.pairwise(levels))
        if not levels or not rising or not 0 <= levels[0] <= levels[-1] <= 1:
            raise TrainingError(f"validation thresholds are {levels}", remedy="give rising scores from 0 to 1")

    @property
    def settings(self) -> dict[str, Any]:
        """Decoder, fragments and scores, as plain data for a checkpoint's provenance."""
        kept = {key: getattr(self.decoding, key) for key in ("fragments", "scoring", "quantile")}
        return kept | {"decoder": self.decoder}

    def __call__(self, network: FGNet) -> dict[str, Any]:
        """Figures at the threshold of the lowest VOI; the network is left in evaluation mode.

        Returns:
            voi, voi_split and voi_merge in bits, arand, and the threshold, as plain numbers.

        Raises:
            DecodingError: affinities that are not finite.
        """
        with closing(TorchRunner(network, self.patch or network.config.patch, device=self.device)) as runner:
            affinities = predict_affinities(ArraySource(self.volume.raw), runner, stride=self.stride)
        scored: list[tuple[Scores, float]] = []
        for threshold, segmentation in zip(self.thresholds, self._segmentations(affinities), strict=True):
            scored.append((score(segmentation, self.volume.labels, min_size=self.min_size), threshold))
        best, threshold = min(scored, key=lambda pair: pair[0].voi)
        return {
            "voi": best.voi,
            "voi_split": best.voi_split,
            "voi_merge": best.voi_merge,
            "arand": best.arand,
            "threshold": threshold,
        }

    def _segmentations(self, affinities: npt.NDArray[np.uint8]) -> Iterable[npt.NDArray[np.uint64]]:
        """One for each threshold, by the calls that fgnet-run makes; the next may overwrite it."""
        if self.decoder == "waterz":
            return decode_waterz(affinities, self.thresholds, self.decoding)
        watershed = WatershedOptions(flow=self.decoding.fragments)
        return decode_in_turn(affinities, BlockwiseOptions(self.thresholds, watershed=watershed))


def require_objects(volume: LabelledVolume, min_size: int = MIN_SIZE) -> None:
    """Refuse a region in which nothing can be scored.

    Raises:
        TrainingError: no object has so many voxels.
    """
    ids, counts = fastremap.unique(volume.labels, return_counts=True)
    if not np.any(counts[ids > 0] >= min_size):
        raise TrainingError(f"no object has {min_size} voxels", where=volume.name, remedy="validate on a larger region")


def fitting_patch(config: FGNetConfig, shape: Triple) -> Triple:
    """The network's patch, no larger than a region needs it: what lies beyond the region would be mirrored gray."""
    # Windows of nano's encoder divide sides of 128 voxels; smaller ones are padded with tokens that mean nothing.
    multiple = math.lcm(config.section_multiple, 128)
    sections, *sides = zip(shape, config.patch, strict=True)
    rows, columns = (min(most, multiple * math.ceil(side / multiple)) for side, most in sides)
    return (min(sections), rows, columns)


def hold_out(volume: LabelledVolume, share: float) -> tuple[LabelledVolume, LabelledVolume]:
    """Cuts a volume in two: what is trained on, and what is validated on, the end of its longest axis.

    Args:
        volume: the whole.
        share: of the second part, between 0 and 1.

    Raises:
        TrainingError: no such share, or a part that would be empty.
    """
    shape = volume.raw.shape
    axis = shape.index(max(shape))
    cut = shape[axis] - round(share * shape[axis])
    if not 0 < cut < shape[axis]:
        raise TrainingError(
            f"{share} of {shape[axis]} voxels cannot be held out",
            where=volume.name,
            remedy="give a share between 0 and 1, or --val-raw and --val-labels",
        )

    def part(span: slice) -> LabelledVolume:
        inside = tuple(span if other == axis else slice(None) for other in range(3))
        arrays: dict[str, Any] = {
            name: np.ascontiguousarray(value[inside])
            for name, value in vars(volume).items()
            if isinstance(value, np.ndarray)
        }
        name = f"{volume.name}, {'zyx'[axis]} {span.start}:{span.stop}"
        return replace(volume, name=name, origin=_part_of(volume.origin, axis, span), **arrays)

    return part(slice(0, cut)), part(slice(cut, shape[axis]))


def _part_of(origin: tuple[Path, str, Box] | None, axis: int, span: slice) -> tuple[Path, str, Box] | None:
    """Where a part of a volume was read from."""
    if origin is None:
        return None
    path, array, box = origin
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = box.start[axis] + span.start, box.start[axis] + span.stop
    return path, array, Box(as_triple(start, "start"), as_triple(stop, "stop"))
