"""Opening a dataset of an HDF5 file, with the `resolution` and `offset` attributes of CREMI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgnet.volumes.address import Address
from fgnet.volumes.errors import AddressError, located
from fgnet.volumes.source import Content, Slices, Source
from fgnet.volumes.space import from_attributes, refuse_other_axes

_CHUNK_CACHE_BYTES = 64 * 2**20
_NAMES: dict[Content | None, tuple[str, ...]] = {"gray": ("raw",), "labels": ("labels", "neuron_ids")}


def open_hdf5(address: Address, ndim: tuple[int, ...], holds: Content | None = None) -> Source:
    """Opens the dataset of an address; where it names none, the only one of a rank asked for.

    Args:
        address: of an HDF5 file.
        ndim: ranks that are accepted.
        holds: what is looked for; of several datasets, the one is taken that the field calls so.

    Raises:
        AddressError: the file is no HDF5 file, holds no such dataset, or several and the address names none.
        VolumeError: a malformed `resolution` or `offset`, or axes in another order than z, y, x.
    """
    try:
        file = h5py.File(address.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except OSError as error:
        raise AddressError(f"the HDF5 file cannot be opened: {error}", where=address.path) from error
    try:
        return _open_dataset(file, address, ndim, holds)
    except BaseException:
        file.close()
        raise


def _open_dataset(file: h5py.File, address: Address, ndim: tuple[int, ...], holds: Content | None) -> Source:
    name = address.dataset
    if name is None and (present := _datasets(file)):
        name = _only_one(present, address, ndim, holds)
    dataset = None if name is None else _dataset(file, name)
    if name is None or dataset is None:
        what = "the file holds no dataset" if name is None else f"the file holds no dataset {name!r}"
        names = ", ".join(_datasets(file)) or "none"
        raise AddressError(what, where=address.path, remedy=f"datasets present: {names}")
    with located(Address(address.path, name, "hdf5")):
        refuse_other_axes(dataset.attrs.get("axis_names"))
        space = from_attributes(dict(dataset.attrs), dict(file.attrs))

    def read(slices: Slices) -> np.ndarray[Any, np.dtype[Any]]:
        return np.asarray(dataset[slices])

    return Source(
        tuple(dataset.shape),
        np.dtype(dataset.dtype),
        read,
        dataset.chunks,
        space,
        name,
        file.close,
        stored=_stored(dataset),
    )


def _stored(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """Device and inode of the file that holds a dataset, which an external link may name, and its place in there."""
    try:
        file = Path(dataset.file.filename).stat()
    except OSError:  # it was removed or renamed since
        return None
    return file.st_dev, file.st_ino, int(h5py.h5o.get_info(dataset.id).addr)


def _only_one(present: dict[str, h5py.Dataset], address: Address, ndim: tuple[int, ...], holds: Content | None) -> str:
    """Name of the dataset that is meant by an address that names none; never a guess."""
    fitting = [name for name, dataset in present.items() if dataset.ndim in ndim] or list(present)
    called_so = [name for name in fitting if name.rsplit("/", 1)[-1].lower() in _NAMES.get(holds, ())]
    for names in (fitting, called_so):
        if len({present[name] for name in names}) == 1:  # one dataset may be linked to by several names
            return names[0]
    listed = ", ".join(f"{name} ({present[name].dtype} of shape {present[name].shape})" for name in fitting)
    raise AddressError(
        f"the file holds several datasets, and the address names none: {listed}",
        where=address.path,
        remedy=f"name one of them, as in {address.path}:{fitting[0]}",
    )


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset by its path, in the file's order, those that links lead to included."""
    names: list[str] = []
    file.visititems_links(lambda name, _: names.append(name))
    found = ((name, _dataset(file, name)) for name in names)
    return {name: dataset for name, dataset in found if dataset is not None}


def _dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """What a path leads to, through links of every kind; None where that is no dataset, or one without a shape."""
    try:
        node = file.get(name)
    except (OSError, RuntimeError):  # a link to a damaged file, or one that leads back to itself
        return None
    return node if isinstance(node, h5py.Dataset) and node.shape is not None else None
