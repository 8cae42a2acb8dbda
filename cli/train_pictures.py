"""Pictures of fgnet-train that need no training: where a model's gates let features through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgnet.cli.console import say
from fgnet.volumes.errors import OutputError, TrainingError

_WHOLE = ("-", ":")


def draw_attention_maps(path: Path, model: str, raw: Sequence[str], roi: Sequence[str]) -> None:
    """Writes the attention maps of a model over a block of one volume, from the region's first voxel on.

    Args:
        path: of the PNG.
        model: as `find_model` takes it.
        raw: the address of gray values.
        roi: the region; the whole volume without it. At most a patch of it is drawn.

    Raises:
        TrainingError: not one volume, one that is too small, or a model without maps.
        OutputError: the picture cannot be written.
        AddressError, VolumeError, GeometryError, CheckpointError: what cannot be read.
    """
    from fgnet.cli.first_weights import find_model
    from fgnet.network.attention_maps import attention_maps, save_attention_maps
    from fgnet.volumes.geometry import Box, parse_roi
    from fgnet.volumes.reading import open_volume, read_gray

    if len(raw) != 1 or len(roi) > 1:
        raise TrainingError(
            f"attention maps show one volume, not {len(raw)}", remedy="give --raw once, and --roi at most once"
        )
    if path.is_dir() or path.suffix.lower() != ".png":
        raise OutputError("attention maps are a picture", where=path, remedy="name a file that ends in .png")
    found = find_model(model)
    config, multiple = found.checkpoint.config, found.checkpoint.config.section_multiple
    with open_volume(raw[0], holds="gray") as volume:
        whole = volume.box
        box = parse_roi(roi[0], whole.shape) if roi and roi[0] not in _WHOLE else whole
        sections = min(box.shape[0], config.patch[0])
        rows, columns = (
            min(s, most) // multiple * multiple for s, most in zip(box.shape[1:], config.patch[1:], strict=True)
        )
        if not rows or not columns:
            raise TrainingError(
                f"a region of {box.shape} is too small",
                where=raw[0],
                remedy=f"give at least {multiple} voxels in y and x",
            )
        z, y, x = box.start
        gray = read_gray(volume, Box(box.start, (z + sections, y + rows, x + columns)))
    maps = attention_maps(found.checkpoint.build(), gray)
    save_attention_maps(path, gray, maps, first=z)
    say(f"{path}: a_1 to a_{len(maps)} of {found.name}, {sections} sections of {rows} x {columns} voxels")
