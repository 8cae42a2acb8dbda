"""`fgnet-run --voxel-size` and `--rescale`: at which voxel size the network sees the volume, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fgnet.engine.bundle import Bundle
    from fgnet.engine.network_grid import NetworkGrid
    from fgnet.volumes.reading import Volume
    from fgnet.volumes.space import Lengths, Space


def requested_size(text: str | None) -> Lengths | None:
    """The voxel size that `--voxel-size` states, nm; None where it was not given.

    Raises:
        BadParameter: not three finite numbers above 0.
    """
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        z = y = x = math.nan
    if not all(math.isfinite(length) and length > 0 for length in (z, y, x)):
        raise typer.BadParameter(f"{text!r} is no voxel size z,y,x in nm", param_hint="--voxel-size")
    return z, y, x


def size_note(file: Space, size: Lengths | None) -> str | None:
    """What is to be said where `--voxel-size` states another size than the file; None where it does not."""
    if size is None or not file.known or all(map(math.isclose, size, file.voxel_size)):
        return None
    here, there = (" x ".join(map("{:g}".format, lengths)) for lengths in (size, file.voxel_size))
    return f"voxels are taken to be {here} nm, as --voxel-size says; the file says {there} nm"


def requested_grid(
    text: str | None,
    volume: Volume,
    bundle: Bundle,
    gray_range: tuple[float, float] | None,
    size: Lengths | None = None,
) -> NetworkGrid | None:
    """The network's own grid that `--rescale` asks for; None where the network sees the volume as it is.

    Args:
        text: the option.
        volume: gray, with the voxel size that was stated for it.
        bundle: of the network.
        gray_range: gray values that become 0 and 255.
        size: that `--voxel-size` states.

    Raises:
        BadParameter: neither "auto" nor three finite numbers.
        VolumeError: the volume's voxel size is not known.
        GeometryError: it is too far from the one asked for.
    """
    from fgnet.engine.network_grid import NetworkGrid, automatic_grid

    if text is None:
        return None
    if text == "auto":
        nearest = automatic_grid(volume, bundle.manifest.voxel_sizes, gray_range)
        return nearest and replace(nearest, volume_size=size)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        gray = "; gray values LOW,HIGH are given by --gray-range" if len(numbers) == 2 else ""
        raise typer.BadParameter(f"{text!r} is neither auto nor a voxel size z,y,x in nm{gray}", param_hint="--rescale")
    if not all(map(math.isfinite, numbers)):
        raise typer.BadParameter(f"{text!r} is not three finite lengths in nm", param_hint="--rescale")
    z, y, x = numbers
    grid = NetworkGrid((z, y, x), gray_range, size)
    return None if grid.rescaling(volume).identity else grid


def voxel_sizes_of(volume: Volume, bundle: Bundle, grid: NetworkGrid | None) -> dict[str, Any]:
    """The voxel sizes of a run in nm, and a warning where the network's is none that it was trained on."""
    from fgnet.engine.network_grid import voxel_size_warning

    seen = volume if grid is None else grid.gray(volume)
    trained = bundle.manifest.voxel_sizes
    return {
        "volume": list(volume.space.voxel_size) if volume.space.known else None,
        "network": list(seen.space.voxel_size) if seen.space.known else None,
        "trained": [list(size) for size in trained],
        "warning": voxel_size_warning(seen, trained),
    }
