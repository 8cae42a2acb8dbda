"""On what is measured: one column of gray, or a piece of affinities, of a volume or of synthetic neuropil."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import BundleManifest
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box, Triple

if TYPE_CHECKING:
    from fgnet.engine.backends import BuildNetwork
    from fgnet.volumes.reading import Volume

_VOXEL_NM = (10.0, 10.0, 10.0)


def column_shape(manifest: BundleManifest, blocks: int) -> Triple:
    """Extent (z, y, x) of a ring of sections in which so many blocks begin."""
    return blocks * manifest.stride[0], *manifest.patch[1:]


def synthetic_column(manifest: BundleManifest, blocks: int) -> npt.NDArray[np.uint8]:
    """Gray (z, y, x) of seeded synthetic neuropil; its voxel size, 10 nm, has no part in speed."""
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    return make_neuropil(NeuropilOptions(column_shape(manifest, blocks), _VOXEL_NM)).raw


def column_of(volume: Volume, manifest: BundleManifest, blocks: int) -> npt.NDArray[np.uint8]:
    """Gray (z, y, x) from the middle of a volume.

    Raises:
        VolumeError: the volume is smaller than the column, or holds no uint8 gray.
    """
    from fgnet.volumes.reading import check_gray, read_gray

    check_gray(volume)
    wanted, (z, y, x) = column_shape(manifest, blocks), volume.box.shape
    if any(have < need for have, need in zip((z, y, x), wanted, strict=True)):
        raise VolumeError(
            f"it has {z} x {y} x {x} voxels, and {blocks} blocks of this model need {' x '.join(map(str, wanted))}",
            where=volume.address,
            remedy="give a larger volume or fewer --blocks, or leave --volume out",
        )
    first = [(have - need) // 2 for have, need in zip((z, y, x), wanted, strict=True)]
    return np.ascontiguousarray(read_gray(volume, Box.from_shape(wanted).shift(first)))


def sections_at(gray: npt.NDArray[np.uint8], start: int, count: int) -> npt.NDArray[np.uint8]:
    """Sections (count, y, x) from one on; the column is a ring, its first section comes after its last one."""
    return np.take(gray, range(start, start + count), axis=0, mode="wrap")


def predicted_affinities(build: BuildNetwork) -> npt.NDArray[np.uint8]:
    """(3, z, y, x) uint8 affinities that nano predicts for seeded synthetic neuropil, by the fastest backend.

    Args:
        build: makes the eager network, where PyTorch is the only backend.
    """
    from fgnet.engine.backends import choices_for, open_first
    from fgnet.engine.bundle import default_bundle, load_bundle
    from fgnet.engine.inference import ArraySource, predict_affinities
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    bundle = load_bundle(default_bundle())
    gray = make_neuropil(NeuropilOptions((32, 256, 256), _VOXEL_NM)).raw
    _, runner = open_first(choices_for(bundle), bundle, build)
    try:
        return predict_affinities(ArraySource(gray), runner, stride=bundle.manifest.stride)
    finally:
        runner.close()


def read_affinities(address: str) -> npt.NDArray[np.uint8]:
    """(3, z, y, x) uint8 affinities of a volume, at most 128 x 512 x 512 voxels of its beginning.

    Raises:
        VolumeError: they cannot be read, or are no uint8 affinities.
    """
    from fgnet.volumes.reading import open_volume

    with open_volume(address, ndim=(4,)) as volume:
        box = Box.from_shape((128, 512, 512)).intersect(Box.from_shape(volume.shape[-3:]))
        affinities = np.asarray(volume.read(box))
        if affinities.shape[0] != 3 or affinities.dtype != np.uint8:
            raise VolumeError(
                f"it holds {affinities.dtype} of shape {affinities.shape}",
                where=volume.address,
                remedy="give three channels of uint8 affinities, such as fgnet-run --decoder none writes",
            )
        return affinities


def write_sample(path: Path, shape: Triple) -> tuple[str, str]:
    """Write seeded synthetic neuropil and its labels, those of fgnet-sample, as OME-Zarr.

    Args:
        path: the store to create.
        shape: voxels (z, y, x).

    Returns:
        The addresses of gray and of labels.
    """
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil
    from fgnet.volumes.space import Space
    from fgnet.volumes.writing import create_image, create_labels

    neuropil, space, box = make_neuropil(NeuropilOptions(shape, _VOXEL_NM)), Space(_VOXEL_NM), Box.from_shape(shape)
    image = create_image(path, shape=shape, dtype=np.uint8, space=space)
    image.write(box, neuropil.raw)
    image.finish()
    labels = create_labels(path, shape=shape, dtype=np.uint32, space=space, group="labels/neurons")
    labels.write(box, neuropil.labels)
    labels.finish()
    return str(path), str(path / "labels" / "neurons")
