"""Where a volume lies in the world: voxel size and offset in nanometres, axes (z, y, x)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fgnet.volumes.errors import VolumeError

Lengths = tuple[float, float, float]

_AXES = set("czyxt")
_TRANSPOSE = "the last three must be z, y, x; transpose the image"
_NANOMETERS = {
    "angstrom": 0.1,
    "å": 0.1,
    "picometer": 1e-3,
    "pm": 1e-3,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "nm": 1.0,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micron": 1e3,
    "um": 1e3,
    "\u00b5m": 1e3,  # the micro sign
    "\u03bcm": 1e3,  # the Greek letter
    "millimeter": 1e6,
    "millimetre": 1e6,
    "mm": 1e6,
    "centimeter": 1e7,
    "centimetre": 1e7,
    "cm": 1e7,
    "meter": 1e9,
    "metre": 1e9,
    "m": 1e9,
    "inch": 2.54e7,
}


@dataclass(frozen=True)
class Space:
    """Voxel size and position of a volume.

    Args:
        voxel_size: nm per voxel (z, y, x), above 0.
        offset: nm (z, y, x) of the first voxel.
        known: False where a file says nothing and the voxel size (1, 1, 1) is a stand-in.

    Raises:
        VolumeError: a voxel size that is not finite and above 0, or an offset that is not finite.
    """

    voxel_size: Lengths
    offset: Lengths = (0.0, 0.0, 0.0)
    known: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "voxel_size", as_lengths(self.voxel_size, "voxel size"))
        object.__setattr__(self, "offset", as_lengths(self.offset, "offset"))
        if min(self.voxel_size) <= 0:
            raise VolumeError(f"the voxel size {self.voxel_size} nm must be above 0 on every axis")

    def shifted(self, voxels: Sequence[int]) -> Space:
        """The space of a crop that begins at this voxel (z, y, x)."""
        moved = [o + v * n for o, v, n in zip(self.offset, self.voxel_size, voxels, strict=True)]
        return Space(self.voxel_size, as_lengths(moved, "offset"), self.known)


def as_lengths(values: Sequence[float], name: str) -> Lengths:
    """Three finite numbers (z, y, x) as floats.

    Raises:
        VolumeError: not three numbers, or one is not finite.
    """
    try:
        z, y, x = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise VolumeError(f"the {name} must be three numbers (z, y, x), got {values!r}") from error
    if not all(math.isfinite(value) for value in (z, y, x)):
        raise VolumeError(f"the {name} {(z, y, x)} is not finite")
    return z, y, x


UNKNOWN = Space((1.0, 1.0, 1.0), known=False)


def nanometers(unit: object) -> float | None:
    """Nanometres in one unit of length, None for a unit that is no length known here."""
    return _NANOMETERS.get(unit.strip().lower()) if isinstance(unit, str) else None


def refuse_other_axes(names: object, *, strict: bool = False) -> None:
    """Makes sure that the last three axes of an array are z, y and x, where a file names them.

    Args:
        names: what the file says; anything but a list of names says nothing, nor do names such as "dim_0", unless
            they are to be strict.
        strict: whether the last three must be named z, y, x.

    Raises:
        VolumeError: they are others, or in another order.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        return
    found = [_decoded(name).lower() for name in names]
    if found and found[-3:] != ["z", "y", "x"] and (strict or (len(found) > 2 and _AXES.issuperset(found[-3:]))):
        raise VolumeError(f"the axes are {found}", remedy=_TRANSPOSE)


def _decoded(text: object) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def from_attributes(*sources: object) -> Space:
    """The space that array attributes declare: `resolution` or `voxel_size`, and `offset`, in `units`, else in nm.

    Unknown where a unit is named that is no length.

    Args:
        sources: attribute mappings, the most specific first; each entry is taken from the first that has it.

    Raises:
        VolumeError: an entry that is not three finite numbers.
    """
    size = _first(sources, ("resolution", "voxel_size"))
    offset = _first(sources, ("offset",))
    unit = _unit(_first(sources, ("units",)))
    if unit is None or (size is None and offset is None):
        return UNKNOWN
    return Space(
        (1.0, 1.0, 1.0) if size is None else times(as_lengths(size, "voxel size"), unit),
        (0.0, 0.0, 0.0) if offset is None else times(as_lengths(offset, "offset"), unit),
        known=size is not None,
    )


def times(a: Lengths, b: Lengths) -> Lengths:
    """The product on every axis."""
    z, y, x = (i * j for i, j in zip(a, b, strict=True))
    return z, y, x


def _unit(units: Any) -> Lengths | None:
    """Nanometres in the unit of each axis, 1 where none is named; None for a unit that is no length."""
    if isinstance(units, (str, bytes)):
        # One unit for all may also be that of the values, such as "counts".
        in_nm = nanometers(_decoded(units)) or 1.0
        return in_nm, in_nm, in_nm
    if units is None:
        return 1.0, 1.0, 1.0
    factors = [nanometers(_decoded(unit)) if unit else 1.0 for unit in list(units)[-3:]]
    return None if None in factors else as_lengths([factor or 1.0 for factor in factors], "units")


def _first(sources: tuple[object, ...], names: tuple[str, ...]) -> Any:
    for source in sources:
        for name in names:
            value = source.get(name) if hasattr(source, "get") else None
            if value is not None:
                return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value
    return None
