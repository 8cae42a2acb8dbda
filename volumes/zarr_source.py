"""Opening an array of a Zarr store, v2 or v3, plain or OME-NGFF."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr

from fgnet.volumes.address import Address, is_zarr
from fgnet.volumes.errors import AddressError, VolumeError, located
from fgnet.volumes.ngff import Json, is_label_image, label_names, level_paths, level_space, multiscale_of
from fgnet.volumes.source import Slices, Source
from fgnet.volumes.space import Space, from_attributes, refuse_other_axes

Node = zarr.Array[Any] | zarr.Group

_BLOSC_HEADER = 16  # bytes; the last four hold the length of the chunk

UNFINISHED = "fgnet_unfinished"
"""Attribute of a group that is being written; `finish` removes it."""


def open_zarr(address: Address) -> Source:
    """Opens the array of an address; of a multiscale group, its finest level.

    Raises:
        AddressError: no such array, or a group that is no multiscale image.
        VolumeError: metadata that cannot be read, axes in another order than z, y, x, or an unfinished output.
    """
    node = _open_node(address)
    if isinstance(node, zarr.Array):
        return _source(node, address, _array_space(address, node), address.dataset)
    attributes = node.attrs.asdict()
    if attributes.get(UNFINISHED):
        raise VolumeError(
            "the run that writes this output has not finished it",
            where=address,
            remedy="wait for it, or run it again with overwriting allowed (--overwrite)",
        )
    multiscale = multiscale_of(attributes)
    if multiscale is None:
        present = ", ".join(array_paths(node)) or "none"
        raise AddressError(
            "this is a group without OME-NGFF multiscales, not an array",
            where=address,
            remedy=f"append the path of one of its arrays: {present}",
        )
    with _blamed_on(address):
        path = level_paths(multiscale)[0]
    dataset = path if address.dataset is None else f"{address.dataset}/{path}"
    place = Address(address.path, dataset, "zarr")
    level = _open_node(place)
    if not isinstance(level, zarr.Array):
        raise VolumeError(f"level {path} of the multiscale image is no array", where=address)
    source = _source(level, place, _declared_space(address, multiscale, 0), address.dataset)
    return source if is_label_image(attributes) else replace(source, label_images=_label_images(node, address))


def is_unfinished(path: Path) -> bool:
    """Whether a Zarr group is there that a run began to write and nobody finished."""
    if not is_zarr(path):
        return False
    try:
        return bool(zarr.open_group(str(path), mode="r").attrs.get(UNFINISHED))
    except Exception:  # an array, or metadata that is damaged in any way: nothing to go on with
        return False


def is_image(path: Path) -> bool:
    """Whether a Zarr group is there that opens as an OME-NGFF image, so that its writing was finished."""
    if not is_zarr(path):
        return False
    try:
        return multiscale_of(zarr.open_group(str(path), mode="r").attrs.asdict()) is not None
    except Exception:  # an array, or metadata that is damaged in any way
        return False


def image_arrays(place: Path) -> list[Path]:
    """Folders of the levels of every multiscale image that a folder is, or is a level of; symbolic links followed.

    Metadata that cannot be read declare nothing.
    """
    found: list[Path] = []
    # A level may be a link into another store, and so belong to the images on both sides.
    for node in {place.absolute(), place.resolve()}:
        for folder in (node, *node.parents):
            levels = _declared_levels(folder)
            if folder == node or place.resolve() in levels:
                found.extend(levels)
    return found


def _declared_levels(folder: Path) -> list[Path]:
    if not is_zarr(folder):
        return []
    try:
        multiscale = multiscale_of(zarr.open_group(str(folder), mode="r").attrs.asdict())
        return [] if multiscale is None else [(folder / path).resolve() for path in level_paths(multiscale)]
    except Exception:  # an array, or metadata that is damaged in any way
        return []


def array_paths(group: zarr.Group) -> list[str]:
    """Paths of all arrays below a group, sorted."""
    return sorted(name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array))


def _label_images(image: zarr.Group, address: Address) -> tuple[str, ...]:
    """Paths inside the store of an image's label images, as OME-NGFF lists them."""
    held = image.get("labels")
    names = label_names(held.attrs.asdict()) if isinstance(held, zarr.Group) else []
    return tuple((PurePosixPath(address.dataset or "") / "labels" / name).as_posix() for name in names)


def _open_node(address: Address) -> Node:
    path = address.path / (address.dataset or "")
    if not is_zarr(path):
        root = _open_path(address.path, address)
        present = ", ".join(array_paths(root)) or "none" if isinstance(root, zarr.Group) else "the store is one array"
        raise AddressError(
            f"the store holds no array or group {address.dataset!r}",
            where=address.path,
            remedy=f"arrays present: {present}",
        )
    return _open_path(path, address)


def _open_path(path: Path, address: Address) -> Node:
    try:
        return zarr.open(str(path), mode="r")
    except Exception as error:  # the metadata may be damaged in any way
        raise VolumeError(f"the Zarr metadata cannot be read: {error}", where=address) from error


def _source(array: zarr.Array[Any], address: Address, space: Space, dataset: str | None) -> Source:
    folder = address.path / (address.dataset or "")
    with located(address):
        for axes in _declared_axes(array):
            refuse_other_axes(axes)
    unguarded = any("blosc" in type(codec).__name__.lower() for codec in array.compressors) and array.shards is None

    def read(slices: Slices) -> np.ndarray[Any, np.dtype[Any]]:
        if unguarded:
            _refuse_short_blosc_chunks(array, folder, slices)
        return np.asarray(array[slices])

    return Source(tuple(array.shape), np.dtype(array.dtype), read, tuple(array.chunks), space, dataset)


def _declared_axes(array: zarr.Array[Any]) -> list[object]:
    """Names of the axes as Zarr v3 itself, xarray in v2, and funlib write them; what is left out says nothing."""
    attributes = array.attrs.asdict()
    named = getattr(array.metadata, "dimension_names", None)
    return [named, attributes.get("_ARRAY_DIMENSIONS"), attributes.get("axis_names")]


def _refuse_short_blosc_chunks(array: zarr.Array[Any], folder: Path, slices: Slices) -> None:
    """Compares the length of every chunk file with the length its Blosc header declares.

    Blosc's decoder reads past the end of a chunk that was cut short where the voxels were stored uncompressed, as
    noisy gray values are, and returns what happens to lie there.
    """
    touched = [range(s.start // extent, -(-s.stop // extent)) for s, extent in zip(slices, array.chunks, strict=True)]
    for coordinates in itertools.product(*touched):
        file = folder / array.metadata.encode_chunk_key(coordinates)
        try:
            with file.open("rb") as chunk:
                header = chunk.read(_BLOSC_HEADER)
                length = chunk.seek(0, os.SEEK_END)
        except FileNotFoundError:
            continue  # a chunk that is not stored holds the fill value
        if length < _BLOSC_HEADER or length < int.from_bytes(header[12:16], "little"):
            raise OSError(f"chunk {file} was cut short, it holds only {length} bytes")


def _array_space(address: Address, array: zarr.Array[Any]) -> Space:
    """What the array's attributes say, else the multiscale group above that lists the array as a level."""
    with located(address):
        space = from_attributes(array.attrs.asdict())
    if space.known or address.dataset is None:
        return space
    inner = PurePosixPath(address.dataset)
    for parent in inner.parents:
        folder = address.path / parent
        group = _open_path(folder, address) if is_zarr(folder) else None
        multiscale = multiscale_of(group.attrs.asdict()) if group is not None else None
        if multiscale is not None:
            with _blamed_on(address):
                paths = level_paths(multiscale)
            name = inner.relative_to(parent).as_posix()
            return _declared_space(address, multiscale, paths.index(name)) if name in paths else space
    return space


def _declared_space(address: Address, multiscale: Json, index: int) -> Space:
    with _blamed_on(address):
        return level_space(multiscale, index)


@contextlib.contextmanager
def _blamed_on(address: Address) -> Iterator[None]:
    """Adds the address to what is wrong with OME-NGFF metadata."""
    with located(address):
        try:
            yield
        except (KeyError, TypeError, AttributeError) as error:
            raise VolumeError(f"the OME-NGFF metadata is malformed: {error!r}") from error
