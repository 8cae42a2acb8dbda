"""What fgnet-eval is given: the ground truth, where it is labelled, and places for what is written."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fgnet.volumes.errors import OutputError

if TYPE_CHECKING:
    from fgnet.postproc.comparison import Known
    from fgnet.volumes.reading import Volume


def open_truth(closing: ExitStack, address: str, mask: str | None) -> tuple[Volume, Known | None]:
    """Opens true labels, and what says which of their voxels somebody labelled, if that is said.

    Args:
        closing: closes what is opened.
        address: of the labels.
        mask: of a volume of their extent, or a coarser one, 0 where nobody labelled.

    Raises:
        FGNetError: what the volumes are refused for.
    """
    from fgnet.engine.run_mask import RunMask
    from fgnet.volumes.reading import check_labels, open_volume

    truth = closing.enter_context(open_volume(address, holds="labels"))
    check_labels(truth)
    if mask is None:
        return truth, None
    return truth, RunMask(closing.enter_context(open_volume(mask)), truth.box.shape).inside


def margin_of(protocol: str, border: float | None) -> float:
    """The border in nm: what --border says, or else the protocol.

    Raises:
        BadParameter: it is no length.
    """
    from fgnet.postproc.protocols import PROTOCOLS

    if border is not None and not math.isfinite(border):
        raise typer.BadParameter(f"{border} is no length", param_hint="--border")
    return PROTOCOLS[protocol].border if border is None else border


def require_places(*files: Path | None) -> None:
    """Refuse a file that could not be written once everything is scored; None is passed over.

    Raises:
        OutputError: it is a folder, or no file can be made there.
    """
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise OutputError("cannot be written: it is a folder", where=file, remedy="name a file")
        # Folders that are missing are made.
        there = next(folder for folder in file.absolute().parents if folder.exists())
        if not there.is_dir():
            raise OutputError(f"cannot be written: {there} is no folder", where=file, remedy="name another place")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(
                f"cannot be written: {there} may not be written to", where=file, remedy="name another place"
            )
