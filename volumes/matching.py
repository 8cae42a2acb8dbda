"""Which voxels of one volume lie at a region of another?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.ngff import level_paths, multiscale_of
from fgnet.volumes.reading import Volume
from fgnet.volumes.space import Space

_SAME = 1e-3
"""Shares of a voxel size that come from rounding, such as that of another unit."""


def placement_note(volume: Volume, truth: Volume) -> str | None:
    """What is worth saying of where two volumes that `matching_region` matches lie."""
    here, there = volume.space, truth.space
    if not (here.known and there.known):
        return None
    same_shape, same_place = volume.shape[-3:] == truth.shape, _same_place(here, there)
    if same_shape and not _same_size(here, there):
        return f"voxel sizes differ ({_sizes(here, there)}); scored voxel by voxel all the same"
    if same_shape and not same_place and not _both_placed(here, there):
        return f"offsets differ ({_offsets(here, there)}), one of them 0 or none; scored voxel by voxel all the same"
    if same_place and not same_shape:
        return "shapes differ, and both say that they begin at the same place; matched from the first voxel on"
    return None


def same_array(volume: Volume, other: Volume) -> bool:
    """Whether two volumes are one array of one file, an image and its finest level, and links of all kinds included."""
    return _array(volume) == _array(other)


def _array(volume: Volume) -> tuple[int | Path, ...]:
    """What tells an array from others: where it lies on the disk, or else its path without links."""
    if volume.stored is not None:
        return volume.stored
    address = volume.address
    if address.kind != "zarr":
        return _place(address.path)
    folder = address.path / (address.dataset or "")
    node = zarr.open(str(folder), mode="r")
    multiscale = multiscale_of(node.attrs.asdict()) if isinstance(node, zarr.Group) else None
    return _place(folder if multiscale is None else folder / level_paths(multiscale)[0])


def _place(path: Path) -> tuple[int | Path, ...]:
    """Device and inode, so that hard links and mounts count as what they lead to; a path where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (path.resolve(),)
    return found.st_dev, found.st_ino


def matching_region(volume: Volume, truth: Volume, region: Box, *, called: str = "segmentation") -> Box:
    """The voxels of a segmentation, or of affinities, at a region of the ground truth.

    Volumes of one shape are matched voxel by voxel, unless both files state an offset other than 0, which many write
    for none. Those, and volumes of another shape, such as that of a region of interest, are matched by their offsets
    where both files say their voxel size.

    Args:
        volume: (z, y, x) or (c, z, y, x).
        truth: (z, y, x) ids.
        region: in voxels of the ground truth.
        called: what the volume is, for messages.

    Raises:
        VolumeError: the shapes differ and nothing says how they lie, or the volume lacks a part of the region.
    """
    here, there = volume.space, truth.space
    shape = volume.shape[-3:]
    same_shape = shape == truth.shape
    if same_shape and not (_same_size(here, there) and _both_placed(here, there)):
        return region
    shapes = f"the {called} has shape {shape}, the ground truth {truth.shape}"
    if here.known and there.known and not _same_size(here, there):
        raise VolumeError(
            f"{shapes}, and voxel sizes differ ({_sizes(here, there)})",
            where=volume.address,
            remedy=f"score a {called} at the voxel size of the ground truth",
        )
    if not (here.known and there.known):
        raise VolumeError(shapes, where=volume.address, remedy=f"score a {called} of the same region")
    if same_shape:
        shapes = f"the {called} and the ground truth have other offsets ({_offsets(here, there)})"
    offsets = zip(there.offset, here.offset, there.voxel_size, strict=True)
    z, y, x = (round((of_truth - of_volume) / size) for of_truth, of_volume, size in offsets)
    inside = region.shift((z, y, x))
    if not volume.box.contains(inside):
        covered = volume.box.shift((-z, -y, -x)).intersect(truth.box)
        remedy = f"give --crop {covered}" if covered.size else "they share no voxel"
        raise VolumeError(f"{shapes}, and it covers only a part of {region}", where=volume.address, remedy=remedy)
    return inside


def _same_size(here: Space, there: Space) -> bool:
    return bool(np.allclose(here.voxel_size, there.voxel_size, rtol=_SAME, atol=0))


def _same_place(here: Space, there: Space) -> bool:
    return bool(np.all(np.abs(np.subtract(here.offset, there.offset)) <= np.multiply(_SAME, there.voxel_size)))


def _both_placed(here: Space, there: Space) -> bool:
    """Whether both files say where they lie: an offset of 0 is written where nothing is known of it, too."""
    return here.known and there.known and any(here.offset) and any(there.offset)


def _offsets(here: Space, there: Space) -> str:
    first, second = (" x ".join(f"{length:g}" for length in space.offset) for space in (here, there))
    return f"{first} and {second} nm"


def _sizes(here: Space, there: Space) -> str:
    first, second = (" x ".join(f"{size:g}" for size in space.voxel_size) for space in (here, there))
    return f"{first} and {second} nm"
