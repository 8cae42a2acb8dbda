"""A contact sheet of the augmentations: each alone, before and after, on one and the same crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fgnet.network.augment import AUGMENTATIONS, PRESETS, AugmentOptions, Choices, alone
from fgnet.network.data import Crop, CropSampler, LabelledVolume, Place, changed, cut, longer, to_sample
from fgnet.network.warping import draw_warp
from fgnet.postproc.preview import coloured
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Triple, as_triple

RGB = npt.NDArray[np.uint8]

COLUMNS = ("raw", "raw, augmented", "labels", "labels, augmented", "affinities", "affinities, augmented")

# Panels are enlarged by whole factors up to about this width.
_WIDTH = 256
# Serial sections are drawn as thick as they are in the view from the side, up to this many times their pixels.
_HIGHEST = 12
_GAP, _CAPTION, _FONT, _NAMES = 8, 26, 14, 150
_PAPER, _INK = (255,) * 3, (60, 60, 60)
# What the loss does not look at is drawn in this gray among the affinities.
_UNKNOWN = 96
# Places, and draws of random choices, among which the most telling ones are shown.
_DRAWS = 8


def augmentation_sheet(volume: LabelledVolume, crop: Triple, options: AugmentOptions, seed: int) -> RGB:
    """Draw what each augmentation does, with the strengths of the options and always applied.

    Each panel is a section of a crop above a view from its side (x and z). Labels are coloured by id; of the
    affinities, z is red, y green and x blue, and gray is what the loss does not look at. The section is the one that an
    augmentation changes most.

    Args:
        volume: where the crop comes from.
        crop: its (z, y, x) voxels.
        options: the strengths; a last row shows them together, as they are.
        seed: of the place and of all choices.

    Returns:
        (height, width, 3) uint8.

    Raises:
        TrainingError: a volume that no crop can be drawn from.
    """
    place = _place(volume, crop, seed)
    # Serial sections are never cut thicker.
    names = [name for name in AUGMENTATIONS if volume.isotropic or name != "thick sections"]
    rows = [(name, alone(options, name)) for name in names] + [("together", options)]
    panels = [(name, _row(volume, crop, place, changes, seed)) for name, changes in rows]
    height, width = panels[0][1][0].shape[:2]
    picture = Image.new(
        "RGB",
        (_NAMES + len(COLUMNS) * (width + _GAP), _CAPTION + len(panels) * (height + _GAP)),
        _PAPER,
    )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT)
    for column, caption in enumerate(COLUMNS):
        draw.text((_NAMES + column * (width + _GAP), 4), caption, fill=_INK, font=font)
    for row, (name, images) in enumerate(panels):
        top = _CAPTION + row * (height + _GAP)
        draw.text((4, top), name, fill=_INK, font=font)
        for column, image in enumerate(images):
            picture.paste(Image.fromarray(image), (_NAMES + column * (width + _GAP), top))
    return np.asarray(picture)


def save_augmentation_sheet(
    path: Path, volume: LabelledVolume, crop: Triple, options: AugmentOptions, seed: int
) -> None:
    """Write an `augmentation_sheet` as PNG, or in whichever format the path's ending names.

    Raises:
        OutputError: the picture cannot be written.
        TrainingError: as for `augmentation_sheet`.
    """
    picture = Image.fromarray(augmentation_sheet(volume, crop, options, seed))
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the contact sheet cannot be written: {error}", where=path, remedy="name a .png in a folder that exists"
        ) from error


def _place(volume: LabelledVolume, crop: Triple, seed: int) -> Place:
    """Where training might cut a crop: of some draws, with z along z, the one with most objects."""
    sampler = CropSampler([volume], crop, PRESETS["none"], seed)
    size = longer(crop, as_triple(volume.raw.shape, "shape"))
    rng = np.random.default_rng((seed, 0, 0))
    places = [_inwards(volume, sampler.place(0, (0, 1, 2), size, rng)) for _ in range(_DRAWS)]
    return max(places, key=lambda place: np.unique(cut(volume, place).labels).size)


def _inwards(volume: LabelledVolume, place: Place) -> Place:
    """Half-way towards the volume's middle: a crop at the border would be squeezed by most changes of geometry."""
    middle = [(side - want) // 2 for side, want in zip(volume.raw.shape, place.size, strict=True)]
    start = [(a + b) // 2 for a, b in zip(place.start, middle, strict=True)]
    return Place(place.axes, as_triple(start, "start"), place.size)


def _row(volume: LabelledVolume, crop: Triple, place: Place, options: AugmentOptions, seed: int) -> list[RGB]:
    before = _augmented(volume, place, PRESETS["none"], seed, 0)
    draws = [_augmented(volume, place, options, seed, index) for index in range(_DRAWS)]
    after = max(draws, key=lambda changed_crop: float(np.abs(changed_crop.raw - before.raw).sum()))
    change = np.abs(after.raw - before.raw).sum((1, 2))
    if after.known is not None:
        # Where labels are sparse, a section that has some.
        change *= np.any(after.known, axis=(1, 2))
    section = int(np.argmax(change[-crop[0] :]))
    voxel = volume.space.voxel_size
    height = max(1, min(round(voxel[0] / voxel[2]), _HIGHEST))
    pairs = [_panels(drawn, crop, section, height) for drawn in (before, after)]
    return [panel for pair in zip(*pairs, strict=True) for panel in pair]


def _augmented(volume: LabelledVolume, place: Place, options: AugmentOptions, seed: int, index: int) -> Crop:
    """The crop at this place, changed; its region is laid around it as far as the volume reaches."""
    choices = Choices((seed, 0, index))
    sides = as_triple(volume.raw.shape, "shape")
    warp = draw_warp(place.size, sides, volume.isotropic, options, choices)
    if warp is not None:
        ends = zip(place.start, warp.origin, warp.region, sides, strict=True)
        start = [min(max(begin + offset, 0), side - need) for begin, offset, need, side in ends]
        place = Place(place.axes, as_triple(start, "start"), warp.region)
    return changed(cut(volume, place), warp, options, choices, np.random.default_rng(choices.key))


def _panels(crop: Crop, shape: Triple, section: int, height: int) -> list[RGB]:
    """Raw, labels and affinities, each a section above a view from the side, `height` pixels to a section."""
    sample = to_sample(crop, shape)
    inside = tuple(slice(side - want, None) for side, want in zip(crop.raw.shape, shape, strict=True))
    gray = np.rint(sample.gray[0] * 255).astype(np.uint8)[..., None].repeat(3, -1)
    affinities = np.moveaxis(np.where(sample.mask, 255 * sample.affinities, _UNKNOWN).astype(np.uint8), 0, -1)
    arrays: list[npt.NDArray[Any]] = [gray, crop.labels[inside], affinities]
    line = shape[1] // 2
    top, side = [a[section] for a in arrays], [a[:, line].repeat(height, 0) for a in arrays]
    faces = [(raw, coloured(raw, labels), colours) for raw, labels, colours in (top, side)]
    return [_stacked(*pair) for pair in zip(*faces, strict=True)]


def _stacked(section: RGB, side: RGB) -> RGB:
    factor = max(1, _WIDTH // section.shape[1])
    enlarged = [image.repeat(factor, 0).repeat(factor, 1) for image in (section, side)]
    gap = np.full((2, enlarged[0].shape[1], 3), _PAPER, np.uint8)
    return np.concatenate((enlarged[0], gap, enlarged[1]))
