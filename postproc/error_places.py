"""Where do the parts of a split or a merge touch, so that a person can go and look?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fgnet.postproc.object_report import Pieces
from fgnet.volumes.geometry import Triple, as_triple
from fgnet.volumes.space import Lengths

Wholes: TypeAlias = npt.NDArray[Any]
Planes: TypeAlias = Callable[[], Iterable[tuple[Triple, Wholes, Wholes]]]
"""Gives, each time it is called, the parts of a volume along z, in order: first voxel, ids of the wholes, and of the
parts, all (z, y, x)."""


@dataclass(frozen=True)
class Place:
    """Where two parts meet.

    Attributes:
        voxel: (z, y, x) of the smaller part, beside the larger one where they touch, else nearest to it.
        faces: where the parts touch, voxel to voxel; 0 where they do not.
        gap: nm between the centres of the nearest voxels; that of neighbours where they touch.
    """

    voxel: Triple
    faces: int
    gap: float


def find_places(errors: Sequence[Pieces], planes: Planes, voxel_size: Lengths) -> list[Place]:
    """Find a place to look at for each error.

    Where the parts touch it is the face nearest to the middle of all their faces; elsewhere it is where they come
    nearest. The volume is read once, and once more where there are parts that do not touch.

    Args:
        errors: each with a whole of its own.
        planes: of the volume, for splits with objects as wholes and segments as parts, for merges the other way.
        voxel_size: (z, y, x) in nm.
    """
    faces: dict[int, list[npt.NDArray[np.int64]]] = {number: [] for number in range(len(errors))}
    scale = np.asarray(voxel_size)
    if errors:
        for number, voxels in _all_faces(errors, planes):
            faces[number].append(voxels)
    places: dict[int, Place] = {}
    for number, found in faces.items():
        if found:
            places[number] = _middle(np.concatenate(found), scale)
    apart = [number for number in faces if number not in places]
    if apart:
        nearest = _nearest([errors[number] for number in apart], planes, scale)
        places.update(zip(apart, nearest, strict=True))
    return [places[number] for number in range(len(errors))]


def _middle(faces: npt.NDArray[np.int64], scale: npt.NDArray[np.float64]) -> Place:
    """The face nearest to the middle of (n, 4) faces: voxel (z, y, x) and axis."""
    voxels = faces[:, :3]
    distances = np.linalg.norm((voxels - voxels.mean(0)) * scale, axis=1)
    best = int(np.argmin(distances))
    return Place(as_triple(voxels[best].tolist(), "voxel"), len(faces), float(scale[faces[best, 3]]))


def _codes(errors: Sequence[Pieces], wholes: Wholes, parts: Wholes) -> npt.NDArray[np.int32]:
    """Which parts voxels belong to: 2 + 2 i for the larger part of error i, 3 + 2 i for the smaller one, else 0."""
    codes = np.zeros(wholes.shape, np.int32)
    order = np.argsort(np.array([error.whole for error in errors], np.uint64))
    names = np.array([errors[i].whole for i in order], np.uint64)
    places = np.flatnonzero(np.isin(wholes, names))
    numbers = order[np.searchsorted(names, wholes.reshape(-1)[places])]
    larger, smaller = (np.array([error.parts[side] for error in errors], np.uint64)[numbers] for side in (0, 1))
    found = parts.reshape(-1)[places]
    codes.reshape(-1)[places] = np.where(
        found == larger, 2 + 2 * numbers, np.where(found == smaller, 3 + 2 * numbers, 0)
    )
    return codes


def _all_faces(errors: Sequence[Pieces], planes: Planes) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Faces between the parts of errors: error, and (n, 4) voxel of the smaller part and axis."""
    last: npt.NDArray[np.int32] | None = None
    for start, wholes, parts in planes():
        codes = _codes(errors, wholes, parts)
        if last is not None:
            yield from _faces(np.stack([last, codes[0]]), 0, (start[0] - 1, *start[1:]))
        for axis in range(3):
            yield from _faces(codes, axis, start)
        last = codes[-1].copy()


def _faces(codes: npt.NDArray[np.int32], axis: int, start: Triple) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    before = codes[(slice(None),) * axis + (slice(None, -1),)]
    after = codes[(slice(None),) * axis + (slice(1, None),)]
    # The codes of the two parts of an error differ in their last bit only.
    places = np.nonzero((before ^ after) == 1)
    first, second = before[places], after[places]
    voxels = np.stack(places, axis=1).astype(np.int64)
    voxels[:, axis] += second % 2
    faces = np.concatenate([voxels + start, np.full((len(voxels), 1), axis)], axis=1)
    numbers = np.maximum(first, second) // 2 - 1
    for number in np.unique(numbers).tolist():
        yield number, faces[numbers == number]


def _nearest(errors: Sequence[Pieces], planes: Planes, scale: npt.NDArray[np.float64]) -> list[Place]:
    """Where the parts of errors come nearest; only voxels at their surface are compared."""
    surfaces: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(2 * len(errors))]
    for start, wholes, parts in planes():
        codes = _codes(errors, wholes, parts)
        inner = np.ones(codes.shape, np.bool_)
        for axis in range(3):
            same = np.diff(codes, axis=axis) == 0
            edge = [(0, 0)] * 3
            for side in ((1, 0), (0, 1)):
                edge[axis] = side
                inner &= np.pad(same, edge)
        places = np.nonzero((codes > 0) & ~inner)
        numbers, voxels = codes[places] - 2, np.stack(places, axis=1).astype(np.int64) + start
        for number in np.unique(numbers).tolist():
            surfaces[number].append(voxels[numbers == number])
    results = []
    for number in range(len(errors)):
        larger, smaller = (np.concatenate(surfaces[2 * number + side]) for side in (0, 1))
        gaps, _ = cKDTree(larger * scale).query(smaller * scale)
        best = int(np.argmin(gaps))
        results.append(Place(as_triple(smaller[best].tolist(), "voxel"), 0, float(gaps[best])))
    return results
