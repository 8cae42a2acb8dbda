"""What does the microscope add? Blur, noise, contrast that differs between sections, misalignment, folds and dirt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Microscope:
    """How a volume is imaged.

    Args:
        voxel_size: nm (z, y, x); a z at least twice the finer of y and x counts as serial sections, cut by a knife.
        noise: standard deviation in gray levels at mid gray of block-face images; serial sections have 0.6 of it.
        artefacts: folds, dirt and lost contrast; False for clean sections.
    """

    voxel_size: tuple[float, float, float]
    noise: float = 5.0
    artefacts: bool = True

    @property
    def serial(self) -> bool:
        """Whether sections are cut one by one, hence misaligned, folded and stained one by one."""
        return self.voxel_size[0] >= 2 * min(self.voxel_size[1:])

    @property
    def blur(self) -> float:
        """Standard deviation of the in-plane point spread in nm, finer where electrons pass through thin sections."""
        return 4.5 if self.serial else 8.5


def misalignment(microscope: Microscope, sections: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Displacement (y, x) of each section in nm, (sections, 2); zero for volumes imaged from a block face."""
    if not microscope.serial:
        return np.zeros((sections, 2))
    jitter = rng.standard_normal((sections, 2)) * 0.7
    jumps = (rng.random((sections, 1)) < 0.05) * rng.uniform(-2.0, 2.0, (sections, 2))
    return np.asarray(np.clip(jitter + jumps, -2.5, 2.5) * np.array(microscope.voxel_size[1:]))


def image_section(stain: Array, microscope: Microscope, seed: np.random.SeedSequence) -> NDArray[np.uint8]:
    """One section (y, x) as the microscope records it.

    Args:
        stain: gray values of the tissue, (y, x) float32.
        microscope: how it is imaged.
        seed: of this section's noise.
    """
    rng = np.random.default_rng(seed)
    height, width = stain.shape
    sigma = [max(microscope.blur / size, 0.35) for size in microscope.voxel_size[1:]]
    image = ndimage.gaussian_filter(stain, sigma, mode="nearest")
    strength = 1.0 if microscope.serial else 0.3
    gain, offset = 1.0 + 0.05 * strength * rng.standard_normal(), 4.0 * strength * rng.standard_normal()
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
    slope = rng.standard_normal(3).astype(np.float32) * 4.0 * strength
    lost = False
    if microscope.serial and microscope.artefacts:
        lost = bool(rng.random() < 0.008)
        if rng.random() < 0.03:
            add_fold(image, rng)
        if rng.random() < 0.06:
            add_dirt(image, rng)
    mean = np.float32(image.mean())
    gain *= 0.25 if lost else 1.0
    image = (
        (image - mean) * np.float32(gain) + mean + np.float32(offset) + slope[0] * y + slope[1] * x + slope[2] * x * y
    )
    noise = rng.standard_normal(stain.shape, dtype=np.float32)
    fine = ndimage.gaussian_filter(rng.standard_normal(stain.shape, dtype=np.float32), 0.8) * np.float32(3.2)
    shot = np.sqrt(np.clip(image, 1.0, 255.0) / np.float32(130.0))
    image += (
        np.float32(microscope.noise * (0.6 if microscope.serial else 1.0))
        * shot
        * (np.float32(0.8) * noise + np.float32(0.45) * fine)
    )
    if not microscope.serial:
        image += rng.standard_normal((1, width), dtype=np.float32) * np.float32(0.8)
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def add_fold(image: Array, rng: np.random.Generator) -> None:
    """Darken a narrow band across the section, where it lies double.

    Args:
        image: (y, x) float32 gray levels, changed in place.
        rng: where the fold lies, and how dark it is.
    """
    height, width = image.shape
    angle, centre = rng.uniform(0, np.pi), rng.random(2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    across = (y - centre[0] * height) * np.cos(angle) + (x - centre[1] * width) * np.sin(angle)
    along = (x - centre[1] * width) * np.cos(angle) - (y - centre[0] * height) * np.sin(angle)
    across += 6.0 * np.sin(along / rng.uniform(40.0, 90.0))
    image *= (1.0 - rng.uniform(0.35, 0.6) * np.exp(-((across / rng.uniform(3.0, 8.0)) ** 2))).astype(np.float32)


def add_dirt(image: Array, rng: np.random.Generator) -> None:
    """Put one to three dark spots of stain or dust on the section.

    Args:
        image: (y, x) float32 gray levels, changed in place.
        rng: where they lie, how large and how dark they are.
    """
    height, width = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(3.0, 14.0)
        square = (y - rng.random() * height) ** 2 + (x - rng.random() * width) ** 2
        image *= 1.0 - np.float32(rng.uniform(0.4, 0.8)) * np.clip((radius - np.sqrt(square)) / 3.0 + 0.5, 0.0, 1.0)
