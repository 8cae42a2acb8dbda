"""What every file format hands to `reading`: shape, dtype, space, and a function that reads slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.volumes.space import UNKNOWN, Space

Slices = tuple[slice, ...]
Content = Literal["gray", "labels"]
"""What a volume is opened for, where a file holds several."""

ReadSlices = Callable[[Slices], npt.NDArray[Any]]


def _nothing() -> None:
    """Closes a source that holds no file open."""


@dataclass(frozen=True, eq=False)
class Source:
    """One opened array of whatever format.

    Args:
        shape: extent of every axis as stored.
        dtype: as stored, byte order included.
        read: returns the voxels of slices with non-negative bounds inside the shape, one slice per axis; may be
            called from several threads.
        chunks: shape that is read at least, None where the format has no chunks.
        space: voxel size and offset in nm.
        dataset: the array's path inside the file, where the address left it open.
        close: lets go of the file.
        label_images: paths inside the file of the label images that come with an image; empty where the address does
            not name an image as a whole.
        stored: what tells the array from others on this machine, whatever path or link led to it; None where only its
            path does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: ReadSlices
    chunks: tuple[int, ...] | None = None
    space: Space = UNKNOWN
    dataset: str | None = None
    close: Callable[[], None] = field(default=_nothing)
    label_images: tuple[str, ...] = ()
    stored: tuple[int, ...] | None = None
