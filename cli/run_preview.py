"""`--preview` of fgnet-run and fgnet-sample: where may the picture lie?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fgnet.volumes.reading import Volume


def check_preview(preview: Path, decoder: str) -> None:
    """Refuse a picture that could not be drawn or written at the end of a run.

    Raises:
        BadParameter: it is none, of nothing, or has no folder to lie in.
    """
    if decoder == "none":
        raise _refused("it shows a segmentation, and --decoder none makes none")
    check_picture(preview)


def check_picture(preview: Path) -> None:
    """Refuse a picture that could not be written once all is made.

    Raises:
        BadParameter: it is none, or has no folder to lie in.
    """
    if preview.suffix.lower() != ".png":
        raise _refused(f"it is a PNG, and {preview.name} does not end in .png")
    if not preview.resolve().parent.is_dir():
        raise _refused(f"there is no folder {preview.parent}")
    if preview.is_dir():
        raise _refused(f"{preview} is a folder")


def keep_inputs(preview: Path, *sources: Volume | None) -> None:
    """Refuse a picture that would take the place of a section that is read, or be one more.

    Args:
        preview: the picture.
        sources: volumes that are read; None is passed over.

    Raises:
        BadParameter: it would.
    """
    from fgnet.volumes.address import section_files

    for source in sources:
        if source is None or source.address.kind != "sections":
            continue
        folder = source.address.path
        if preview.resolve().parent == folder.resolve() or preview.resolve() in map(
            Path.resolve, section_files(folder)
        ):
            raise _refused(f"it would be a section of the input {folder}")


def _refused(why: str) -> typer.BadParameter:
    return typer.BadParameter(why, param_hint="--preview")
