"""Writing a multiscale volume box by box, building its pyramid out of core, and declaring it complete."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.volumes.address import is_zarr
from fgnet.volumes.durability import sync_file, sync_folder
from fgnet.volumes.errors import GeometryError, OutputError, VolumeError
from fgnet.volumes.geometry import Box, as_triple
from fgnet.volumes.ngff import Level, label_names, multiscale_attributes, wrapped
from fgnet.volumes.output_store import ZarrFormat, explained
from fgnet.volumes.pyramid import LARGEST_EXTENT, LevelPlan, Method, downsample, plan_levels
from fgnet.volumes.space import Space

Array = npt.NDArray[Any]
Axes = Literal["zyx", "czyx"]

_ZSTD_LEVEL = 3


class MultiscaleWriter:
    """An OME-NGFF image that is being written; `create_image` and `create_labels` make one.

    The group carries no multiscale metadata and is marked as unfinished until `finish`, so an interrupted or failed
    run leaves nothing that opens as an image. As a context manager the writer finishes where the block succeeds, and
    leaves the output unfinished where it raises. The mark does not protect the arrays inside the group: whoever opens
    "0" by its own path sees zeros where nothing was written.

    Args:
        group: the empty group of the output.
        where: the output's path, for messages.
        array: level 0.
        axes: "zyx" or "czyx".
        space: voxel size and offset of level 0, in nm.
        name: name of the image.
        method: how coarser levels are made.
    """

    def __init__(
        self,
        group: zarr.Group,
        where: Path,
        array: zarr.Array[Any],
        axes: Axes,
        space: Space,
        name: str,
        method: Method,
    ) -> None:
        self.path = where
        self.axes = axes
        self.space = space
        self.name = name
        self._group = group
        self._method: Method = method
        self._levels: list[tuple[LevelPlan, zarr.Array[Any]]] = [(plan_levels(array.shape[-3:], space)[0], array)]
        self._failed: BaseException | None = None
        self.finished = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every axis of level 0."""
        return tuple(self._levels[0][1].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every level."""
        return np.dtype(self._levels[0][1].dtype)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunk shape of level 0."""
        return tuple(self._levels[0][1].chunks)

    def write(self, box: Box, array: Array) -> None:
        """Writes a box of level 0, in all channels.

        Boxes may be written from several threads where no two of them touch the same chunk.

        Args:
            box: (z, y, x) inside the volume.
            array: the box's shape, with the channels in front for "czyx"; the output's dtype.

        Raises:
            GeometryError: the box reaches outside the volume.
            VolumeError: another shape or dtype than the output's.
            OutputError: the store cannot be written, or the output is finished.
        """
        self._check(box)
        expected = (*self.shape[:-3], *box.shape)
        if array.shape != expected or array.dtype != self.dtype:
            raise VolumeError(
                f"got {array.dtype} of shape {array.shape}, expected {self.dtype} of shape {expected}", where=self.path
            )
        self._store(self._levels[0][1], box, array)

    def sync(self, box: Box) -> None:
        """Waits until the chunks of level 0 that a box touches are on the disk itself, not only on their way to it.

        What an earlier process that was killed has left of them under other names is removed.

        Raises:
            OutputError: the disk refuses them.
        """
        array = self._levels[0][1]
        ranges = [range(n // step + bool(n % step)) for n, step in zip(self.shape[:-3], self.chunks[:-3], strict=True)]
        for first, last, step in zip(box.start, box.stop, self.chunks[-3:], strict=True):
            ranges.append(range(first // step, (last - 1) // step + 1))
        folder = self.path / array.basename
        with self._watched():
            for index in itertools.product(*ranges):
                file = folder / array.metadata.encode_chunk_key(index)
                for torn in file.parent.glob(f"{file.name}.*.partial"):
                    torn.unlink(missing_ok=True)
                # A chunk of zeros alone has no file. The others have their names already: journaling file systems keep
                # those with the content, so that the folders, which would take several times as long, are left alone.
                if file.exists():
                    sync_file(file)

    def read(self, box: Box) -> Array:
        """Reads back a box of level 0, in all channels; 0 where nothing was written.

        Raises:
            GeometryError: the box reaches outside the volume.
        """
        self._check(box)
        return np.asarray(self._levels[0][1][(..., *box.slices)])

    def build_pyramid(self, *, largest: int = LARGEST_EXTENT, workers: int = 1) -> None:
        """Makes the coarser levels from level 0, a few chunks at a time, until sections are at most `largest` wide.

        Images are averaged; labels take the most frequent id. Call it once level 0 is written.

        Args:
            largest: in-plane extent (voxels) of the coarsest level.
            workers: threads; each holds the voxels that make one chunk.

        Raises:
            OutputError: the store cannot be written, or the output is finished.
        """
        self._check_open()
        del self._levels[1:]
        plans = plan_levels(self.shape[-3:], self.space, largest=largest)
        for index, plan in enumerate(plans[1:], start=1):
            finer_plan, finer = self._levels[-1]
            shape = (*self.shape[:-3], *plan.shape)
            with self._watched():
                array = create_level(self._group, str(index), shape, self.dtype, self.chunks, self.axes)
            merge = partial(self._merge, plan, finer_plan, finer, array)
            with ThreadPoolExecutor(workers) as threads:
                for _ in threads.map(merge, _chunk_boxes(array)):
                    pass
            self._levels.append((plan, array))

    def finish(self) -> None:
        """Declares the output complete: writes the multiscale metadata of the levels that were made.

        Raises:
            OutputError: a write failed before, or the metadata cannot be written.
        """
        if self.finished:
            return
        self._check_open()
        levels = [Level(str(i), plan.voxel_size, plan.offset) for i, (plan, _) in enumerate(self._levels)]
        zarr_format = self._group.metadata.zarr_format
        attributes = multiscale_attributes(
            levels,
            axes=self.axes,
            name=self.name,
            zarr_format=zarr_format,
            known=self.space.known,
            method=self._method,
            labels=self._method == "mode",
        )
        with self._watched():
            self._group.attrs.put(attributes)
            # On the disk before a journal is removed because the output is complete.
            sync_file(self.path / ("zarr.json" if zarr_format == 3 else ".zattrs"))
            sync_folder(self.path)
            _list_in_labels_group(self.path, zarr_format)
        self.finished = True

    def __enter__(self) -> MultiscaleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()

    def _merge(
        self, plan: LevelPlan, finer_plan: LevelPlan, finer: zarr.Array[Any], array: zarr.Array[Any], box: Box
    ) -> None:
        with self._watched():
            block = np.asarray(finer[(..., *plan.source_of(box, finer_plan.shape).slices)])
        self._store(array, box, downsample(block, plan.step, self._method))

    def _store(self, target: zarr.Array[Any], box: Box, array: Array) -> None:
        self._check_open()
        with self._watched():
            target[(..., *box.slices)] = array

    def _check(self, box: Box) -> None:
        if not Box.from_shape(self.shape[-3:]).contains(box):
            raise GeometryError(
                f"box {box} reaches outside the output of shape {self.shape}",
                where=self.path,
                remedy="intersect it with the volume's box first",
            )

    def _check_open(self) -> None:
        if self.finished:
            raise OutputError("the output is finished", where=self.path, remedy="create it anew to change it")
        if self._failed is not None:
            raise OutputError(
                f"a write to this output failed before, so it stays unfinished: {self._failed}",
                where=self.path,
                remedy="mend the cause, and give the same command with --resume where it has that, or --overwrite",
            )

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with explained(self.path):
                yield
        except BaseException as error:
            self._failed = self._failed or error
            raise


def create_level(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], axes: Axes
) -> zarr.Array[Any]:
    """Creates the array of one level, filled with 0; an extent of the chunks is clipped to the shape."""
    third = group.metadata.zarr_format == 3
    zstd: dict[str, Any] = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL}}
    zstd_v2: dict[str, Any] = {"id": "zstd", "level": _ZSTD_LEVEL}
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(min(pair) for pair in zip(chunks, shape, strict=True)),
        compressors=zstd if third else zstd_v2,
        chunk_key_encoding={"name": "default" if third else "v2", "separator": "/"},
        dimension_names=list(axes) if third else None,
        fill_value=0,
        overwrite=True,
    )


def _chunk_boxes(array: zarr.Array[Any]) -> Iterator[Box]:
    """Boxes (z, y, x) of an array's chunks, z slowest."""
    whole = Box.from_shape(array.shape[-3:])
    chunk = as_triple(array.chunks[-3:], "chunks")
    for corner in itertools.product(*(range(0, n, step) for n, step in zip(whole.shape, chunk, strict=True))):
        yield Box((0, 0, 0), chunk).shift(corner).intersect(whole)


def _list_in_labels_group(path: Path, zarr_format: ZarrFormat) -> None:
    """Registers a label image in the "labels" group that holds it, as NGFF asks."""
    if path.parent.name != "labels" or not is_zarr(path.parent):
        return
    parent = zarr.open_group(str(path.parent), mode="r+")
    names = {*label_names(parent.attrs.asdict()), path.name}
    parent.attrs.update(wrapped({"labels": sorted(names)}, zarr_format))
