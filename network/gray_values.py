"""Augmentation of gray values: another microscope, another staining."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fgnet.network.augment import AugmentOptions


def change_gray(raw: npt.NDArray[Any], options: AugmentOptions, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Another microscope's gray values.

    Args:
        raw: (z, y, x), uint8 or gray levels from 0 to 255 as floats; not modified.
        options: how strongly.
        rng: the source of every choice.

    Returns:
        (z, y, x) float32 in [0, 1].
    """
    gray = raw.astype(np.float32)
    depth = gray.shape[0]
    if rng.random() < options.probability and options.blur:
        sigma = rng.uniform(0, options.blur)
        gray = ndimage.gaussian_filter(gray, (0, sigma, sigma))
    factor = 1 + rng.uniform(-options.contrast, options.contrast)
    per_section = 1 + rng.uniform(-options.contrast, options.contrast, (depth, 1, 1)) / 4
    shift = rng.uniform(-options.brightness, options.brightness)
    section_shift = rng.uniform(-options.brightness, options.brightness, (depth, 1, 1)) / 4
    middle = gray.mean()
    gray = ((gray - middle) * (factor * per_section) + middle + shift + section_shift).astype(np.float32)
    if rng.random() < options.probability and options.gamma:
        exponent = 2 ** rng.uniform(-options.gamma, options.gamma)
        gray = 255 * (np.clip(gray, 0, 255) / 255) ** np.float32(exponent)
    if rng.random() < options.probability and options.noise:
        gray += rng.standard_normal(gray.shape, dtype=np.float32) * np.float32(rng.uniform(0, options.noise))
    for section in np.flatnonzero(rng.random(depth) < options.missing_section):
        gray[section] = (gray[section] - middle) * 0.1 + rng.uniform(0, 255)
    # uint8 is what the deployed graph is given.
    quantised: npt.NDArray[np.float32] = np.rint(np.clip(gray, 0, 255)).astype(np.float32) / np.float32(255)
    return quantised
