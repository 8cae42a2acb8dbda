"""Augmentation of a crop: raw and labels are transformed together, affinities are derived afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fgnet.volumes.errors import TrainingError


@dataclass(frozen=True)
class AugmentOptions:
    """How strongly a crop is changed; a probability of 0 switches a change off.

    Attributes:
        contrast: largest relative change of contrast, of a block and (half as much) of single sections.
        brightness: largest shift, in gray levels of 255.
        gamma: largest exponent's logarithm (base 2).
        noise: largest standard deviation of added Gaussian noise, in gray levels.
        blur: largest standard deviation of an in-plane Gaussian blur, in voxels.
        missing_section: probability that a section is replaced by an almost empty one.
        probability: of gamma, noise and blur, each.
    """

    contrast: float = 0.3
    brightness: float = 30.0
    gamma: float = 0.5
    noise: float = 12.0
    blur: float = 1.0
    missing_section: float = 0.01
    probability: float = 0.4

    def __post_init__(self) -> None:
        """Refuse strengths and probabilities outside their ranges.

        Raises:
            TrainingError: a negative value, a probability above 1, or a contrast that would turn gray values around.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            highest = 1.0 if field.name in ("contrast", "missing_section", "probability") else math.inf
            if not 0 <= value <= highest:
                raise TrainingError(f"augment.{field.name} is {value}", remedy=f"give a value from 0 to {highest}")


def orient(raw: npt.NDArray[Any], labels: npt.NDArray[Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A random one of the flips and in-plane rotations by 90 degrees that keep z along z.

    Args:
        raw: (z, y, x).
        labels: the same shape.
        rng: the source of the choice.

    Returns:
        Views of both; y and x are exchanged where they are equally long.
    """
    if raw.shape[1] == raw.shape[2] and rng.random() < 0.5:
        raw, labels = raw.swapaxes(1, 2), labels.swapaxes(1, 2)
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return raw[flips], labels[flips]


def change_gray(
    raw: npt.NDArray[np.uint8], options: AugmentOptions, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Another microscope's gray values.

    Args:
        raw: (z, y, x) uint8.
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
