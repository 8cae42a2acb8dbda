"""Augmentation by orientation: the flips and turns that keep z along z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def orient(
    arrays: Sequence[npt.NDArray[Any]], rng: np.random.Generator, *, square: bool | None = None
) -> list[npt.NDArray[Any]]:
    """A random one of the flips and in-plane rotations by 90 degrees.

    Args:
        arrays: raw, labels and whatever lies on the same voxels, (z, y, x).
        rng: the source of the choice.
        square: whether y and x may be exchanged; where they are equally long, if nothing is said.

    Returns:
        Views of all of them, turned alike.
    """
    _, height, width = arrays[0].shape
    turned = list(arrays)
    if (height == width if square is None else square) and rng.random() < 0.5:
        turned = [array.swapaxes(1, 2) for array in turned]
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return [array[flips] for array in turned]
