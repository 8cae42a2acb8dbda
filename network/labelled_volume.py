"""Addresses of raw and labels -> a labelled region in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastremap
import numpy as np
import numpy.typing as npt

from fgnet.engine.run_mask import RunMask
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Box, Triple, parse_roi
from fgnet.volumes.reading import Volume, check_labels, open_volume, read_gray, refuse_negative
from fgnet.volumes.space import Lengths, Space

# Voxel sizes that differ by no more than this are taken as equal along all axes.
_ISOTROPY = 1.25
# CREMI's mark for voxels that nobody labelled: the largest uint64, or -1.
_NOBODY = -1


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A region of raw and labels in memory.

    Attributes:
        name: where it comes from, for messages.
        raw: (z, y, x) uint8.
        labels: (z, y, x) uint32, 0 background, and 0 where nobody labelled.
        space: voxel size in nm.
        weight: how often it is drawn, relative to the others.
        known: (z, y, x) bool, false where nobody labelled; None where all voxels are labelled.
        origin: file or store and array that raw was read from, and the region that was read; None if not from a file.
    """

    name: str
    raw: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint32]
    space: Space
    weight: float = 1.0
    known: npt.NDArray[np.bool_] | None = None
    origin: tuple[Path, str, Box] | None = None

    @property
    def isotropic(self) -> bool:
        """Whether z may stand for y or x: the voxel is about as long as it is wide."""
        size = self.space.voxel_size
        return self.space.known and max(size) <= _ISOTROPY * min(size)

    @property
    def labelled_voxels(self) -> int:
        """How many voxels somebody labelled."""
        return self.labels.size if self.known is None else int(np.count_nonzero(self.known))

    @property
    def known_pairs(self) -> tuple[int, int, int]:
        """How many voxels have, like the one before them along z, y or x, been labelled: that many affinities count."""
        if self.known is None:
            z, y, x = self.labels.shape
            return (z - 1) * y * x, z * (y - 1) * x, z * y * (x - 1)
        known = self.known
        pairs = known[1:] & known[:-1], known[:, 1:] & known[:, :-1], known[:, :, 1:] & known[:, :, :-1]
        z, y, x = map(int, map(np.count_nonzero, pairs))
        return z, y, x


def load_labelled(
    raw: str,
    labels: str,
    roi: str | None = None,
    weight: float = 1.0,
    *,
    mask: str | None = None,
    unlabelled: int | None = None,
    voxel_size: Lengths | None = None,
) -> LabelledVolume:
    """Read a region of raw and labels into memory.

    Args:
        raw: address of uint8 gray.
        labels: address of integer labels; of the same shape, or lying inside a larger raw by their `offset` in nm
            (CREMI). Voxels with the largest uint64, or -1, were labelled by nobody.
        roi: `z0:z1,y0:y1,x0:x1` in voxels of the labels; everything without it.
        weight: how often it is drawn.
        mask: address of a volume of the labels' extent, 0 where nobody labelled; it may be coarser.
        unlabelled: another id that says so, such as 0.
        voxel_size: nm (z, y, x), where the files name none.

    Raises:
        TrainingError: shapes that do not match, or an id that the labels' dtype cannot hold.
        AddressError, VolumeError, GeometryError: what the files or the region are refused for.
    """
    with open_volume(raw, holds="gray") as gray, open_volume(labels, holds="labels") as truth:
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
        ids, known = _read_ids(truth, box, unlabelled)
        if mask is not None:
            with open_volume(mask) as marks:
                known &= RunMask(marks, shape).inside(box)
            ids[~known] = 0
        values, _ = fastremap.renumber(ids, preserve_zero=True)
        space = gray.space if gray.space.known else truth.space
        if not space.known and voxel_size is not None:
            space = Space(voxel_size, space.offset)
        return LabelledVolume(
            f"{raw} | {labels} [{roi or 'all'}]",
            read_gray(gray, where),
            values.astype(np.uint32),
            space,
            weight,
            None if known.all() else known,
            (gray.address.path.resolve(), (gray.address.dataset or "").strip("/"), where),
        )


def shared_voxels(volumes: Sequence[LabelledVolume], held_out: LabelledVolume) -> int:
    """How many voxels of what is held out, at the least, are trained on too; copies in other files are not noticed.

    Args:
        volumes: trained on.
        held_out: what is to be validated or tested on.
    """
    if held_out.origin is None:
        return 0
    path, array, box = held_out.origin
    origins = [volume.origin for volume in volumes if volume.origin is not None]
    return max((origin[2].intersect(box).size for origin in origins if origin[:2] == (path, array)), default=0)


def _shift(raw: Space, labels: Space) -> Triple:
    """Voxels from raw's origin to the labels' (CREMI keeps labels inside a padded raw)."""
    if not (raw.known and labels.known):
        return (0, 0, 0)
    offsets = zip(labels.offset, raw.offset, raw.voxel_size, strict=True)
    z, y, x = (round((inner - outer) / size) for inner, outer, size in offsets)
    return (z, y, x)


def _read_ids(truth: Volume, box: Box, unlabelled: int | None) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Labels of a box, 0 where nobody labelled, and where somebody did."""
    check_labels(truth)
    data = truth.read(box)
    limits = np.iinfo(data.dtype)
    nobody = {limits.max if limits.min == 0 else _NOBODY} if data.dtype.itemsize == 8 else set()
    if unlabelled is not None:
        # -1 is how the largest id of an unsigned dtype is commonly written.
        value = limits.max if unlabelled == _NOBODY and limits.min == 0 else unlabelled
        if not limits.min <= value <= limits.max:
            raise TrainingError(
                f"the unlabelled id {unlabelled} is none that {data.dtype} can hold",
                where=truth.address,
                remedy=f"give one from {limits.min} to {limits.max}",
            )
        nobody.add(value)
    known = np.ones(data.shape, np.bool_)
    for value in nobody:
        known &= data != value
    data[~known] = 0
    refuse_negative(truth, box, data)
    return data.astype(np.uint64, copy=False), known
