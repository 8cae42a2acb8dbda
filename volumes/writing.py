"""Creating a volume: OME-NGFF images and labels in Zarr v2 or v3, to be written box by box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.volumes.address import is_zarr
from fgnet.volumes.errors import GeometryError, OutputError
from fgnet.volumes.multiscale_writer import Axes, MultiscaleWriter, create_level
from fgnet.volumes.output_store import ZarrFormat, explained, prepare_group
from fgnet.volumes.pyramid import Method
from fgnet.volumes.space import Space
from fgnet.volumes.zarr_source import UNFINISHED

__all__ = ["CHUNKS", "MultiscaleWriter", "begun_as", "create_image", "create_labels", "reopen"]

CHUNKS = (64, 128, 128)
"""Chunk shape (z, y, x) unless told otherwise; clipped to the volume."""


def create_image(
    path: str | Path,
    *,
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    space: Space,
    axes: Axes = "zyx",
    chunks: Sequence[int] | None = None,
    name: str | None = None,
    zarr_format: ZarrFormat = 3,
    group: str | None = None,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
    first: Callable[[], None] = lambda: None,
) -> MultiscaleWriter:
    """Creates an OME-NGFF image: gray values, affinities, probabilities.

    Args:
        path: the Zarr store; its parents are created. The store itself, or `group` in it, becomes the multiscale
            group with the arrays "0", "1", ...
        shape: extent of every axis of level 0.
        dtype: of the voxels.
        space: voxel size and offset (nm).
        axes: "zyx", or "czyx" with channels in front.
        chunks: (z, y, x), or one extent per axis; (64, 128, 128) with one channel per chunk if left out.
        name: name of the image; that of the group or store if left out.
        zarr_format: 3 writes Zarr v3 with NGFF 0.5, 2 writes Zarr v2 with NGFF 0.4.
        group: where in the store; "labels/NAME" is also listed as a label image of the store.
        overwrite: whether a Zarr output that is there already is deleted; see `prepare_group` for what never is.
        replaces: groups inside the output that are deleted with it.
        first: called once nothing is in the way, before anything is deleted or created.

    Raises:
        OutputError: the output exists, or cannot be created.
        GeometryError: shape or chunks that do not fit the axes.
    """
    return _create(
        path, group, overwrite, replaces, first, zarr_format, shape, np.dtype(dtype), chunks, axes, space, name, "mean"
    )


def reopen(
    path: str | Path,
    *,
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    space: Space,
    axes: Axes,
    name: str | None = None,
    group: str | None = None,
    method: Method = "mean",
    finished: bool = False,
) -> MultiscaleWriter:
    """Goes on writing what `create_image` or `create_labels` began and nobody finished.

    Args:
        path: the Zarr store.
        shape: of level 0, as it was created.
        dtype: likewise.
        space: likewise.
        axes: likewise.
        name: likewise.
        group: likewise.
        method: "mean" for images, "mode" for labels.
        finished: whether one that somebody did finish will do; it becomes unfinished again.

    Raises:
        OutputError: there is no such output of this shape and dtype.
    """
    target = Path(path) / (group or "").strip("/")
    remedy = "start anew with --overwrite"
    with explained(target):
        if not is_zarr(target):
            raise OutputError("the unfinished output is not there any more", where=target, remedy=remedy)
        node = zarr.open_group(str(target), mode="r+")
        array = node.get("0")
        if not (finished or node.attrs.get(UNFINISHED)) or not isinstance(array, zarr.Array):
            raise OutputError("this is no unfinished output", where=target, remedy=remedy)
        if (tuple(array.shape), array.dtype) != (tuple(shape), np.dtype(dtype)):
            raise OutputError(
                f"the unfinished output is {array.dtype} of shape {array.shape}, and {np.dtype(dtype)} of shape"
                f" {tuple(shape)} is wanted",
                where=target,
                remedy=remedy,
            )
        if not isinstance(node.attrs.get(UNFINISHED), str):
            _begin(node)
    return MultiscaleWriter(node, target, array, axes, space, name or target.stem, method)


def begun_as(path: str | Path, *, group: str | None = None) -> str:
    """What tells an output that is being written from any other, a later one at the same place included.

    It is drawn when the output is created, kept by `reopen`, and gone once the output is finished.

    Args:
        path: the Zarr store.
        group: as for `create_image`.

    Raises:
        OutputError: there is no output that `create_image`, `create_labels` or `reopen` has opened for writing.
    """
    target = Path(path) / (group or "").strip("/")
    with explained(target):
        name = zarr.open_group(str(target), mode="r").attrs.get(UNFINISHED)
    if not isinstance(name, str):
        raise OutputError("nobody is writing this output", where=target, remedy="create it, or reopen it, first")
    return name


def _begin(node: zarr.Group) -> None:
    """Mark a group as unfinished, by a name that no other has: inodes and times come again."""
    node.attrs.put({UNFINISHED: uuid4().hex})


def create_labels(
    path: str | Path,
    *,
    shape: Sequence[int],
    space: Space,
    dtype: npt.DTypeLike = np.uint64,
    chunks: Sequence[int] | None = None,
    name: str | None = None,
    zarr_format: ZarrFormat = 3,
    group: str | None = None,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
    first: Callable[[], None] = lambda: None,
) -> MultiscaleWriter:
    """Creates an OME-NGFF label image (z, y, x); arguments and errors as for `create_image`.

    Raises:
        OutputError: also for a dtype that is no integer.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "ui":
        raise OutputError(f"labels cannot be {kind}", where=path, remedy="choose an integer dtype such as uint64")
    return _create(
        path, group, overwrite, replaces, first, zarr_format, shape, kind, chunks, "zyx", space, name, "mode"
    )


def _create(
    path: str | Path,
    group: str | None,
    overwrite: bool,
    replaces: Sequence[str],
    first: Callable[[], None],
    zarr_format: ZarrFormat,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunks: Sequence[int] | None,
    axes: Axes,
    space: Space,
    name: str | None,
    method: Method,
) -> MultiscaleWriter:
    extents = tuple(int(extent) for extent in shape)
    wanted = CHUNKS if chunks is None else tuple(int(extent) for extent in chunks)
    wanted = (1,) * (len(axes) - len(wanted)) + wanted
    if axes not in ("zyx", "czyx") or len(extents) != len(axes) or min(extents) < 1:
        raise GeometryError(f"shape {extents} does not fit the axes {axes!r}", where=path)
    if len(wanted) != len(axes) or min(wanted) < 1:
        raise GeometryError(f"chunks {chunks} do not fit the axes {axes!r}", where=path)
    target = Path(path) / (group or "").strip("/")
    node = prepare_group(
        Path(path), group, zarr_format=zarr_format, overwrite=overwrite, replaces=replaces, first=first
    )
    with explained(target):
        _begin(node)
        array = create_level(node, "0", extents, dtype, wanted, axes)
    return MultiscaleWriter(node, target, array, axes, space, name or target.stem, method)
