"""The data options of fgnet-train: volumes by address or data set, sparse labels, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fgnet.cli.console import say
from fgnet.cli.run_rescaling import requested_size
from fgnet.cli.train_run import tell
from fgnet.cli.training_plan import short_address
from fgnet.volumes.errors import TrainingError

if TYPE_CHECKING:
    from fgnet.network.augment import AugmentOptions
    from fgnet.network.data import LabelledVolume

_DATA, _VALIDATION, _AUGMENTATION = "Data", "Validation", "Augmentation"

# What stands for the whole volume in a list of regions, and for nothing in the other lists.
_WHOLE, _NOTHING = ("-", ":"), "-"

# Of the affinities within sections, how many must be known along z before nothing is said.
_ALONG_Z = 0.1

# A crop for a contact sheet where none is asked for: one of training's would make panels too large to compare.
_SHEET_CROP = "16,128,128"

RawOption = Annotated[
    list[str] | None, typer.Option(metavar="ADDR", help="Gray values, uint8; once per volume.", rich_help_panel=_DATA)
]
LabelsOption = Annotated[
    list[str] | None, typer.Option(metavar="ADDR", help="Its labels, 0 is background.", rich_help_panel=_DATA)
]
RoiOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="Z0:Z1,Y0:Y1,X0:X1", help="Its region, in voxels of the labels; - is all.", rich_help_panel=_DATA
    ),
]
WeightOption = Annotated[
    list[float] | None,
    typer.Option(metavar="W", help="How often it is drawn, relative to the others.", rich_help_panel=_DATA),
]
VoxelSizeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="Z,Y,X",
        help="Its voxel size in nm, whatever its file says; once for all --raw, or per volume, - for its file's.",
        rich_help_panel=_DATA,
    ),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDR", help="0 where nobody labelled; - is labelled everywhere.", rich_help_panel=_DATA),
]
UnlabelledOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID",
        help="Id of voxels that nobody labelled: 0, -1, ...; once for all volumes, or per volume, - for none.",
        rich_help_panel=_DATA,
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A data set, with its own split; see --list-datasets.", rich_help_panel=_DATA),
]
DataDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the data sets' files.", rich_help_panel=_DATA)
]
ListDatasetsOption = Annotated[
    bool,
    typer.Option(
        "--list-datasets", help="List the data sets (and, with --data-dir, what is missing).", rich_help_panel=_DATA
    ),
]
ValRawOption = Annotated[
    str | None, typer.Option(metavar="ADDR", help="Gray values to validate on.", rich_help_panel=_VALIDATION)
]
ValLabelsOption = Annotated[str | None, typer.Option(metavar="ADDR", help="Their labels.", rich_help_panel=_VALIDATION)]
ValRoiOption = Annotated[
    str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Their region.", rich_help_panel=_VALIDATION)
]
ValMaskOption = Annotated[
    str | None, typer.Option(metavar="ADDR", help="0 where nobody labelled: not scored.", rich_help_panel=_VALIDATION)
]
AugmentOption = Annotated[
    Literal["none", "default", "strong"] | None,
    typer.Option(help="How crops are changed (default).", rich_help_panel=_AUGMENTATION),
]
PreviewOption = Annotated[
    Path | None,
    typer.Option(
        "--preview-augmentation",
        metavar="FILE.png",
        help="Draw what each augmentation does to a crop, and stop.",
        rich_help_panel=_AUGMENTATION,
    ),
]


@dataclass(frozen=True)
class DataRequest:
    """What a command line says about data; the lists about volumes are matched by position.

    Attributes:
        raw: addresses of gray values.
        labels: addresses of labels, as many.
        roi: regions, as many or none; "-" or ":" is the whole volume.
        weight: how often each is drawn, as many or none.
        mask: addresses of masks, as many or none; "-" is none.
        unlabelled: ids that nobody labelled, as many, one for all, or none; "-" is none.
        voxel_size: nm, as many, one for all, or none; "-" is what the file says.
        datasets: names of data sets.
        data_dir: the folder of their files.
        val_raw: address of gray values to validate on; without it, the first data set's own validation part.
        val_labels: address of their labels.
        val_roi: their region.
        val_mask: address of their mask.
    """

    raw: Sequence[str] = ()
    labels: Sequence[str] = ()
    roi: Sequence[str] = ()
    weight: Sequence[float] = ()
    mask: Sequence[str] = ()
    unlabelled: Sequence[str] = ()
    voxel_size: Sequence[str] = ()
    datasets: Sequence[str] = ()
    data_dir: Path | None = None
    val_raw: str | None = None
    val_labels: str | None = None
    val_roi: str | None = None
    val_mask: str | None = None

    @property
    def addresses(self) -> list[str]:
        """All arguments that are addresses of volumes."""
        masks = [mask for mask in self.mask if mask != _NOTHING]
        held_out = [address for address in (self.val_raw, self.val_labels, self.val_mask) if address]
        return [*self.raw, *self.labels, *masks, *held_out]

    @property
    def unlabelled_everywhere(self) -> str:
        """The id that was given once: for all volumes, data sets, and what is validated and tested on."""
        return self.unlabelled[0] if len(self.unlabelled) == 1 else _NOTHING


def load_volumes(data: DataRequest) -> list[LabelledVolume]:
    """Reads what is trained on: the volumes named by addresses, then the training parts of the data sets.

    What a user should know of one is said.

    Raises:
        TrainingError: lists of different lengths, nothing to train on, or raw and labels that do not fit.
        AddressError, VolumeError, GeometryError: what the files or a region are refused for.
    """
    volumes = [_load(*pair) for pair in _pairs(data)]
    if not volumes and not data.datasets:
        raise TrainingError("there is nothing to train on", remedy="give --raw and --labels, or --dataset")
    volumes += [_load_part(name, "train", data) for name in data.datasets]
    for volume in volumes:
        _tell_of(volume)
    return volumes


def load_validation(data: DataRequest) -> LabelledVolume | None:
    """Reads what is validated on: addresses, or the validation part of the first data set.

    Raises:
        TrainingError: raw or labels alone.
        AddressError, VolumeError, GeometryError: what the files or the region are refused for.
    """
    raw, labels = data.val_raw, data.val_labels
    if (raw, labels, data.val_roi, data.val_mask) == (None, None, None, None):
        return _load_part(data.datasets[0], "validation", data) if data.datasets else None
    if raw is None or labels is None:
        raise TrainingError("a validation needs both --val-raw and --val-labels", remedy="give both, or neither")
    region, mask = data.val_roi or _NOTHING, data.val_mask or _NOTHING
    return _load(raw, labels, region, 1.0, mask, data.unlabelled_everywhere, _NOTHING)


def _tell_of(volume: LabelledVolume) -> None:
    if not volume.space.known:
        tell(
            f"{volume.name}: the voxel size is not known, so it is taken for serial sections, which are not turned or"
            " resampled along z; --voxel-size Z,Y,X in nm says what it is"
        )
    z, *within = volume.known_pairs
    if volume.known is not None and z < _ALONG_Z * max(within):
        tell(
            f"warning: {volume.name}: {z} voxels have a label in the section before too, and {max(within)} have one"
            " beside them, so little is learned about z: label sections that follow each other"
        )


def load_test(data: DataRequest) -> LabelledVolume | None:
    """Reads the test part of the first data set, where it is another one than the validation part.

    Raises:
        AddressError, VolumeError, GeometryError, TrainingError: what its files are refused for.
    """
    from fgnet.network.datasets import find_dataset

    if not data.datasets or data.val_raw is not None:
        return None
    parts = find_dataset(data.datasets[0]).parts
    return None if parts["test"] == parts["validation"] else _load_part(data.datasets[0], "test", data)


def _pairs(data: DataRequest) -> list[tuple[str, str, str, float, str, str, str]]:
    """Of each volume: raw, labels, region, weight, mask, unlabelled id, voxel size."""
    count = len(data.raw)
    fits = len(data.labels) == count and all(len(given) in (0, count) for given in (data.roi, data.weight, data.mask))
    if not fits or any(len(given) not in (0, 1, count) for given in (data.unlabelled, data.voxel_size)):
        counts = f"{count} --raw, {len(data.labels)} --labels, {len(data.roi)} --roi, {len(data.weight)} --weight"
        rarer = (("--mask", data.mask), ("--unlabelled", data.unlabelled), ("--voxel-size", data.voxel_size))
        raise TrainingError(
            ", ".join(
                (f"the volumes do not match up: {counts}", *(f"{len(ids)} {name}" for name, ids in rarer if ids))
            ),
            remedy="give each --raw its --labels, and the other options for all volumes or for none; - leaves one out",
        )
    unlabelled, voxel_size = (
        list(given) * count if len(given) == 1 else list(given) for given in (data.unlabelled, data.voxel_size)
    )
    nothing = [_NOTHING] * count
    return list(
        zip(
            data.raw,
            data.labels,
            list(data.roi) or nothing,
            list(data.weight) or [1.0] * count,
            list(data.mask) or nothing,
            unlabelled or nothing,
            voxel_size or nothing,
            strict=True,
        )
    )


def _load(
    raw: str, labels: str, roi: str, weight: float, mask: str, unlabelled: str, voxel_size: str
) -> LabelledVolume:
    from fgnet.network.data import load_labelled
    from fgnet.volumes.space import Space

    region = None if roi in _WHOLE else roi
    size = requested_size(None if voxel_size == _NOTHING else voxel_size)
    volume = load_labelled(
        raw,
        labels,
        region,
        weight,
        mask=None if mask == _NOTHING else mask,
        unlabelled=_unlabelled_id(unlabelled),
    )
    name = f"{short_address(raw)} | {short_address(labels)} [{region or 'all'}]"
    return replace(volume, name=name, space=volume.space if size is None else Space(size, volume.space.offset))


def _unlabelled_id(text: str) -> int | None:
    if text == _NOTHING:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise TrainingError(f"--unlabelled {text!r} is no id", remedy="give a whole number, or -") from error


def _load_part(name: str, part: Literal["train", "validation", "test"], data: DataRequest) -> LabelledVolume:
    from fgnet.network.datasets import find_dataset, load_part

    dataset = find_dataset(name)
    if data.data_dir is None:
        raise TrainingError(
            f"--data-dir does not say where the files of {name} are", remedy=f"get them from {dataset.source}"
        )
    return load_part(dataset, part, data.data_dir, _unlabelled_id(data.unlabelled_everywhere))


def augmentation(name: Literal["none", "default", "strong"] | None) -> AugmentOptions | None:
    """The options of a preset; None where none is named."""
    from fgnet.network.augment import PRESETS

    return None if name is None else PRESETS[name]


def draw_augmentation(
    path: Path, data: DataRequest, crop: str | None, preset: Literal["none", "default", "strong"] | None, seed: int
) -> None:
    """Writes a contact sheet of the augmentations of the first volume.

    Raises:
        OutputError: it cannot be written.
        TrainingError, AddressError, VolumeError, GeometryError: as for `load_volumes`, or a crop that does not fit.
    """
    from fgnet.network.augment import PRESETS
    from fgnet.network.augmentation_sheet import save_augmentation_sheet
    from fgnet.volumes.geometry import parse_triple

    volume = load_volumes(data)[0]
    size = parse_triple(crop or _SHEET_CROP, "crop")
    save_augmentation_sheet(path, volume, size, PRESETS[preset or "default"], seed)
    say(f"{path}: the augmentations of {volume.name}")
