"""Which voxels count, and as what, when a segmentation is scored?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import fastremap
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
        zero_as_singletons: each voxel of segment 0 is a segment of its own, rather than all of them one segment.
    """

    ignore: tuple[int, ...]
    zero_as_singletons: bool


PROTOCOLS: dict[str, Protocol] = {
    # The definition behind the published AC3/AC4 rows: scikit-image's adapted_rand_error with ignore_labels=(0,).
    "standard": Protocol(ignore=(0,), zero_as_singletons=False),
    # Arganda-Carreras et al. 2015, section 2.4: background of the segmentation splits everything it touches.
    "snemi3d": Protocol(ignore=(0,), zero_as_singletons=True),
    # CREMI marks what is not scored with uint64(-1); its label 0 is an object like any other.
    "cremi": Protocol(ignore=(-1,), zero_as_singletons=False),
}


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


def scored_voxels(ground_truth: npt.NDArray[Any], ignore: Sequence[int], min_size: int) -> npt.NDArray[np.bool_]:
    """Mark the voxels whose ground-truth id is neither ignored nor too small.

    Args:
        ground_truth: integer ids of any shape.
        ignore: ids that are not scored; -1 stands for the largest uint64 too.
        min_size: ids with fewer voxels than this are not scored, in voxels.

    Returns:
        bool of the shape of ground_truth.
    """
    # Signed -1 and uint64(-1) are the same bits once both are uint64.
    ids = ground_truth.astype(np.uint64, copy=False)
    unscored = [np.uint64(label % 2**64) for label in ignore]
    if min_size > 1:
        present, counts = fastremap.unique(ids, return_counts=True)
        unscored += list(present[counts < min_size])
    if len(unscored) > 2:
        scored: npt.NDArray[np.bool_] = np.isin(ids, np.array(unscored, np.uint64), invert=True)
        return scored
    scored = np.ones(ids.shape, np.bool_)
    for label in unscored:
        scored &= ids != label
    return scored
