"""What a section looks like: raw, affinities and segmentation side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fgnet.volumes.errors import OutputError, VolumeError

RGB = npt.NDArray[np.uint8]

CAPTIONS = ("raw", "affinities (z, y, x as red, green, blue)", "segmentation")

# Panels are brought to between these widths by whole factors, so that captions fit and pictures stay small; but none is
# made higher than that for it, since a region may be long and narrow.
_NARROWEST, _WIDEST, _HIGHEST = 300, 1024, 4096
_GAP, _CAPTION, _FONT = 8, 26, 14
_PAPER, _INK = 255, (60, 60, 60)
_OPACITY, _LINE = 0.5, 0.35


def preview(raw: npt.NDArray[Any], affinities: npt.NDArray[Any], segmentation: npt.NDArray[Any]) -> RGB:
    """Draw one section three times, each with a caption.

    Affinities are shown as colours, z as red, y as green and x as blue: the inside of a neurite is white, a membrane
    black, and one that is seen along a single axis has the colour of the others.

    Args:
        raw: (y, x) uint8.
        affinities: (3, y, x), uint8 (255 is 1.0) or floats in [0, 1].
        segmentation: (y, x) integer ids; 0 is not coloured.

    Returns:
        (height, width, 3) uint8.

    Raises:
        VolumeError: arrays that are not one section, or of different shapes.
    """
    _require_section(raw, affinities, segmentation)
    step = max(1, -(-raw.shape[1] // _WIDEST), -(-raw.shape[0] // _HIGHEST))
    here = (slice(None, None, step), slice(None, None, step))
    gray = np.repeat(raw[here][..., None], 3, axis=2)
    panels = [gray, _as_bytes(affinities[(slice(None), *here)]), coloured(gray, segmentation[here])]
    enlargement = max(1, min(-(-_NARROWEST // gray.shape[1]), _HIGHEST // gray.shape[0]))
    panels = [panel.repeat(enlargement, 0).repeat(enlargement, 1) for panel in panels]

    height, width = panels[0].shape[0], max(panels[0].shape[1], _NARROWEST)
    picture = Image.new("RGB", (3 * width + 2 * _GAP, height + _CAPTION), (_PAPER,) * 3)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT)
    for index, (panel, caption) in enumerate(zip(panels, CAPTIONS, strict=True)):
        left = index * (width + _GAP)
        picture.paste(Image.fromarray(panel), (left, _CAPTION))
        draw.text((left + 2, 4), caption, fill=_INK, font=font)
    return np.asarray(picture)


def save_preview(
    path: str | Path, raw: npt.NDArray[Any], affinities: npt.NDArray[Any], segmentation: npt.NDArray[Any]
) -> None:
    """Write a `preview` as PNG; what lies in its place stays until all of it is written.

    Raises:
        OutputError: the path does not end in .png, or the picture cannot be written.
        VolumeError: as for `preview`.
    """
    place = Path(path)
    if place.suffix.lower() != ".png":
        raise OutputError("the preview is a PNG", where=path, remedy="name a file that ends in .png")
    picture = Image.fromarray(preview(raw, affinities, segmentation))
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        try:
            picture.save(part, format="PNG")
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the preview cannot be written: {error}", where=path, remedy="name a .png in a folder that exists"
        ) from error


def coloured(gray: RGB, segmentation: npt.NDArray[Any]) -> RGB:
    """Lay the colours of segments over a section, with a thin dark line where two of them meet.

    Args:
        gray: (y, x, 3) uint8.
        segmentation: (y, x) integer ids; 0 leaves gray as it is.

    Returns:
        (y, x, 3) uint8.
    """
    ids, index = np.unique(segmentation, return_inverse=True)
    colours = id_colours(ids)[index.reshape(segmentation.shape)]
    opacity = _OPACITY * (segmentation > 0)[..., None]
    blended = (1 - opacity) * gray + opacity * colours
    # One side of each boundary only, so that lines are one pixel thin.
    border = np.zeros(segmentation.shape, np.bool_)
    border[:-1] |= segmentation[:-1] != segmentation[1:]
    border[:, :-1] |= segmentation[:, :-1] != segmentation[:, 1:]
    blended[border] *= _LINE
    drawn: RGB = np.rint(blended).astype(np.uint8)
    return drawn


def id_colours(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A colour for each id, the same in every section, volume and run, and unlike that of the next id.

    Args:
        ids: (n,) integers.

    Returns:
        (n, 3) uint8, bright and saturated.
    """
    # splitmix64 (Steele et al. 2014): neighbouring ids get unrelated bits.
    bits = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    hue, saturation, value = ((bits >> np.uint64(shift) & np.uint64(0xFFFF)) / 65535 for shift in (0, 16, 32))
    saturation, value = 0.55 + 0.45 * saturation, 0.75 + 0.25 * value
    # HSV to RGB: channel k falls off from `value` by saturation, with distance on the colour circle.
    channels = [(hue * 6 + offset) % 6 for offset in (5, 3, 1)]
    rgb = [value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1) for k in channels]
    colours: npt.NDArray[np.uint8] = np.rint(255 * np.stack(rgb, axis=-1)).astype(np.uint8)
    return colours


def _as_bytes(affinities: npt.NDArray[Any]) -> RGB:
    """(3, y, x) affinities as (y, x, 3) uint8."""
    values = affinities if affinities.dtype == np.uint8 else np.rint(np.clip(affinities, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(values, 0, -1))


def _require_section(raw: npt.NDArray[Any], affinities: npt.NDArray[Any], segmentation: npt.NDArray[Any]) -> None:
    fits = raw.ndim == 2 and raw.size and affinities.shape == (3, *raw.shape) and segmentation.shape == raw.shape
    if not fits:
        raise VolumeError(
            f"raw {raw.shape}, affinities {affinities.shape} and segmentation {segmentation.shape} are not one section",
            remedy="give (y, x), (3, y, x) and (y, x)",
        )
    if raw.dtype != np.uint8 or segmentation.dtype.kind not in "iu":
        raise VolumeError(f"raw is {raw.dtype} and segmentation {segmentation.dtype}", remedy="give uint8 and integers")
