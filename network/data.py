"""Labelled volumes -> training samples (gray, affinities)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt

from fgnet.network.augment import AugmentOptions, change_gray, orient
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Box, Triple, parse_roi
from fgnet.volumes.reading import open_volume, read_gray, read_labels
from fgnet.volumes.space import Space

# A crop whose foreground is sparser than this teaches little; another one is drawn.
_LEAST_FOREGROUND = 0.1
_ATTEMPTS = 20
# Voxel sizes that differ by no more than this are taken as equal along all axes.
_ISOTROPY = 1.25


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A region of raw and labels in memory.

    Attributes:
        name: where it comes from, for messages.
        raw: (z, y, x) uint8.
        labels: (z, y, x) uint32, 0 background.
        space: voxel size in nm.
        weight: how often it is drawn, relative to the others.
    """

    name: str
    raw: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint32]
    space: Space
    weight: float = 1.0

    @property
    def isotropic(self) -> bool:
        """Whether z may stand for y or x: the voxel is about as long as it is wide."""
        size = self.space.voxel_size
        return self.space.known and max(size) <= _ISOTROPY * min(size)


def load_labelled(raw: str, labels: str, roi: str | None = None, weight: float = 1.0) -> LabelledVolume:
    """Read a region of raw and labels into memory.

    Args:
        raw: address of uint8 gray.
        labels: address of integer labels; of the same shape, or lying inside a larger raw by their `offset` in nm
            (CREMI). The largest uint64, CREMI's mark for voxels that nobody labelled, is read as background.
        roi: `z0:z1,y0:y1,x0:x1` in voxels of the labels; everything without it.
        weight: how often it is drawn.

    Raises:
        TrainingError: shapes that do not match.
        AddressError, VolumeError, GeometryError: what the files or the region are refused for.
    """
    with open_volume(raw) as gray, open_volume(labels) as truth:
        shape: Triple = truth.box.shape
        box = Box.from_shape(shape) if roi is None else parse_roi(roi, shape)
        shift = _shift(gray.space, truth.space)
        where = box.shift(shift)
        if not gray.box.contains(where) or (shift == (0, 0, 0) and gray.box.shape != shape):
            raise TrainingError(
                f"labels of shape {shape} do not fit raw of shape {gray.box.shape}",
                where=labels,
                remedy="give raw and labels of one region, or labels with their offset in nm",
            )
        ids = read_labels(truth, box)
        ids[ids == np.iinfo(np.uint64).max] = 0
        values, _ = fastremap.renumber(ids, preserve_zero=True)
        space = gray.space if gray.space.known else truth.space
        return LabelledVolume(
            f"{raw} | {labels} [{roi or 'all'}]", read_gray(gray, where), values.astype(np.uint32), space, weight
        )


def _shift(raw: Space, labels: Space) -> Triple:
    """Voxels from raw's origin to the labels' (CREMI keeps labels inside a padded raw)."""
    if not (raw.known and labels.known):
        return (0, 0, 0)
    offsets = zip(labels.offset, raw.offset, raw.voxel_size, strict=True)
    z, y, x = (round((inner - outer) / size) for inner, outer, size in offsets)
    return (z, y, x)


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample: gray (1, z, y, x) float32 in [0, 1] and affinities (3, z, y, x) float32, 0 or 1."""

    gray: npt.NDArray[np.float32]
    affinities: npt.NDArray[np.float32]


class CropSampler:
    """Crops at random places, augmented; sample (step, index) is the same whenever it is drawn.

    Args:
        volumes: where crops come from.
        crop: (z, y, x) voxels.
        augment: how they are changed.
        seed: of all choices.

    Raises:
        TrainingError: a volume smaller than a crop, or without a single object.
    """

    def __init__(self, volumes: Sequence[LabelledVolume], crop: Triple, augment: AugmentOptions, seed: int) -> None:
        if not volumes:
            raise TrainingError("no training volume", remedy="give --raw and --labels")
        self.volumes = tuple(volumes)
        self.crop = crop
        self.augment = augment
        self.seed = seed
        for volume in volumes:
            if any(side < need for side, need in zip(volume.raw.shape, crop, strict=True)):
                raise TrainingError(
                    f"the volume's shape {volume.raw.shape} is smaller than the crop {crop}",
                    where=volume.name,
                    remedy="give a smaller --crop",
                )
            if not volume.labels.any():
                raise TrainingError("the labels hold no object", where=volume.name, remedy="check the labels' address")
        weights = np.array([volume.weight for volume in volumes], dtype=np.float64)
        if not (weights.min() >= 0 and 0 < weights.sum() < np.inf):
            raise TrainingError(f"weights {weights.tolist()} make no distribution", remedy="give positive weights")
        self._shares = weights / weights.sum()

    def sample(self, step: int, index: int) -> Sample:
        """Sample `index` of the batch of `step`."""
        rng = np.random.default_rng((self.seed, step, index))
        volume = self.volumes[int(rng.choice(len(self.volumes), p=self._shares))]
        raw, labels = self._crop(volume, rng)
        raw, labels = orient(raw, labels, rng)
        gray = change_gray(np.ascontiguousarray(raw), self.augment, rng)
        affinities = affinities_from_labels(widen_borders(np.ascontiguousarray(labels)))
        inside = tuple(slice(side - want, None) for side, want in zip(gray.shape, self.crop, strict=True))
        return Sample(
            np.ascontiguousarray(gray[inside])[None],
            np.ascontiguousarray(affinities[(slice(None), *inside)]).astype(np.float32),
        )

    def _crop(self, volume: LabelledVolume, rng: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """A crop, one voxel larger per axis where there is room: the affinities of the first planes need it."""
        raw, labels = volume.raw, volume.labels
        for attempt in range(_ATTEMPTS):
            if volume.isotropic:
                axes = tuple(int(axis) for axis in rng.permutation(3))
                turned = tuple(volume.raw.shape[axis] for axis in axes)
                if all(side >= want for side, want in zip(turned, self.crop, strict=True)):
                    raw, labels = volume.raw.transpose(axes), volume.labels.transpose(axes)
            size = tuple(min(want + 1, side) for want, side in zip(self.crop, raw.shape, strict=True))
            start = tuple(int(rng.integers(0, side - want + 1)) for side, want in zip(raw.shape, size, strict=True))
            box = tuple(slice(begin, begin + want) for begin, want in zip(start, size, strict=True))
            if attempt == _ATTEMPTS - 1 or np.count_nonzero(labels[box]) >= _LEAST_FOREGROUND * np.prod(size):
                break
        return raw[box], labels[box]
