"""How training crops are changed: every option, the named presets, and where random choices come from.

Raw and labels are transformed together and affinities derived afterwards. What the options do: `warping` (geometry),
`section_damage` (what befalls single sections) and `gray_values` (another microscope).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from fgnet.volumes.errors import TrainingError

Preset = Literal["none", "default", "strong"]
PRESET_NAMES: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class AugmentOptions:
    """How strongly a crop is changed; a probability or a strength of 0 switches a change off.

    Without arguments it is what runs had before there were geometric changes: a checkpoint that knows no more options
    goes on as it was. New runs take a preset.

    Attributes:
        contrast: largest relative change of contrast, of a block and (a quarter of it) of single sections.
        brightness: largest shift, in gray levels of 255, of a block and (a quarter of it) of single sections.
        gamma: largest exponent's logarithm (base 2), of a block.
        noise: largest standard deviation of added Gaussian noise, in gray levels.
        blur: largest standard deviation of an in-plane Gaussian blur, in voxels.
        missing_section: probability that a section is replaced by an almost empty one.
        probability: of gamma, noise and blur, each.
        orient: probability that a crop is flipped, turned by 90 degrees and, of an isotropic volume, read along y or x.
        section_gamma: largest exponent's logarithm (base 2), of single sections.
        rescale: probability of another voxel size.
        rescale_in_plane: largest relative change of the voxel in y and x, mostly together.
        rescale_z: the same along z; serial sections are left out or repeated, those of a block face interpolated.
        thick_sections: probability, in isotropic volumes, that sections are cut thicker.
        thickest: most sections of the volume in a thick one.
        elastic: probability of a smooth deformation of the sections.
        elastic_shift: its largest displacement in voxels.
        elastic_spacing: voxels between its control points; over four times the displacement, so that nothing folds.
        jitter: probability that every section is shifted on its own.
        jitter_shift: largest such shift in voxels.
        slip: probability of a misalignment by translation, of one section or of all that follow.
        slip_shift: largest slip in voxels.
        rotation_slip: probability of a misalignment by rotation, of one section or of all that follow.
        rotation_degrees: its largest angle.
        missing_part: probability that a box or a half of a section is almost empty.
        out_of_focus: probability that a section, or a part of it, is blurred by defocus or by motion.
        out_of_focus_sigma: its largest standard deviation in voxels.
        defect: probability that a section has a fold or dirt.
        cut_blur: probability that a box has a coarser resolution in its plane.
        cut_blur_factor: how many times coarser at most.
        cut_noise: probability that a box is noisier.
        cut_noise_deviation: largest standard deviation of that noise, in gray levels.
    """

    contrast: float = 0.3
    brightness: float = 30.0
    gamma: float = 0.5
    noise: float = 12.0
    blur: float = 1.0
    missing_section: float = 0.01
    probability: float = 0.4
    orient: float = 1.0
    section_gamma: float = 0.0
    rescale: float = 0.0
    rescale_in_plane: float = 0.25
    rescale_z: float = 0.15
    thick_sections: float = 0.0
    thickest: int = 3
    elastic: float = 0.0
    elastic_shift: float = 12.0
    elastic_spacing: float = 64.0
    jitter: float = 0.0
    jitter_shift: float = 1.0
    slip: float = 0.0
    slip_shift: float = 8.0
    rotation_slip: float = 0.0
    rotation_degrees: float = 2.0
    missing_part: float = 0.0
    out_of_focus: float = 0.0
    out_of_focus_sigma: float = 2.0
    defect: float = 0.0
    cut_blur: float = 0.0
    cut_blur_factor: int = 4
    cut_noise: float = 0.0
    cut_noise_deviation: float = 20.0

    def __post_init__(self) -> None:
        """Refuse strengths and probabilities outside their ranges.

        Raises:
            TrainingError: a negative value, a probability above 1, a contrast that would turn gray values around, or a
                deformation that would fold sections over.
        """
        for field in fields(self):
            value, (lowest, highest) = getattr(self, field.name), _LIMITS.get(field.name, (0.0, math.inf))
            if field.name in PROBABILITIES:
                highest = 1.0
            whole = field.name in _WHOLE_NUMBERS
            if not (math.isfinite(value) and lowest <= value <= highest) or (whole and value != int(value)):
                kind = "a whole number" if whole else "a value"
                raise TrainingError(
                    f"augment.{field.name} is {value}", remedy=f"give {kind} from {lowest:g} to {highest:g}"
                )
        if self.elastic and not 4 * self.elastic_shift < self.elastic_spacing:
            raise TrainingError(
                f"augment.elastic_shift is {self.elastic_shift}, its control points {self.elastic_spacing} apart",
                remedy="give a shift below a quarter of elastic_spacing",
            )


PROBABILITIES = (
    "missing_section", "probability", "orient", "rescale", "thick_sections", "elastic", "jitter", "slip",
    "rotation_slip", "missing_part", "out_of_focus", "defect", "cut_blur", "cut_noise",
)  # fmt: skip
"""The options that are probabilities; the others are strengths."""

_WHOLE_NUMBERS = ("thickest", "cut_blur_factor")
_LIMITS = {
    "contrast": (0.0, 1.0),
    "rescale_in_plane": (0.0, 3.0),
    "rescale_z": (0.0, 3.0),
    "thickest": (1.0, 16.0),
    "rotation_degrees": (0.0, 45.0),
    "cut_blur_factor": (1.0, 32.0),
}

_NOTHING = AugmentOptions(0, 0, 0, 0, 0, 0, 0, orient=0)
_DEFAULT = AugmentOptions(
    section_gamma=0.15, rescale=0.5, thick_sections=0.15, elastic=0.4, jitter=0.15, slip=0.1, rotation_slip=0.05,
    missing_part=0.01, out_of_focus=0.02, defect=0.01, cut_blur=0.1, cut_noise=0.1,
)  # fmt: skip
_STRONG = AugmentOptions(
    contrast=0.5, brightness=50, gamma=0.8, noise=20, blur=1.5, missing_section=0.03, probability=0.5,
    section_gamma=0.3, rescale=0.8, rescale_in_plane=0.5, rescale_z=0.3, thick_sections=0.3, thickest=4,
    elastic=0.7, elastic_shift=15, jitter=0.3, jitter_shift=2, slip=0.3, slip_shift=16, rotation_slip=0.15,
    rotation_degrees=4, missing_part=0.03, out_of_focus=0.05, out_of_focus_sigma=3, defect=0.03,
    cut_blur=0.3, cut_noise=0.3, cut_noise_deviation=30,
)  # fmt: skip

PRESETS: MappingProxyType[Preset, AugmentOptions] = MappingProxyType(
    {"none": _NOTHING, "default": _DEFAULT, "strong": _STRONG}
)
"""What `--augment` names."""

AUGMENTATIONS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "orientation": ("orient",),
        "rescale": ("rescale", "rescale_in_plane", "rescale_z"),
        "thick sections": ("thick_sections", "thickest"),
        "elastic": ("elastic", "elastic_shift", "elastic_spacing"),
        "jitter": ("jitter", "jitter_shift"),
        "slip": ("slip", "slip_shift"),
        "rotation slip": ("rotation_slip", "rotation_degrees"),
        "gray values": ("contrast", "brightness", "gamma", "section_gamma", "probability"),
        "noise": ("noise", "probability"),
        "blur": ("blur", "probability"),
        "missing section": ("missing_section",),
        "missing part": ("missing_part",),
        "out of focus": ("out_of_focus", "out_of_focus_sigma"),
        "defect": ("defect",),
        "cut-blur": ("cut_blur", "cut_blur_factor"),
        "cut-noise": ("cut_noise", "cut_noise_deviation"),
    }
)
"""The augmentations by name, each with its options."""


def alone(options: AugmentOptions, name: str) -> AugmentOptions:
    """One augmentation of `AUGMENTATIONS`, as strong as in the options and always applied; all others off."""
    wanted = AUGMENTATIONS[name]
    values: dict[str, Any] = {field: 1.0 if field in PROBABILITIES else getattr(options, field) for field in wanted}
    return replace(_NOTHING, **values)


# Each has its own random numbers, so that switching one on or off leaves what the others do as it is. Their order is
# part of what makes a run repeatable: new ones come last.
_STREAMS = (
    "orient", "rescale", "thick_sections", "elastic", "jitter", "slip", "rotation_slip", "section_gamma",
    "missing_part", "out_of_focus", "defect", "cut_blur", "cut_noise",
)  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The random choices of one sample.

    Attributes:
        key: whole numbers that name the sample, such as (seed, step, index).
    """

    key: tuple[int, ...]

    def of(self, name: str) -> np.random.Generator:
        """The random numbers of one augmentation, the same at every call."""
        return np.random.default_rng((*self.key, 1 + _STREAMS.index(name)))
