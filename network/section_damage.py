"""Augmentation by what befalls sections: parts missing or out of focus, folds, dirt, boxes of poorer quality.

Labels stay as they are: the network has to see through the damage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fgnet.network.augment import AugmentOptions, Choices
from fgnet.volumes.microscope import add_dirt, add_fold

Gray = npt.NDArray[np.float32]
Part = tuple[slice, slice]


def damage(raw: npt.NDArray[Any], options: AugmentOptions, choices: Choices) -> npt.NDArray[Any]:
    """A crop as a worse preparation would have given it.

    Args:
        raw: (z, y, x) uint8; not modified.
        options: how often and how strongly.
        choices: the source of every choice.

    Returns:
        (z, y, x) float32 in gray levels, not limited to 0..255; raw itself where all of these options are off.
    """
    changes = (options.section_gamma, options.missing_part, options.out_of_focus, options.defect, options.cut_blur)
    if not any((*changes, options.cut_noise)):
        return raw
    gray = raw.astype(np.float32)
    if options.section_gamma:
        _change_section_gamma(gray, options.section_gamma, choices.of("section_gamma"))
    rng = choices.of("defect")
    for section in _chosen(gray, options.defect, rng):
        (add_fold if rng.random() < 0.5 else add_dirt)(gray[section], rng)
    rng = choices.of("out_of_focus")
    for section in _chosen(gray, options.out_of_focus, rng):
        _lose_focus(gray[section], options.out_of_focus_sigma, rng)
    rng = choices.of("cut_blur")
    if rng.random() < options.cut_blur:
        _cut_blur(gray, options.cut_blur_factor, rng)
    rng = choices.of("cut_noise")
    if rng.random() < options.cut_noise:
        sections, part = _box(gray, rng)
        box = gray[(sections, *part)]
        deviation = np.float32(rng.uniform(0.25, 1) * options.cut_noise_deviation)
        box += rng.standard_normal(box.shape, dtype=np.float32) * deviation
    rng = choices.of("missing_part")
    for section in _chosen(gray, options.missing_part, rng):
        part = _half(gray[section], rng) if rng.random() < 0.5 else _rectangle(gray[section], rng)
        rest = gray[section][part]
        rest[...] = (rest - rest.mean()) * np.float32(0.1) + np.float32(rng.uniform(0, 255))
    return gray


def _chosen(gray: Gray, probability: float, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    return np.flatnonzero(rng.random(gray.shape[0]) < probability)


def _change_section_gamma(gray: Gray, largest: float, rng: np.random.Generator) -> None:
    exponents = np.exp2(rng.uniform(-largest, largest, gray.shape[0]))
    # Gray levels are whole numbers here, so that a table of 256 powers serves all voxels.
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    for section, exponent in zip(gray, exponents, strict=True):
        section[...] = (255 * levels ** np.float32(exponent))[section.astype(np.uint8)]


def _lose_focus(section: Gray, largest: float, rng: np.random.Generator) -> None:
    """Blur a section, its half or a rectangle of it, by defocus or by a motion along y or x while it was scanned."""
    kind = rng.integers(3)
    whole = (slice(None), slice(None))
    part = (whole, _half(section, rng), _rectangle(section, rng))[kind]
    sigma = rng.uniform(0.5, 1) * largest
    if rng.random() < 0.5:
        blurred = ndimage.gaussian_filter(section[part], sigma, mode="nearest")
    else:
        # A uniform window of this length has the standard deviation sigma.
        length = max(2, round(sigma * np.sqrt(12)))
        blurred = ndimage.uniform_filter1d(section[part], length, axis=int(rng.integers(2)), mode="nearest")
    section[part] = blurred


def _cut_blur(gray: Gray, coarsest: int, rng: np.random.Generator) -> None:
    """Replace a box by the means of squares of voxels: what a coarser pixel would have recorded."""
    sections, part = _box(gray, rng)
    factor = int(rng.integers(min(2, coarsest), coarsest + 1))
    box = gray[(sections, *part)]
    depth, height, width = (box.shape[0], box.shape[1] // factor * factor, box.shape[2] // factor * factor)
    box = box[:, :height, :width]
    coarse = box.reshape(depth, height // factor, factor, width // factor, factor).mean((2, 4), dtype=np.float32)
    box[...] = coarse.repeat(factor, 1).repeat(factor, 2)


def _box(gray: Gray, rng: np.random.Generator) -> tuple[slice, Part]:
    return _range(gray.shape[0], rng), _rectangle(gray[0], rng)


def _rectangle(section: Gray, rng: np.random.Generator) -> Part:
    return _range(section.shape[0], rng), _range(section.shape[1], rng)


def _half(section: Gray, rng: np.random.Generator) -> Part:
    """Everything on one side of a line along y or x, somewhere about the middle."""
    axis, first = int(rng.integers(2)), rng.random() < 0.5
    line = round(section.shape[axis] * rng.uniform(0.3, 0.7))
    half = slice(None, line) if first else slice(line, None)
    return (half, slice(None)) if axis == 0 else (slice(None), half)


def _range(length: int, rng: np.random.Generator) -> slice:
    """From a quarter to three quarters of an axis, at least one voxel."""
    extent = max(1, round(length * rng.uniform(0.25, 0.75)))
    start = int(rng.integers(0, length - extent + 1))
    return slice(start, start + extent)
