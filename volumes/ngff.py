"""OME-NGFF multiscale metadata, read and written: 0.4 (in Zarr v2) and 0.5 (in Zarr v3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.space import UNKNOWN, Lengths, Space, as_lengths, nanometers, refuse_other_axes, times

Json = dict[str, Any]

VERSION_OF_ZARR_FORMAT = {2: "0.4", 3: "0.5"}


@dataclass(frozen=True)
class Level:
    """One array of a multiscale image.

    Args:
        path: the array's name in its group.
        voxel_size: nm (z, y, x).
        offset: nm (z, y, x) of the first voxel.
    """

    path: str
    voxel_size: Lengths
    offset: Lengths


def multiscale_of(attributes: Mapping[str, Any]) -> Json | None:
    """The first multiscale image that a group's attributes declare, whichever version; None where there is none."""
    ome = attributes.get("ome")
    declared = ome.get("multiscales") if isinstance(ome, dict) else None
    declared = declared or attributes.get("multiscales")
    if not isinstance(declared, list) or not declared or not isinstance(declared[0], dict):
        return None
    return declared[0]


def is_label_image(attributes: Mapping[str, Any]) -> bool:
    """Whether a group's attributes declare that its voxels are ids of objects, whichever version."""
    ome = attributes.get("ome")
    return "image-label" in attributes or (isinstance(ome, dict) and "image-label" in ome)


def label_names(attributes: Mapping[str, Any]) -> list[str]:
    """Names of the label images that the attributes of a group "labels" list, whichever version."""
    ome = attributes.get("ome")
    listed = ome.get("labels") if isinstance(ome, dict) else None
    listed = listed or attributes.get("labels")
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []


def level_paths(multiscale: Json) -> list[str]:
    """Array paths of the levels, finest first.

    Raises:
        VolumeError: the metadata names no level.
    """
    datasets = multiscale.get("datasets")
    paths = [d["path"] for d in datasets if isinstance(d, dict) and "path" in d] if isinstance(datasets, list) else []
    if not paths:
        raise VolumeError("the multiscale metadata names no level")
    return [str(path) for path in paths]


def level_space(multiscale: Json, index: int) -> Space:
    """Voxel size and offset of one level, with the transformations of the whole image applied on top.

    A unit left out counts as nanometre unless the scale of the finest level is 1 throughout, which says nothing; so
    does a unit that is no length.

    Raises:
        VolumeError: the last three axes are not z, y, x, or a transformation is malformed or of another kind.
    """
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", [])]
    refuse_other_axes([axis.get("name", "") for axis in axes], strict=True)
    scale, translation = _transformation(multiscale, index)
    if min(scale) <= 0:
        raise VolumeError(f"the scale {scale} must be above 0 on every axis")
    units = [axis.get("unit") for axis in axes[-3:]] or [None, None, None]
    # Coarser levels have a scale of 2 and so on where that of the finest says nothing: their offset is in voxels too.
    if not any(units) and _transformation(multiscale, 0)[0] == (1.0, 1.0, 1.0):
        z, y, x = (move / size for move, size in zip(translation, scale, strict=True))
        return Space((1.0, 1.0, 1.0), (z, y, x), known=False)
    in_nm = [1.0 if unit is None else nanometers(unit) for unit in units]
    if None in in_nm:
        return UNKNOWN
    factors = as_lengths([value or 1.0 for value in in_nm], "unit")
    return Space(times(scale, factors), times(translation, factors))


def _transformation(multiscale: Json, index: int) -> tuple[Lengths, Lengths]:
    """Scale and translation of one level, those of the whole image included."""
    scale, translation = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    for holder in (multiscale["datasets"][index], multiscale):
        for transformation in holder.get("coordinateTransformations") or []:
            kind = transformation.get("type")
            if kind == "scale":
                factor = as_lengths(transformation["scale"][-3:], "scale")
                scale, translation = times(scale, factor), times(translation, factor)
            elif kind == "translation":
                move = as_lengths(transformation["translation"][-3:], "translation")
                z, y, x = (a + b for a, b in zip(translation, move, strict=True))
                translation = (z, y, x)
            elif kind != "identity":
                raise VolumeError(
                    f"the transformation of type {kind!r} is not understood, so that the voxel size is not known",
                    remedy="describe the image by a scale and a translation alone",
                )
    return scale, translation


def multiscale_attributes(
    levels: Sequence[Level], *, axes: str, name: str, zarr_format: int, known: bool, method: str, labels: bool
) -> Json:
    """Group attributes of a multiscale image or label image.

    Args:
        levels: finest first.
        axes: "zyx" or "czyx".
        name: name of the image.
        zarr_format: 2 writes NGFF 0.4, 3 writes NGFF 0.5.
        known: whether voxel size and offset are in nm; without that no unit is written.
        method: how coarser levels were made from finer ones.
        labels: whether voxels are ids of objects.
    """
    version = VERSION_OF_ZARR_FORMAT[zarr_format]
    channels = len(axes) - 3
    multiscale: Json = {
        "name": name,
        "type": method,
        "axes": [{"name": axis, "type": "channel"} for axis in axes[:channels]]
        + [{"name": axis, "type": "space"} | ({"unit": "nanometer"} if known else {}) for axis in axes[channels:]],
        "datasets": [
            {
                "path": level.path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * channels + list(level.voxel_size)},
                    {"type": "translation", "translation": [0.0] * channels + list(level.offset)},
                ],
            }
            for level in levels
        ],
    }
    content: Json = {"multiscales": [multiscale]}
    if labels:
        content["image-label"] = {"version": version}
    return wrapped(content, zarr_format)


def wrapped(content: Json, zarr_format: int) -> Json:
    """Puts NGFF metadata where its version wants it: under "ome" in 0.5, at the top in 0.4."""
    version = VERSION_OF_ZARR_FORMAT[zarr_format]
    if zarr_format != 2:
        return {"ome": {"version": version, **content}}
    return {
        key: [{"version": version, **item} for item in value] if key == "multiscales" else value
        for key, value in content.items()
    }
