"""`fgnet-run --rescale`: at which voxel size the network sees the volume, and what is said of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fgnet.engine.bundle import Bundle
    from fgnet.engine.network_grid import NetworkGrid
    from fgnet.volumes.reading import Volume


def requested_grid(
    text: str | None, volume: Volume, bundle: Bundle, gray_range: tuple[float, float] | None
) -> NetworkGrid | None:
    """The network's own grid that `--rescale` asks for; None where the network sees the volume as it is.

    Raises:
        BadParameter: neither "auto" nor three finite numbers.
        VolumeError: the volume's voxel size is not known.
        GeometryError: it is too far from the one asked for.
    """
    from fgnet.engine.network_grid import NetworkGrid, automatic_grid

    if text is None:
        return None
    if text == "auto":
        return automatic_grid(volume, bundle.manifest.voxel_sizes, gray_range)
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
    grid = NetworkGrid((z, y, x), gray_range)
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
