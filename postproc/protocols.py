"""Which voxels count, and as what, when a segmentation is scored?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fgnet.volumes.errors import VolumeError

ProtocolName: TypeAlias = Literal["standard", "snemi3d", "cremi"]


@dataclass(frozen=True)
class Protocol:
    """What a challenge or a paper agreed upon.

    Attributes:
        ignore: ground-truth ids whose voxels are not scored; -1 stands for the largest uint64 too.
        singletons_in_voi: for VOI, each voxel of segment 0 is a segment of its own, rather than all of them one.
        singletons_in_pairs: the same for the adapted Rand error.
        border: nm from a true boundary within which voxels are not scored, unless told otherwise.
    """

    ignore: tuple[int, ...]
    singletons_in_voi: bool = False
    singletons_in_pairs: bool = False
    border: float = 0.0


# uint64(-1), CREMI's mark, is ignored under all: nobody labelled these voxels.
PROTOCOLS: dict[str, Protocol] = {
    # The definition behind the published AC3/AC4 rows: scikit-image's adapted_rand_error with ignore_labels=(0,).
    "standard": Protocol(ignore=(0, -1)),
    # Arganda-Carreras et al. 2015, section 2.4: background of the segmentation splits everything it touches.
    "snemi3d": Protocol(ignore=(0, -1), singletons_in_voi=True, singletons_in_pairs=True),
    # CREMI ignores nothing else; its label 0 is an object like any other. Its reference
    # implementation (cremi_python: NeuronIds, voi, adapted_rand_error) takes segment 0 as one segment for VOI and as
    # singletons for the Rand error, and is used with a border of 25 nm.
    "cremi": Protocol(ignore=(-1,), singletons_in_pairs=True, border=25.0),
}


def protocol_named(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        VolumeError: there is none.
    """
    if name not in PROTOCOLS:
        raise VolumeError(f"there is no protocol {name!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def border_mask(labels: npt.NDArray[Any], distance_nm: float, voxel_size: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Mark the voxels near a boundary between ids of the same section, where annotators need not agree.

    A voxel lies on a boundary if one of its four neighbours in the section carries another id (0 is an id too); every
    voxel within the distance of one is marked, those on the boundary included (CREMI, `create_border_mask`).

    Args:
        labels: (z, y, x) ground-truth ids.
        distance_nm: how far from a boundary voxel, centre to centre, in nm; CREMI scores with 25.
        voxel_size: (z, y, x) in nm; only y and x are used.

    Returns:
        (z, y, x) bool, True where a voxel is not to be scored.

    Raises:
        VolumeError: if labels are not three-dimensional.
    """
    if labels.ndim != 3:
        raise VolumeError(f"labels have shape {labels.shape}", remedy="give labels of shape (z, y, x)")
    mask = np.zeros(labels.shape, np.bool_)
    for section, marks in zip(labels, mask, strict=True):
        boundary = np.zeros(section.shape, np.bool_)
        along_y = section[1:] != section[:-1]
        along_x = section[:, 1:] != section[:, :-1]
        boundary[1:] |= along_y
        boundary[:-1] |= along_y
        boundary[:, 1:] |= along_x
        boundary[:, :-1] |= along_x
        # A distance transform needs something to be distant from.
        if boundary.any():
            marks[:] = ndimage.distance_transform_edt(~boundary, sampling=tuple(voxel_size[1:])) <= distance_nm
    return mask
