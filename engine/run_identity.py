"""What makes two runs the same, so that one may go on with the chunks of the other?"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from fgnet.engine.run_plan import RunPlan
from fgnet.volumes.geometry import Box, as_triple
from fgnet.volumes.reading import Volume

# Places along each axis that are looked at, and how much of the volume each time.
_PLACES = 3
_PROBE = (4, 32, 32)


NETWORK_VOXEL_SIZE = "network voxel size"
"""Field of what the network is: the voxel size (z, y, x, nm) that it sees, where that is not the volume's."""


def identity(
    plan: RunPlan,
    volume: Volume,
    *,
    rescale: tuple[float, float] | None,
    mask: Volume | None,
    network: dict[str, Any],
    zarr_format: int,
) -> dict[str, Any]:
    """All that the affinities of a run depend on, as plain data: field -> value.

    Tiles are left out: affinities do not depend on them.

    Args:
        plan: of the run.
        volume: gray.
        rescale: gray values that become 0 and 255.
        mask: where the tissue is.
        network: which network it is, and what runs it.
        zarr_format: of the output.
    """
    return {
        "input": _place(volume),
        "input sha256": fingerprint(volume),
        "shape": list(volume.shape),
        "voxel size": list(volume.space.voxel_size) if volume.space.known else None,
        "region": str(plan.region),
        "patch": list(plan.grid.patch),
        "stride": list(plan.grid.stride),
        "blending": plan.blending,
        "chunk": list(plan.chunk),
        "rescale": None if rescale is None else list(rescale),
        "mask": None if mask is None else _place(mask),
        "mask sha256": None if mask is None else fingerprint(mask),
        "zarr format": zarr_format,
        **network,
    }


def _place(volume: Volume) -> str:
    return str(replace(volume.address, path=volume.address.path.resolve()))


def fingerprint(volume: Volume) -> str:
    """A hash of a volume's shape, dtype, voxel size and of probes all over it.

    The whole of a volume may take hours to read: a change between the probes is not noticed.
    """
    digest = hashlib.sha256(repr((volume.shape, str(volume.dtype), volume.space)).encode())
    shape = volume.box.shape
    corners = [np.linspace(0, max(n - p, 0), _PLACES).astype(int) for n, p in zip(shape, _PROBE, strict=True)]
    for corner in np.stack(np.meshgrid(*corners, indexing="ij"), -1).reshape(-1, 3):
        box = Box.from_shape(_PROBE).shift(as_triple(corner.tolist(), "corner")).intersect(volume.box)
        digest.update(np.ascontiguousarray(volume.read(box)).tobytes())
    return digest.hexdigest()
