"""The arrays that a run writes: created, found again after a kill, and the place where finished chunks go."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.run_journal import JournalWriter, RunJournal, journal_path
from fgnet.engine.run_mask import RunMask
from fgnet.engine.run_plan import RunPlan
from fgnet.volumes.address import is_zarr
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.output_store import ZarrFormat, explained
from fgnet.volumes.reading import Volume
from fgnet.volumes.removal import remove_folder
from fgnet.volumes.writing import MultiscaleWriter, create_image, create_labels, reopen
from fgnet.volumes.zarr_source import is_unfinished

AFFINITIES_GROUP = "affinities"
"""Where affinities lie inside the output of a run that makes a segmentation."""

THRESHOLDS_GROUP = "thresholds"
"""Where segmentations at further thresholds lie inside an output."""

GROUPS = (AFFINITIES_GROUP, f"{THRESHOLDS_GROUP}/*")
"""The images inside an output that are replaced with it."""

_DIGITS = 16
_PIECES = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")  # names of folders with the pieces of a decoding


@dataclass(frozen=True, eq=False)
class RunOutputs:
    """What is written.

    Attributes:
        path: the Zarr store.
        affinities: of the region; at the root of the store where there is no segmentation.
        segmentation: of the region, at the root.
        others: the same at further thresholds, in groups of their own.
    """

    path: Path
    affinities: MultiscaleWriter
    segmentation: MultiscaleWriter | None
    others: tuple[MultiscaleWriter, ...] = ()

    @property
    def segmentations(self) -> tuple[MultiscaleWriter, ...]:
        """All of them."""
        return () if self.segmentation is None else (self.segmentation, *self.others)


def threshold_name(threshold: float) -> str:
    """A threshold in as few digits as tell it from any other."""
    return repr(float(threshold)).removesuffix(".0")


def threshold_group(threshold: float) -> str:
    """Where the segmentation at a further threshold lies inside an output."""
    return f"{THRESHOLDS_GROUP}/{threshold_name(threshold)}"


def create_outputs(
    path: Path,
    plan: RunPlan,
    volume: Volume,
    *,
    segmentation: bool,
    zarr_format: ZarrFormat,
    overwrite: bool,
    first: Callable[[], None],
    thresholds: Sequence[float] = (),
) -> RunOutputs:
    """Create the outputs of a run.

    Args:
        path: the Zarr store.
        plan: of the run.
        volume: gray, whose name, voxel size and offset the outputs inherit.
        segmentation: whether there will be one.
        zarr_format: of the store.
        overwrite: whether an earlier output is replaced.
        first: called once nothing is in the way, before anything is deleted or created.
        thresholds: of further segmentations.

    Raises:
        OutputError: the output exists and is not to be replaced, or cannot be created.
    """
    options: dict[str, Any] = {"zarr_format": zarr_format, "overwrite": overwrite, "replaces": GROUPS}
    image = _image(plan, volume, segmentation=segmentation)
    if not segmentation:
        return RunOutputs(path, create_image(path, chunks=plan.chunk, first=first, **image, **options), None)
    whole = create_labels(path, first=first, **_labels(plan, volume), **options)
    affinities = create_image(path, chunks=plan.chunk, **image, **options)
    return RunOutputs(path, affinities, whole, open_others(path, thresholds, zarr_format, **_labels(plan, volume)))


def reopen_outputs(
    path: Path,
    plan: RunPlan,
    volume: Volume,
    *,
    segmentation: bool,
    zarr_format: ZarrFormat = 3,
    thresholds: Sequence[float] = (),
) -> RunOutputs:
    """Go on with the outputs of a run that did not finish; arguments as for `create_outputs`.

    Segmentations at other thresholds than those asked for now are removed, and new ones created.

    Raises:
        OutputError: they are not there, finished, or of another shape.
    """
    labels = _labels(plan, volume)
    whole = reopen(path, dtype=np.uint64, axes="zyx", method="mode", **labels) if segmentation else None
    others = open_others(path, thresholds, zarr_format, **labels)
    return RunOutputs(path, open_affinities(path, plan, volume, segmentation=segmentation), whole, others)


def open_others(
    path: Path, thresholds: Sequence[float], zarr_format: ZarrFormat, **labels: Any
) -> tuple[MultiscaleWriter, ...]:
    """Create the segmentations at further thresholds inside an output, or go on with those that are there.

    Those at thresholds that are not asked for any more are removed.

    Args:
        path: the Zarr store.
        thresholds: of the segmentations.
        zarr_format: of the store.
        labels: shape, space and name of each.

    Raises:
        OutputError: one cannot be created, or another one not be removed.
    """
    groups = [threshold_group(threshold) for threshold in thresholds]
    place = path / THRESHOLDS_GROUP
    with explained(place):
        if not groups:
            remove_folder(place)
        for folder in list(place.glob("*/")):
            if f"{THRESHOLDS_GROUP}/{folder.name}" not in groups:
                remove_folder(folder)
        # Nothing is lost with one whose creation was cut short.
        begun = [group for group in groups if is_zarr(path / group) and is_zarr(path / group / "0")]
        for group in groups:
            if group not in begun:
                remove_folder(path / group)
    return tuple(
        reopen(path, group=group, dtype=np.uint64, axes="zyx", method="mode", finished=True, **labels)
        if group in begun
        else create_labels(path, group=group, zarr_format=zarr_format, **labels)
        for group in groups
    )


def open_affinities(path: Path, plan: RunPlan, volume: Volume, *, segmentation: bool) -> MultiscaleWriter:
    """The affinities alone, of outputs that were created; arguments and errors as for `reopen_outputs`."""
    # Those inside an output are finished before it is.
    return reopen(path, finished=segmentation, **_image(plan, volume, segmentation=segmentation))


def _image(plan: RunPlan, volume: Volume, *, segmentation: bool) -> dict[str, Any]:
    return {
        "shape": (3, *plan.region.shape),
        "dtype": np.uint8,
        "axes": "czyx",
        "name": f"{volume.name} affinities",
        "space": volume.space.shifted(plan.region.start),
        "group": AFFINITIES_GROUP if segmentation else None,
    }


def _labels(plan: RunPlan, volume: Volume) -> dict[str, Any]:
    space = volume.space.shifted(plan.region.start)
    return {"shape": plan.region.shape, "name": f"{volume.name} segmentation", "space": space}


def drop_affinities(path: Path) -> None:
    """Delete the affinities inside an output, if they are there.

    Raises:
        OutputError: they cannot be deleted.
    """
    with explained(path / AFFINITIES_GROUP):
        remove_folder(path / AFFINITIES_GROUP)


def network_store(output: Path) -> Path:
    """Where the affinities at the network's voxel size lie while a run is not complete."""
    return output.with_name(output.name + ".network")


def decoding_folder(path: Path) -> Path:
    """Where the blockwise decoder keeps what it needs on the way, beside an output."""
    return path.with_name(path.name + ".decoding")


def pieces_folder(path: Path, description: str) -> Path:
    """Where the pieces of one decoding lie in that folder.

    A worker that outlives its run so cannot leave its pieces among those of a later run of the same output.

    Args:
        path: the Zarr store.
        description: what the decoding is, see `fgnet.postproc.sidecar.Sidecar.claim`.
    """
    return decoding_folder(path) / hashlib.sha256(description.encode()).hexdigest()[:_DIGITS]


def refuse_other_pieces(path: Path) -> None:
    """Refuse an output whose decoding's folder holds what no decoding has left there, for it is deleted as a whole.

    Raises:
        OutputError: it does, or is no folder of its own.
    """
    folder = decoding_folder(path)
    remedy = "choose another output, or move it away"
    with explained(folder):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputError("a decoding puts its pieces here, and this is no folder", where=folder, remedy=remedy)
        entries = sorted(folder.iterdir()) if folder.exists() else []
        others = [entry.name for entry in entries if not (_PIECES.fullmatch(entry.name) and entry.is_dir())]
    if others:
        raise OutputError(
            f"a decoding puts its pieces here, and this was put here by none: {others[0]}", where=folder, remedy=remedy
        )


def drop_decoding(path: Path) -> None:
    """Delete what the blockwise decoder kept, if it is there.

    Raises:
        OutputError: it cannot be deleted, or something else lies there too.
    """
    refuse_other_pieces(path)
    with explained(decoding_folder(path)):
        remove_folder(decoding_folder(path))


def drop_network(path: Path) -> None:
    """Delete what a run that rescales has left beside an output, if it is there.

    Raises:
        OutputError: a process still writes it, or it cannot be deleted.
    """
    store = network_store(path)
    with explained(store):
        # A store that is not of an unfinished run is none of ours.
        if journal_path(store).exists() or is_unfinished(store):
            with RunJournal(store, anew=True) as journal:
                if is_unfinished(store):
                    remove_folder(store)
                journal.remove()


class JournaledSink:
    """Writes chunks, waits for the disk, and notes them in the journal.

    Args:
        writer: of the affinities.
        journal: of the run.
        region: that the writer's voxels begin at.
        mask: outside of it, affinities are 0.
    """

    def __init__(self, writer: MultiscaleWriter, journal: JournalWriter, region: Box, mask: RunMask | None) -> None:
        self._writer, self._journal, self._mask = writer, journal, mask
        self._offset = [-first for first in region.start]

    def write(self, index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None) -> None:
        """Keep a chunk; zeros have no file, but where a run before has left one.

        Raises:
            OutputError: the disk does not take it.
        """
        if affinities is None:
            affinities = np.zeros((3, *box.shape), np.uint8)
        elif self._mask is not None:
            affinities *= self._mask.inside(box)
        place = box.shift(self._offset)
        self._writer.write(place, affinities)
        self._writer.sync(place)
        self._journal.finished(index)
