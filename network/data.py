"""Labelled volumes -> training samples (gray, affinities, and which of them are known)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.network.augment import AugmentOptions, Choices
from fgnet.network.gray_values import change_gray
from fgnet.network.labelled_volume import LabelledVolume, load_labelled
from fgnet.network.orientation import orient
from fgnet.network.section_damage import damage
from fgnet.network.warping import Warp, draw_warp, warp_gray, warp_labels
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Triple, as_triple

__all__ = ["CropSampler", "LabelledVolume", "Sample", "changed", "cut", "load_labelled", "to_sample"]

# A crop whose foreground is sparser than this teaches little; another one is drawn.
_LEAST_FOREGROUND = 0.1
_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample.

    Attributes:
        gray: (1, z, y, x) float32 in [0, 1].
        affinities: (3, z, y, x) float32, 0 or 1.
        mask: (3, z, y, x) bool, true where both voxels of an affinity are labelled: what the loss may look at.
        place: the volume's name and the region that was cut out of it, for messages.
    """

    gray: npt.NDArray[np.float32]
    affinities: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    place: str = ""


@dataclass(frozen=True, eq=False)
class Crop:
    """Voxels cut from a volume: raw (uint8, or float32 gray levels), labels, and where they are known; (z, y, x)."""

    raw: npt.NDArray[Any]
    labels: npt.NDArray[np.uint32]
    known: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class Place:
    """Where a crop is cut from: a volume's axes in the order that they are read in, and a box of the turned volume."""

    axes: Triple
    start: Triple
    size: Triple

    def __str__(self) -> str:
        """The region in the volume's own axes."""
        spans = {
            axis: (begin, begin + want) for axis, begin, want in zip(self.axes, self.start, self.size, strict=True)
        }
        return ",".join(f"{spans[axis][0]}:{spans[axis][1]}" for axis in range(3))


class CropSampler:
    """Crops at random places, augmented; sample (step, index) is the same whenever it is drawn.

    Args:
        volumes: where crops come from.
        crop: (z, y, x) voxels.
        augment: how they are changed.
        seed: of all choices.

    Raises:
        TrainingError: a volume smaller than a crop, or whose labels show no boundary.
    """

    def __init__(self, volumes: Sequence[LabelledVolume], crop: Triple, augment: AugmentOptions, seed: int) -> None:
        if not volumes:
            raise TrainingError("no training volume", remedy="give --raw and --labels, or --dataset")
        self.volumes = tuple(volumes)
        self.crop = crop
        self.augment = augment
        self.seed = seed
        for volume in volumes:
            _require_boundary(volume, crop)
        weights = np.array([volume.weight for volume in volumes], dtype=np.float64)
        if not (weights.min() >= 0 and 0 < weights.sum() < np.inf):
            raise TrainingError(f"weights {weights.tolist()} make no distribution", remedy="give positive weights")
        self._shares = weights / weights.sum()
        self._labelled = [None if v.known is None else np.count_nonzero(v.labels, axis=(1, 2)) for v in volumes]

    def sample(self, step: int, index: int) -> Sample:
        """Sample `index` of the batch of `step`."""
        choices = Choices((self.seed, step, index))
        rng = np.random.default_rng(choices.key)
        number = int(rng.choice(len(self.volumes), p=self._shares))
        place, warp = self.draw_place(number, choices, rng)
        crop = cut(self.volumes[number], place)
        # A crop has one voxel more along y or x where the volume has room for it, and is to be turned all the same.
        square = self.crop[1] == self.crop[2]
        sample = to_sample(changed(crop, warp, self.augment, choices, rng, square=square), self.crop)
        return replace(sample, place=f"{self.volumes[number].name} at {place}")

    def draw_place(self, number: int, choices: Choices, rng: np.random.Generator) -> tuple[Place, Warp | None]:
        """Where a sample is cut from, and the geometric changes that its region was made for.

        The crop is one voxel longer per axis where there is room: the affinities of the first planes need it.
        """
        volume = self.volumes[number]
        turn = volume.isotropic and is_oriented(self.augment, choices)
        axes: Triple = (0, 1, 2)
        warps: dict[Triple, Warp | None] = {}
        for _ in range(_ATTEMPTS):
            if turn:
                turned = as_triple(rng.permutation(3).tolist(), "axes")
                if all(volume.raw.shape[axis] >= want for axis, want in zip(turned, self.crop, strict=True)):
                    axes = turned
            sides = as_triple([volume.raw.shape[axis] for axis in axes], "sides")
            shape = longer(self.crop, sides)
            if axes not in warps:
                warps[axes] = draw_warp(shape, sides, volume.isotropic, self.augment, choices)
            warp = warps[axes]
            place = self.place(number, axes, shape if warp is None else warp.region, rng)
            foreground = np.count_nonzero(cut(volume, place).labels)
            # Sparse labels never fill a crop.
            if volume.known is not None or foreground >= _LEAST_FOREGROUND * np.prod(place.size):
                break
        return place, warp

    def place(self, number: int, axes: Triple, size: Triple, rng: np.random.Generator) -> Place:
        """A random place of a region: anywhere, or about a labelled voxel where labels are sparse.

        Args:
            number: of the volume.
            axes: the order in which its axes are read.
            size: of the region, (z, y, x) voxels of the turned volume.
            rng: the source of the choice.
        """
        volume, labelled = self.volumes[number], self._labelled[number]
        if labelled is not None:
            return Place(axes, _about_a_label(volume, labelled, axes, size, rng), size)
        sides = (volume.raw.shape[axis] for axis in axes)
        start = [int(rng.integers(0, side - want + 1)) for side, want in zip(sides, size, strict=True)]
        return Place(axes, as_triple(start, "start"), size)


def is_oriented(options: AugmentOptions, choices: Choices) -> bool:
    """Whether a crop is turned and flipped at random."""
    return bool(choices.of("orient").random() < options.orient)


def longer(crop: Triple, sides: Triple) -> Triple:
    """A crop's shape with one voxel more per axis, where the volume has it."""
    return as_triple([min(want + 1, side) for want, side in zip(crop, sides, strict=True)], "shape")


def cut(volume: LabelledVolume, place: Place) -> Crop:
    """Views of a volume."""
    box = tuple(slice(begin, begin + want) for begin, want in zip(place.start, place.size, strict=True))
    raw, labels = volume.raw.transpose(place.axes)[box], volume.labels.transpose(place.axes)[box]
    return Crop(raw, labels, None if volume.known is None else volume.known.transpose(place.axes)[box])


def changed(
    crop: Crop,
    warp: Warp | None,
    options: AugmentOptions,
    choices: Choices,
    rng: np.random.Generator,
    *,
    square: bool | None = None,
) -> Crop:
    """A crop, augmented.

    Args:
        crop: the region that the warp was made for.
        warp: its geometric changes.
        options: how it is changed otherwise.
        choices: the source of each change's choices.
        rng: the source of the orientation and of the gray values.
        square: whether it may be turned by 90 degrees; where y and x are equally long, if nothing is said.

    Returns:
        raw as float32 in [0, 1]; labels as in the volume, turned and warped with it.
    """
    raw, labels, known = crop.raw, crop.labels, crop.known
    if warp is not None:
        raw, labels = warp_gray(raw, warp), warp_labels(labels, warp)
        known = None if known is None else warp_labels(known, warp)
    if is_oriented(options, choices):
        raw, labels, *rest = orient((raw, labels) if known is None else (raw, labels, known), rng, square=square)
        known = rest[0] if rest else None
    gray = change_gray(damage(np.ascontiguousarray(raw), options, choices), options, rng)
    return Crop(gray, np.ascontiguousarray(labels), known)


def to_sample(crop: Crop, shape: Triple) -> Sample:
    """The last voxels of a crop, as many as wanted, with the affinities that they have in it."""
    affinities = affinities_from_labels(widen_borders(crop.labels))
    inside = tuple(slice(side - want, None) for side, want in zip(crop.raw.shape, shape, strict=True))
    channels = (slice(None), *inside)
    if crop.known is None:
        mask = np.ones(affinities[channels].shape, np.bool_)
    else:
        # Both voxels known is what an affinity says of an object that holds all known voxels.
        mask = affinities_from_labels(crop.known.astype(np.uint8))[channels].astype(np.bool_)
    return Sample(
        np.ascontiguousarray(crop.raw[inside])[None],
        np.ascontiguousarray(affinities[channels]).astype(np.float32),
        mask,
    )


def _about_a_label(
    volume: LabelledVolume,
    labelled: npt.NDArray[np.intp],
    axes: Triple,
    size: Triple,
    rng: np.random.Generator,
) -> Triple:
    """Where a box begins that has a random labelled voxel in its inner half, wherever the volume's border lets it."""
    section = int(rng.choice(labelled.size, p=labelled / labelled.sum()))
    among = np.flatnonzero(volume.labels[section])
    y, x = divmod(int(among[rng.integers(among.size)]), volume.labels.shape[2])
    voxel = (section, y, x)
    start = []
    for axis, want in zip(axes, size, strict=True):
        begin = voxel[axis] - round(want * rng.uniform(0.25, 0.75))
        start.append(min(max(begin, 0), volume.labels.shape[axis] - want))
    return as_triple(start, "start")


def _require_boundary(volume: LabelledVolume, crop: Triple) -> None:
    if any(side < need for side, need in zip(volume.raw.shape, crop, strict=True)):
        raise TrainingError(
            f"the volume's shape {volume.raw.shape} is smaller than the crop {crop}",
            where=volume.name,
            remedy=_smaller_crop(as_triple(volume.raw.shape, "shape")),
        )
    if volume.labels.shape != volume.raw.shape or (volume.known is not None and volume.known.shape != volume.raw.shape):
        raise TrainingError(
            f"labels of shape {volume.labels.shape} do not fit raw of shape {volume.raw.shape}", where=volume.name
        )
    labels = volume.labels if volume.known is None else volume.labels[volume.known]
    if not labels.any():
        raise TrainingError("the labels hold no object", where=volume.name, remedy="check the labels' address")
    if labels.min() == labels.max():
        raise TrainingError(
            "the labels hold one object and no background: there is no boundary to learn",
            where=volume.name,
            remedy="check the labels' address and region, or label a second object",
        )


def _smaller_crop(shape: Triple) -> str:
    """What to do about a volume of this shape; every network halves y and x down to a stride of 32 at most."""
    height, width = (side // 32 * 32 for side in shape[1:])
    if not height or not width:
        return "give a larger region: networks need at least 32 voxels along y and x"
    return f"give --crop {shape[0]},{height},{width} or a smaller one"
