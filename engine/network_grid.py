"""On which grid does the network see a volume, and is that one it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgnet.engine.run_mask import RunMask
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import as_triple
from fgnet.volumes.reading import Volume
from fgnet.volumes.rescaled_volume import rescaled_gray, rescaled_tissue
from fgnet.volumes.rescaling import Rescaling, rescaling_to
from fgnet.volumes.space import Lengths, Space

TOLERANCE = 1.25
"""Voxel sizes are near where no axis differs by more than this factor."""


@dataclass(frozen=True)
class NetworkGrid:
    """A voxel size for the network, other than the volume's.

    Attributes:
        voxel_size: (z, y, x) in nm.
        gray_range: gray values of the volume that become 0 and 255; without it only uint8 is accepted.
        volume_size: (z, y, x) in nm of the volume's voxels where it was stated (see `stated`), for processes that open
            the file anew; None where the file says it.
    """

    voxel_size: Lengths
    gray_range: tuple[float, float] | None = None
    volume_size: Lengths | None = None

    def rescaling(self, volume: Volume) -> Rescaling:
        """How the volume's voxels become the network's.

        Raises:
            VolumeError: the volume's voxel size is not known.
            GeometryError: it is too far from the network's.
        """
        require_known(volume)
        return rescaling_to(as_triple(volume.shape, "shape"), volume.space.voxel_size, self.voxel_size)

    def gray(self, volume: Volume) -> Volume:
        """The volume's gray as the network sees it; errors as for `rescaling`, and gray that is not 8-bit."""
        return rescaled_gray(volume, self.rescaling(volume), gray_range=self.gray_range)

    def tissue(self, mask: Volume, volume: Volume) -> Volume:
        """A mask of the volume as it is on the network's grid; errors as for `rescaling` and `RunMask`."""
        rescaling = self.rescaling(volume)
        return rescaled_tissue(mask, rescaling, RunMask(mask, rescaling.shape).inside)

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain data."""
        return {
            "voxel_size": list(self.voxel_size),
            "gray_range": None if self.gray_range is None else list(self.gray_range),
            "volume_size": None if self.volume_size is None else list(self.volume_size),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NetworkGrid:
        """The grid that `to_dict` described."""
        z, y, x = data["voxel_size"]
        held, size = data["gray_range"], data["volume_size"]
        return cls(
            (z, y, x),
            None if held is None else (held[0], held[1]),
            None if size is None else (size[0], size[1], size[2]),
        )


def stated(volume: Volume, voxel_size: Lengths | None) -> Volume:
    """A volume with the voxel size that is stated for it, whatever its file says; closing either closes both.

    Args:
        volume: as it was opened.
        voxel_size: (z, y, x) in nm; None for that of the file.

    Raises:
        VolumeError: a size that is not finite and above 0.
    """
    return volume if voxel_size is None else replace(volume, space=Space(voxel_size, volume.space.offset))


def require_known(volume: Volume) -> None:
    """Refuse to rescale a volume whose file does not say its voxel size.

    Raises:
        VolumeError: it does not.
    """
    if not volume.space.known:
        raise VolumeError(
            "the voxel size is not known, so it cannot be rescaled",
            where=volume.address,
            remedy="give it by --voxel-size Z,Y,X in nm, or leave --rescale out",
        )


def nearest_size(voxel_size: Lengths, trained: Sequence[Lengths]) -> Lengths | None:
    """The voxel size trained on whose worst axis is nearest; None where it is not known what was trained on."""
    return min(trained, key=lambda size: _distance(voxel_size, size), default=None)


def voxel_size_warning(volume: Volume, trained: Sequence[Lengths]) -> str | None:
    """What is to be said of a volume whose voxels differ by more than a quarter from all that the model knows.

    Args:
        volume: as the network sees it.
        trained: voxel sizes of the model, nm.

    Returns:
        A sentence; None where a size fits, or where it is not known what was trained on.
    """
    nearest = nearest_size(volume.space.voxel_size, trained)
    if nearest is not None and not volume.space.known:
        return (
            "the voxel size is not known, so it was not compared with those that the model was trained on"
            f" ({'; '.join(map(_nm, trained))}): give it by --voxel-size Z,Y,X in nm"
        )
    if nearest is None or _distance(volume.space.voxel_size, nearest) <= TOLERANCE:
        return None
    return (
        f"voxels of {_nm(volume.space.voxel_size)} differ by more than a quarter from all that the model was trained"
        f" on ({'; '.join(map(_nm, trained))}): results may be poor; --rescale auto runs it at {_nm(nearest)}"
    )


def automatic_grid(
    volume: Volume, trained: Sequence[Lengths], gray_range: tuple[float, float] | None
) -> NetworkGrid | None:
    """The nearest voxel size trained on, for a volume that differs from all of them by more than a quarter.

    Returns:
        The grid; None where a size is near enough, or where it is not known what was trained on.

    Raises:
        VolumeError: the volume's voxel size is not known.
    """
    require_known(volume)
    nearest = nearest_size(volume.space.voxel_size, trained)
    if nearest is None or _distance(volume.space.voxel_size, nearest) <= TOLERANCE:
        return None
    return NetworkGrid(nearest, gray_range)


def _distance(one: Lengths, other: Lengths) -> float:
    """The largest factor between two sizes, of any axis; rounded, for 12.5 nm differ from 10 by a quarter exactly."""
    return round(max(max(a / b, b / a) for a, b in zip(one, other, strict=True)), 6)


def _nm(size: Lengths) -> str:
    return " x ".join(f"{length:g}" for length in size) + " nm"
