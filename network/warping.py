"""Augmentation by geometry: where in a volume each voxel of a crop is taken from.

All changes are put together into one map, so that gray values are interpolated once. It is made to fit into the volume:
where there is too little room around a crop, voxels become a little smaller, and nothing is ever mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import BSpline

from fgnet.network.augment import AugmentOptions, Choices
from fgnet.volumes.geometry import Triple

Array = npt.NDArray[Any]

# Serial sections are deformed one by one: along z, a deformation holds for about this many of them.
_SECTIONS_PER_CONTROL_POINT = 4


@dataclass(frozen=True, eq=False)
class Warp:
    """Where each voxel of a crop of shape (d, h, w) lies in a region of the volume.

    Attributes:
        region: (z, y, x) voxels of the volume that are read.
        origin: the region's first voxel, counted from where the unchanged crop would begin.
        sections: (d,) position of each section of the crop along z of the region.
        thickness: sections of the volume that are averaged for one of the crop, centred at that position.
        plane: (2, d, h, w) float32 positions along y and x of the region; None where sections are taken as they are.
    """

    region: Triple
    origin: Triple
    sections: npt.NDArray[np.floating[Any]]
    thickness: int = 1
    plane: npt.NDArray[np.float32] | None = None


def draw_warp(shape: Triple, sides: Triple, isotropic: bool, options: AugmentOptions, choices: Choices) -> Warp | None:
    """The geometric changes of a crop.

    Args:
        shape: of the crop, (z, y, x) voxels.
        sides: of the volume that it is cut from, at least as long.
        isotropic: whether sections may be interpolated and cut thicker.
        options: how often and how strongly.
        choices: the source of every choice.

    Returns:
        A map whose region fits into the volume; None where nothing changes.
    """
    zooms = _zooms(options, choices)
    depth = shape[0]
    thickness = _thickness(depth, sides[0], options, choices) if isotropic else 1
    if thickness > 1:
        read = depth * thickness
        sections = np.arange(depth) * float(thickness) + (thickness - 1) / 2
    else:
        spacing = min(zooms[0], (sides[0] - 1) / (depth - 1)) if depth > 1 else 1.0
        sections = np.arange(depth) * spacing
        if not isotropic:
            sections = np.rint(sections)
        read = min(sides[0], int(np.ceil(sections[-1])) + 1)
        sections = np.minimum(sections, float(read - 1))
    before = round((depth - read) / 2)
    plane = _in_plane(shape, zooms[1:], isotropic, options, choices)
    if plane is None:
        if read == depth and thickness == 1 and np.array_equal(sections, np.arange(depth)):
            return None
        return Warp((read, *shape[1:]), (before, 0, 0), sections, thickness)
    (height, first_y), (width, first_x) = (_fit(plane[axis], sides[1 + axis], shape[1 + axis]) for axis in (0, 1))
    return Warp((read, height, width), (before, first_y, first_x), sections, thickness, plane)


def _zooms(options: AugmentOptions, choices: Choices) -> tuple[float, float, float]:
    """Voxels of the volume per voxel of the crop, along z, y and x."""
    rng = choices.of("rescale")
    if rng.random() >= options.rescale:
        return (1.0, 1.0, 1.0)
    in_plane, along_z = np.log1p(options.rescale_in_plane), np.log1p(options.rescale_z)
    both, y, x = rng.uniform(-1, 1, 3) * in_plane * (0.8, 0.2, 0.2)
    return float(np.exp(rng.uniform(-1, 1) * along_z)), float(np.exp(both + y)), float(np.exp(both + x))


def _thickness(depth: int, side: int, options: AugmentOptions, choices: Choices) -> int:
    rng = choices.of("thick_sections")
    most = min(options.thickest, side // depth)
    return int(rng.integers(2, most + 1)) if rng.random() < options.thick_sections and most > 1 else 1


def _in_plane(
    shape: Triple, zooms: tuple[float, float], isotropic: bool, options: AugmentOptions, choices: Choices
) -> npt.NDArray[np.float32] | None:
    """(2, d, h, w) positions along y and x, counted from the middle of the crop; None where they are the crop's own."""
    depth, height, width = shape
    shifts, angles = _shifts(depth, options, choices), _angles(depth, options, choices)
    field = _elastic_field(shape, isotropic, options, choices)
    if zooms == (1.0, 1.0) and not shifts.any() and not angles.any() and field is None:
        return None
    y = ((np.arange(height) - (height - 1) / 2) * zooms[0])[None, :, None]
    x = ((np.arange(width) - (width - 1) / 2) * zooms[1])[None, None, :]
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    plane = np.empty((2, *shape), np.float32)
    plane[0] = cosine * y - sine * x + shifts[:, 0, None, None]
    plane[1] = sine * y + cosine * x + shifts[:, 1, None, None]
    if field is not None:
        plane += field
    return plane


def _shifts(depth: int, options: AugmentOptions, choices: Choices) -> npt.NDArray[np.float64]:
    """(d, 2) displacement of each section along y and x, in voxels: jitter and slips."""
    shifts = np.zeros((depth, 2))
    rng = choices.of("jitter")
    if rng.random() < options.jitter:
        shifts += rng.uniform(-options.jitter_shift, options.jitter_shift, (depth, 2))
    rng = choices.of("slip")
    if rng.random() < options.slip and depth > 1:
        # Whole voxels: a slip that comes alone moves gray values without interpolating them.
        shifts[_slipped(depth, rng)] += np.rint(rng.uniform(-options.slip_shift, options.slip_shift, 2))
    return shifts


def _angles(depth: int, options: AugmentOptions, choices: Choices) -> npt.NDArray[np.float64]:
    """(d,) rotation of each section in radians."""
    angles = np.zeros(depth)
    rng = choices.of("rotation_slip")
    if rng.random() < options.rotation_slip and depth > 1:
        angles[_slipped(depth, rng)] = np.deg2rad(rng.uniform(-options.rotation_degrees, options.rotation_degrees))
    return angles


def _slipped(depth: int, rng: np.random.Generator) -> slice:
    """One section, or all from one on: the two misalignments of serial sections (Lee et al., arXiv 1706.00120)."""
    first = int(rng.integers(1, depth))
    return slice(first, first + 1 if rng.random() < 0.5 else None)


def _elastic_field(
    shape: Triple, isotropic: bool, options: AugmentOptions, choices: Choices
) -> npt.NDArray[np.float32] | None:
    """(2, d, h, w) smooth displacements along y and x: cubic B-splines of random control points.

    Neighbouring control points differ by at most twice the largest displacement. While that is less than half of their
    distance, all derivatives are below a half, and no two voxels change places.
    """
    rng = choices.of("elastic")
    if rng.random() >= options.elastic:
        return None
    spacing = options.elastic_spacing
    z, y, x = (
        _splines(length, step)
        for length, step in zip(
            shape, (spacing if isotropic else _SECTIONS_PER_CONTROL_POINT, spacing, spacing), strict=True
        )
    )
    largest = rng.uniform(0.5, 1) * options.elastic_shift
    controls = rng.uniform(-largest, largest, (2, z.shape[1], y.shape[1], x.shape[1])).astype(np.float32)
    # Not as a product of matrices: threads of BLAS wait for cores that the network is using.
    field: npt.NDArray[np.float32] = np.einsum("zk,ckyx->czyx", z, y @ (controls @ x.T))
    return field


def _splines(length: int, spacing: float) -> npt.NDArray[np.float32]:
    """(length, n) weight of each of n control points, `spacing` apart, for each voxel of an axis."""
    positions = 3 + np.arange(length) / spacing
    controls = int(positions[-1]) + 1
    weights = BSpline.design_matrix(positions, np.arange(controls + 4, dtype=np.float64), 3).toarray()
    return np.asarray(weights, dtype=np.float32)


def _fit(positions: npt.NDArray[np.float32], side: int, crop: int) -> tuple[int, int]:
    """Count positions along one axis from the lowest, and squeeze them into a volume's side where they need more.

    Args:
        positions: counted from the middle of the crop; changed in place.
        side: of the volume, in voxels.
        crop: the crop's own length.

    Returns:
        Voxels of the volume that are needed, and where they begin, counted from the start of the unchanged crop.
    """
    lowest, highest = float(positions.min()), float(positions.max())
    squeeze = min(1.0, (side - 1) / (highest - lowest)) if highest > lowest else 1.0
    if squeeze < 1:
        positions *= np.float32(squeeze)
        lowest, highest = lowest * squeeze, highest * squeeze
    positions -= np.float32(lowest)
    # Rounding must not ask for one voxel more than there are.
    needed = min(side, int(np.ceil(highest - lowest - 1e-3)) + 1)
    np.clip(positions, 0, needed - 1, out=positions)
    return needed, round(lowest + (crop - 1) / 2)


def warp_gray(raw: npt.NDArray[np.uint8], warp: Warp) -> npt.NDArray[np.uint8]:
    """Gray values of the crop, interpolated linearly from the region's (z, y, x)."""
    if warp.thickness > 1:
        groups = raw.reshape(-1, warp.thickness, *raw.shape[1:])
        sections = groups.mean(axis=1, dtype=np.float32)
    else:
        below = np.floor(warp.sections).astype(np.intp)
        sections = raw[below].astype(np.float32)
        share = (warp.sections - below).astype(np.float32)
        between = np.flatnonzero(share)
        sections[between] += share[between, None, None] * (raw[below[between] + 1] - sections[between])
    if warp.plane is not None:
        whole, sections = sections, np.empty(warp.plane.shape[1:], np.float32)
        for section, source, y, x in zip(sections, whole, *warp.plane, strict=True):
            ndimage.map_coordinates(source, (y, x), section, order=1, mode="nearest")
    gray: npt.NDArray[np.uint8] = np.rint(sections).astype(np.uint8)
    return gray


def warp_labels(labels: Array, warp: Warp) -> Array:
    """Labels of the crop, of any dtype: those of the nearest voxels of the region's (z, y, x)."""
    nearest = np.floor(warp.sections + 0.5).astype(np.intp)
    if warp.plane is None:
        return np.asarray(labels[nearest])
    y, x = np.floor(warp.plane + np.float32(0.5)).astype(np.intp)
    return np.asarray(labels[nearest[:, None, None], y, x])
