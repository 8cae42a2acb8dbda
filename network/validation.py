"""How good is a network while it is trained? A labelled region is predicted, decoded and scored, as in production."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import fastremap
import numpy as np

from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.engine.torch_runner import TorchRunner
from fgnet.network.data import LabelledVolume
from fgnet.network.model import FGNet
from fgnet.postproc.metrics import Scores, score
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Triple

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class Validation:
    """Scores a network on one labelled region; a `Validate` of `training.train`.

    Attributes:
        volume: the region; none of it should be trained on.
        thresholds: agglomeration scores that are tried, in increasing order.
        patch: (z, y, x) voxels predicted at once; the network's own by default.
        stride: voxels between patches; half a patch by default, so that each voxel is predicted eight times.
        min_size: ground-truth objects with fewer voxels are not scored, and neither is the background.
        decoder: how affinities become segments; by default as fgnet-run makes them.

    Raises:
        TrainingError: nothing to score, or thresholds that the decoder would refuse after hours of training.
    """

    volume: LabelledVolume
    thresholds: tuple[float, ...] = THRESHOLDS
    patch: Triple | None = None
    stride: Triple | None = None
    min_size: int = 100
    decoder: WaterzOptions = field(default_factory=WaterzOptions)

    def __post_init__(self) -> None:
        ids, counts = fastremap.unique(self.volume.labels, return_counts=True)
        if not np.any(counts[ids > 0] >= self.min_size):
            raise TrainingError(
                f"no object has {self.min_size} voxels", where=self.volume.name, remedy="validate on a larger region"
            )
        levels = self.thresholds
        rising = all(low < high for low, high in itertools.pairwise(levels))
        if not levels or not rising or not 0 <= levels[0] <= levels[-1] <= 1:
            raise TrainingError(f"validation thresholds are {levels}", remedy="give rising scores from 0 to 1")

    def __call__(self, network: FGNet) -> dict[str, Any]:
        """Figures at the threshold of the lowest VOI; the network is left in evaluation mode.

        Returns:
            voi, voi_split and voi_merge in bits, arand, and the threshold, as plain numbers.

        Raises:
            DecodingError: affinities that are not finite.
        """
        with closing(TorchRunner(network, self.patch or network.config.patch)) as runner:
            affinities = predict_affinities(ArraySource(self.volume.raw), runner, stride=self.stride)
        scored: list[tuple[Scores, float]] = []
        segmentations = decode_waterz(affinities, self.thresholds, self.decoder)
        for threshold, segmentation in zip(self.thresholds, segmentations, strict=True):
            scored.append((score(segmentation, self.volume.labels, min_size=self.min_size), threshold))
        best, threshold = min(scored, key=lambda pair: pair[0].voi)
        return {
            "voi": best.voi,
            "voi_split": best.voi_split,
            "voi_merge": best.voi_merge,
            "arand": best.arand,
            "threshold": threshold,
        }
