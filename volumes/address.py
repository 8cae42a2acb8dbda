"""Which array a text names: `v.zarr/group/array`, `f.h5:dataset`, `stack.tif`, or a folder of section images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgnet.volumes.errors import AddressError

Kind = Literal["zarr", "hdf5", "tiff", "sections"]

TIFF_SUFFIXES = (".tif", ".tiff")
SECTION_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg")
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
_HDF5 = re.compile(r"(?P<path>.*?\.(?:h5|hdf|hdf5))(?::(?P<dataset>.*))?", re.IGNORECASE | re.DOTALL)
_FORMS = "an address is v.zarr[/array], f.h5[:dataset], stack.tif, or a folder of section images"


@dataclass(frozen=True)
class Address:
    """Where one array lies.

    Args:
        path: the Zarr store, HDF5 or TIFF file, or folder of sections.
        dataset: path of the array or group inside a Zarr store or HDF5 file; None for the store itself, or for
            the only dataset of an HDF5 file.
        kind: how the path is read.
    """

    path: Path
    dataset: str | None
    kind: Kind

    def __str__(self) -> str:
        if self.dataset is None:
            return str(self.path)
        return f"{self.path}{':' if self.kind == 'hdf5' else '/'}{self.dataset}"

    @property
    def name(self) -> str:
        """The array's own name: the last part of the dataset, else the file name without its ending."""
        return self.dataset.rsplit("/", 1)[-1] if self.dataset else self.path.stem


def parse_address(text: str | Path) -> Address:
    """Finds what an address names; looks at the file system, opens no array.

    Raises:
        AddressError: nothing is there, a folder holds no section images or one of them twice, or the file is of an
            unknown kind.
    """
    written = str(text).strip()
    if not written:
        raise AddressError("the address is empty", remedy=_FORMS)
    path = Path(written)
    zarr = _zarr_address(path)
    if zarr is not None:
        return zarr
    match = _HDF5.fullmatch(written)
    if match is not None:
        return _hdf5_address(Path(match["path"]), match["dataset"])
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        if not section_files(path):
            raise AddressError(
                "the folder holds no Zarr metadata and no section images",
                where=path,
                remedy=f"expected a Zarr array or group, or files ending in {', '.join(SECTION_SUFFIXES)}",
            )
        return Address(path, None, "sections")
    if path.suffix.lower() in TIFF_SUFFIXES:
        return Address(path, None, "tiff")
    raise AddressError(f"a file ending in {path.suffix!r} is of no kind known here", where=path, remedy=_FORMS)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array, of either version."""
    return any((path / name).is_file() for name in _ZARR_METADATA)


def section_files(folder: Path) -> list[Path]:
    """Image files of a folder in natural order: section_2 before section_10.

    Raises:
        AddressError: two files differ in their ending alone, so that a section would be read twice.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in SECTION_SUFFIXES and not p.name.startswith(".")]
    files.sort(key=_natural_key)
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other != file:
            raise AddressError(
                f"the folder holds the section {file.stem} twice, as {other.name} and {file.name}",
                where=folder,
                remedy="keep the images of one kind in a folder of their own",
            )
    return files


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _zarr_address(path: Path) -> Address | None:
    """Splits after the outermost component that is a Zarr store by its ending or by its metadata."""
    for store in (*reversed(path.parents), path):
        named = store.suffix.lower() == ".zarr"
        if not (named or is_zarr(store)):
            continue
        if not store.exists():
            raise _missing(store)
        if not is_zarr(store):
            if not store.is_dir():
                raise AddressError("a Zarr store must be a folder", where=store, remedy="unpack it first")
            if store != path:
                continue
            raise AddressError("the folder holds no Zarr metadata", where=store, remedy="it is empty or incomplete")
        inner = path.relative_to(store).as_posix()
        return Address(store, None if inner == "." else inner, "zarr")
    return None


def _hdf5_address(path: Path, dataset: str | None) -> Address:
    if not path.is_file():
        raise _missing(path)
    return Address(path, (dataset or "").strip("/ ") or None, "hdf5")


def _missing(path: Path) -> AddressError:
    parent = next((p for p in path.parents if p.exists()), Path("/"))
    return AddressError("there is no such file or folder", where=path, remedy=f"{parent} exists; check what follows it")
