"""Into which small pieces do affinities fall before anything is agglomerated?

Fragments made section by section. The other kind, waterz's own three-dimensional watershed of the affinity graph, is
made inside waterz (see `waterz_decoder`).
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from fgnet.postproc.affinity_values import require_affinities
from fgnet.postproc.tissue import require_tissue
from fgnet.volumes.errors import DecodingError

REACH = 16
"""Steps from a process at which voxels without any affinity are no part of it; as for the blockwise decoder."""


def section_fragments(
    affinities: npt.NDArray[Any],
    *,
    mask_threshold: float | None = None,
    tissue: npt.NDArray[np.bool_] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint64]:
    """Flood every section from the centres of its processes, as PEA, CAD and AGQ do.

    With boundary = 1 - (aff_y + aff_x) / 2, the seeds are the connected regional maxima of the distance to the nearest
    voxel whose boundary is 0.5 or more; a seeded watershed on the boundary fills the section. All neighbourhoods are
    the 4 of a section. A section that is no boundary at all is one fragment. What is not flooded because it lies apart,
    or in a section that is all boundary, is one for each patch.

    Voxels without any in-plane affinity that are REACH steps or more away from every process, such as padding, are
    background; so is what is no tissue, which no flood crosses either.

    Args:
        affinities: (3, z, y, x) uint8 or floats in [0, 1]; the z channel is not read.
        mask_threshold: voxels whose mean in-plane affinity (0 to 1) is below this become background, 0. None, the
            published behaviour, fills every voxel that has any affinity, or a process near.
        tissue: (z, y, x) bool, True in tissue; None for everywhere.
        threads: that flood sections side by side; the result is the same for any number.

    Returns:
        (z, y, x) uint64 fragments; ids start at 1 and grow over the sections, none occurs in two sections.

    Raises:
        DecodingError: if these are no affinities, tissue is not as described, or the threshold lies outside [0, 1].

    Source: Funke et al. 2019, "Large scale image segmentation with structured loss based deep learning for connectome
    reconstruction" (watershed in sections, seeds at maxima of the distance to the boundary).
    """
    require_affinities(affinities)
    if mask_threshold is not None and not 0.0 <= mask_threshold <= 1.0:
        raise DecodingError(f"the mask threshold is {mask_threshold}", remedy="choose a value from 0 to 1")
    if tissue is not None:
        require_tissue(tissue, affinities)
    masks = itertools.repeat(None) if tissue is None else tissue
    fragments = np.empty(affinities.shape[1:], np.uint64)
    last = 0
    with ThreadPoolExecutor(threads) as pool:
        for z, section in enumerate(pool.map(_fragments_of_section, affinities[1], affinities[2], masks)):
            fragments[z] = section
            fragments[z][section > 0] += np.uint64(last)
            last += int(section.max())
    if mask_threshold is not None:
        for z, section in enumerate(fragments):
            section[_in_plane(affinities[1, z], affinities[2, z])[0] < 2 * mask_threshold] = 0
    return fragments


def _in_plane(
    along_y: npt.NDArray[Any], along_x: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The sum of both affinities, and whether the boundary is below 0.5; exact for uint8."""
    if along_y.dtype == np.uint8:
        total = along_y.astype(np.int32) + along_x
        return total.astype(np.float32) / np.float32(255), total > 255
    total = along_y.astype(np.float32) + along_x.astype(np.float32)
    return total, total > 1


def _fragments_of_section(
    along_y: npt.NDArray[Any], along_x: npt.NDArray[Any], tissue: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.int32]:
    total, inside = _in_plane(along_y, along_x)
    wet = total > 0
    if tissue is not None:
        inside &= tissue
        wet &= tissue
    if inside.all():
        # The distance transform is undefined without a boundary.
        return np.ones(inside.shape, np.int32)
    if not inside.any():
        return np.asarray(label(wet, connectivity=1), np.int32)
    if not wet.all():
        near = ndimage.distance_transform_cdt(~inside, "taxicab") < REACH
        wet |= near if tissue is None else near & tissue
    centres = local_maxima(ndimage.distance_transform_edt(inside), connectivity=1)
    seeds = label(centres, connectivity=1)
    flooded: npt.NDArray[np.int32] = watershed(-total, seeds, connectivity=1, mask=wet)
    apart = wet & (flooded == 0)
    if apart.any():
        flooded[apart] = label(apart, connectivity=1)[apart] + flooded.max()
    return flooded
