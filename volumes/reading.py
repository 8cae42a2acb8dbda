"""Reading a volume: opening an address whatever its format, and taking gray values or labels from a box of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.address import Address, parse_address
from fgnet.volumes.errors import FGNetError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.source import Content, Slices, Source
from fgnet.volumes.space import Space

__all__ = [
    "UNLABELLED",
    "Space",
    "Volume",
    "check_gray",
    "check_labels",
    "open_volume",
    "read_gray",
    "read_labels",
    "refuse_negative",
]

Array = npt.NDArray[Any]

UNLABELLED = 2**64 - 1
"""Id of voxels that nobody labelled, CREMI's; -1 in signed labels."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An opened array; reads only what is asked for, from several threads if need be.

    Close it, or use it in a `with` statement: HDF5 and TIFF keep their file open. A volume can be sent to another
    process, which opens the file anew.

    Args:
        address: what was opened; of HDF5 files with the dataset that was chosen.
        shape: extent of every axis, (z, y, x) or (c, z, y, x).
        dtype: of what `read` returns, in native byte order.
        chunks: the extents that are read at least, None where the format has no chunks.
        space: voxel size and offset in nm.
        label_images: paths inside the store of the label images that come with an image; empty where the address does
            not name an OME-NGFF image as a whole.
    """

    address: Address
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    space: Space
    label_images: tuple[str, ...]
    _source: Source = field(repr=False)

    @property
    def name(self) -> str:
        """The array's own name."""
        return self.address.name

    @property
    def stored(self) -> tuple[int, ...] | None:
        """What tells the array from others, whatever path or link led to it; None where only its path does."""
        return self._source.stored

    @property
    def box(self) -> Box:
        """The box of all voxels (z, y, x)."""
        return Box.from_shape(self.shape[-3:])

    def read(self, box: Box | Slices) -> Array:
        """Reads a box of (z, y, x) in all channels, or one slice per axis.

        Returns:
            An array of the box's shape, with the channels in front where there are any.

        Raises:
            GeometryError: the box reaches outside the volume, or a slice has a step.
            VolumeError: a chunk or section cannot be read.
        """
        slices = self._slices(box)
        shape = tuple(s.stop - s.start for s in slices)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        dropped = (slice(0, 1),) * (len(self._source.shape) - len(self.shape))
        try:
            data = self._source.read((*dropped, *slices))
            return np.array(data, dtype=self.dtype, order="C").reshape(shape)
        except (MemoryError, FGNetError):
            raise
        except Exception as error:  # codecs and file formats raise whatever they like on damaged data
            raise VolumeError(
                f"the voxels {_text(slices)} cannot be read: {error}",
                where=self.address,
                remedy="the file is damaged or incomplete; restore it from its source",
            ) from error

    def close(self) -> None:
        """Lets go of the file; reading afterwards raises VolumeError."""
        self._source.close()

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.address, len(self.shape))

    def _slices(self, box: Box | Slices) -> Slices:
        if isinstance(box, Box):
            index: Slices = (slice(None),) * (len(self.shape) - 3) + box.slices
        else:
            index = tuple(box)
        if len(index) != len(self.shape):
            raise GeometryError(f"{len(index)} slices for {len(self.shape)} axes", where=self.address)
        return tuple(self._bounds(s, extent) for s, extent in zip(index, self.shape, strict=True))

    def _bounds(self, index: slice, extent: int) -> slice:
        start = 0 if index.start is None else int(index.start)
        stop = extent if index.stop is None else int(index.stop)
        if index.step not in (None, 1):
            raise GeometryError(f"a slice with step {index.step}", where=self.address, remedy="read without a step")
        if not 0 <= start <= stop <= extent:
            raise GeometryError(
                f"voxels {start}:{stop} lie outside the volume of shape {self.shape}",
                where=self.address,
                remedy="intersect the box with the volume's box first",
            )
        return slice(start, stop)


def _text(slices: Slices) -> str:
    return ",".join(f"{s.start}:{s.stop}" for s in slices)


def _reopen(address: Address, rank: int) -> Volume:
    return open_volume(address, ndim=(rank,))


def open_volume(address: str | Path | Address, *, ndim: tuple[int, ...] = (3,), holds: Content | None = None) -> Volume:
    """Opens the array of an address.

    Of an OME-NGFF multiscale group the finest level is opened. Leading axes of extent 1 (time, channel) are dropped
    until the rank is one asked for.

    Args:
        address: `v.zarr[/group/array]`, `f.h5[:dataset]`, `stack.tif`, or a folder of section images.
        ndim: ranks that are accepted: 3 for (z, y, x), 4 for (c, z, y, x).
        holds: what it is opened for; finds one of several datasets in an HDF5 file whose address names none.

    Raises:
        AddressError: the address names no readable array, or leaves several open.
        VolumeError: another rank, an empty axis, values that are no numbers, or metadata that cannot be read.
    """
    found = address if isinstance(address, Address) else parse_address(address)
    source = _open_source(found, ndim, holds)
    try:
        return _volume(found, source, ndim)
    except BaseException:
        source.close()
        raise


def _open_source(address: Address, ndim: tuple[int, ...], holds: Content | None) -> Source:
    # Each format's library is imported only where a file of that format is opened.
    match address.kind:
        case "zarr":
            from fgnet.volumes.zarr_source import open_zarr

            return open_zarr(address)
        case "hdf5":
            from fgnet.volumes.hdf5_source import open_hdf5

            return open_hdf5(address, ndim, holds)
        case "tiff":
            from fgnet.volumes.image_source import open_tiff

            return open_tiff(address)
        case "sections":
            from fgnet.volumes.image_source import open_sections

            return open_sections(address)


def _volume(address: Address, source: Source, ndim: tuple[int, ...]) -> Volume:
    resolved = Address(address.path, source.dataset or address.dataset, address.kind)
    dropped = 0
    while len(source.shape) - dropped not in ndim and len(source.shape) > dropped and source.shape[dropped] == 1:
        dropped += 1
    shape = source.shape[dropped:]
    if len(shape) not in ndim:
        names = {3: "(z, y, x)", 4: "(c, z, y, x)"}
        wanted = " or ".join(names.get(rank, f"{rank} axes") for rank in ndim)
        raise VolumeError(f"the array has shape {source.shape}, expected {wanted}", where=resolved)
    if 0 in shape:
        raise VolumeError(f"the volume is empty, its shape is {shape}", where=resolved)
    if source.dtype.kind not in "buif":
        raise VolumeError(f"values of type {source.dtype} are no gray values, labels or affinities", where=resolved)
    chunks = None if source.chunks is None else source.chunks[dropped:]
    return Volume(resolved, shape, source.dtype.newbyteorder("="), chunks, source.space, source.label_images, source)


def check_gray(volume: Volume, *, rescale: tuple[float, float] | None = None) -> None:
    """Makes sure that a volume can be read as 8-bit gray values.

    Args:
        volume: any opened volume.
        rescale: the values that become 0 and 255; without it only uint8 is accepted.

    Raises:
        VolumeError: another dtype and no `rescale`, or a `rescale` that is no finite rising range.
    """
    if rescale is None:
        if volume.dtype != np.uint8:
            raise VolumeError(
                f"gray values are {volume.dtype}, expected uint8",
                where=volume.address,
                remedy="say which range becomes 0..255 (--gray-range LOW,HIGH); values are never rescaled silently",
            )
        return
    low, high = rescale
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise VolumeError(
            f"cannot rescale the range {low}..{high} to 0..255",
            where=volume.address,
            remedy="low must be below high, and both finite",
        )


def read_gray(volume: Volume, box: Box, *, rescale: tuple[float, float] | None = None) -> npt.NDArray[np.uint8]:
    """Reads gray values (uint8) of a box; `rescale=(low, high)` maps low..high linearly to 0..255 and clips the rest.

    Raises:
        VolumeError: as `check_gray`; also NaN or infinite values, with their position.
        GeometryError: the box reaches outside the volume.
    """
    check_gray(volume, rescale=rescale)
    data = volume.read(box)
    if rescale is None:
        return data.astype(np.uint8, copy=False)
    if data.dtype.kind == "f":
        _refuse(volume, box, ~np.isfinite(data), data, "is not a finite gray value", "repair or crop the volume")
    low, high = rescale
    values: npt.NDArray[np.floating[Any]] = data.astype(np.float64 if data.dtype.itemsize > 2 else np.float32)
    scaled: npt.NDArray[np.floating[Any]] = np.rint(np.clip((values - low) * (255.0 / (high - low)), 0.0, 255.0))
    return scaled.astype(np.uint8)


def check_labels(volume: Volume) -> None:
    """Makes sure that a volume can be read as labels.

    Raises:
        VolumeError: the dtype is no integer, or this is an OME-NGFF image that has its labels beside it.
    """
    if volume.label_images:
        places = ", ".join(f"{volume.address.path}/{path}" for path in volume.label_images)
        raise VolumeError(
            "this is an image, which has its labels beside it",
            where=volume.address,
            remedy=f"name its labels: {places}",
        )
    if volume.dtype.kind not in "ui":
        raise VolumeError(
            f"labels are {volume.dtype}, expected integers",
            where=volume.address,
            remedy="check that the address names labels and not an image or probabilities",
        )


def read_labels(volume: Volume, box: Box, *, sparse: bool = False) -> npt.NDArray[np.uint64]:
    """Reads labels (uint64) of a box; of sparse ones, -1 is `UNLABELLED`.

    Raises:
        VolumeError: as `check_labels`; also another negative label, with its position.
        GeometryError: the box reaches outside the volume.
    """
    check_labels(volume)
    data = volume.read(box)
    if not (sparse and data.dtype.kind == "i" and data.size and data.min() == -1):
        refuse_negative(volume, box, data)
    return data.astype(np.uint64, copy=False)


def refuse_negative(volume: Volume, box: Box, labels: Array) -> None:
    """Makes sure that labels read from a box are none below 0.

    Raises:
        VolumeError: a negative label, with its position.
    """
    if labels.dtype.kind == "i":
        _refuse(volume, box, labels < 0, labels, "is no label", "labels start at 0 (background)")


def _refuse(volume: Volume, box: Box, bad: npt.NDArray[np.bool_], data: Array, what: str, remedy: str) -> None:
    if not bad.any():
        return
    index = np.unravel_index(int(np.argmax(bad)), bad.shape)
    position = tuple(int(i) + start for i, start in zip(index[-3:], box.start, strict=True))
    raise VolumeError(
        f"{data[index]} at voxel (z, y, x) = {position} {what}; {int(bad.sum())} such voxels in this box",
        where=volume.address,
        remedy=remedy,
    )
