"""Opening a dataset of an HDF5 file, with the `resolution` and `offset` attributes of CREMI."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from fgnet.volumes.address import Address
from fgnet.volumes.errors import AddressError
from fgnet.volumes.source import Slices, Source
from fgnet.volumes.space import from_attributes

_CHUNK_CACHE_BYTES = 64 * 2**20


def open_hdf5(address: Address, ndim: tuple[int, ...]) -> Source:
    """Opens the dataset of an address; where it names none, the first one of a rank asked for.

    Raises:
        AddressError: the file is no HDF5 file, or holds no such dataset.
        VolumeError: a malformed `resolution` or `offset`.
    """
    try:
        file = h5py.File(address.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except OSError as error:
        raise AddressError(f"the HDF5 file cannot be opened: {error}", where=address.path) from error
    try:
        return _open_dataset(file, address, ndim)
    except BaseException:
        file.close()
        raise


def _open_dataset(file: h5py.File, address: Address, ndim: tuple[int, ...]) -> Source:
    present = _datasets(file)
    name = address.dataset
    if name is None:
        name = next((path for path, rank in present.items() if rank in ndim), next(iter(present), None))
    if name not in present:
        what = "the file holds no dataset" if name is None else f"the file holds no dataset {name!r}"
        raise AddressError(what, where=address.path, remedy=f"datasets present: {', '.join(present) or 'none'}")
    dataset = file[name]

    def read(slices: Slices) -> np.ndarray[Any, np.dtype[Any]]:
        return np.asarray(dataset[slices])

    return Source(
        tuple(dataset.shape),
        np.dtype(dataset.dtype),
        read,
        dataset.chunks,
        from_attributes(dict(dataset.attrs), dict(file.attrs)),
        name,
        file.close,
    )


def _datasets(file: h5py.File) -> dict[str, int]:
    """Rank of every dataset by its path, in the file's order."""
    found: dict[str, int] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            found[name] = node.ndim

    file.visititems(visit)
    return found
