"""What of affinities lies in tissue, where a mask says where that is?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import DecodingError


def require_tissue(tissue: npt.NDArray[Any], affinities: npt.NDArray[Any]) -> None:
    """Check that a mask is that of affinities.

    Args:
        tissue: (z, y, x) bool, True in tissue.
        affinities: (3, z, y, x).

    Raises:
        DecodingError: another shape, or no bool.
    """
    if tissue.shape != affinities.shape[1:] or tissue.dtype != np.bool_:
        raise DecodingError(
            f"it has shape {tissue.shape} and dtype {tissue.dtype}",
            where="tissue",
            remedy=f"give bool of shape {affinities.shape[1:]}, True in tissue",
        )


def links_within(affinities: npt.NDArray[Any], tissue: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Affinities between two voxels of tissue; 0 where either is none.

    An affinity belongs to the voxel after a face. Without this the first voxel of tissue behind a masked one would
    still be tied to it.

    Args:
        affinities: (3, z, y, x). Not modified; those that lead out of the array are kept.
        tissue: (z, y, x), True in tissue.

    Returns:
        A new array of the same shape and dtype.
    """
    kept = affinities * tissue
    kept[0, 1:] *= tissue[:-1]
    kept[1, :, 1:] *= tissue[:, :-1]
    kept[2, :, :, 1:] *= tissue[:, :, :-1]
    return kept
