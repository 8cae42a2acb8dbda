"""The data sets of the field by name: which files they are, how big their voxels, who trains and tests on what.

Splits and voxel sizes are those of FGNet's experiments (arXiv 2511.13063); SNEMI3D and FIB-25, which are not among
them, are split in the same manner. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fgnet.network.labelled_volume import LabelledVolume, load_labelled
from fgnet.volumes.errors import AddressError, TrainingError
from fgnet.volumes.space import Lengths

PartName = Literal["train", "validation", "test"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True)
class File:
    """A file that a data set comes in.

    Attributes:
        names: under which it is published, the preferred first.
        dataset: path inside an HDF5 file; None for the first one, and for TIFF.
    """

    names: tuple[str, ...]
    dataset: str | None = None


@dataclass(frozen=True)
class Part:
    """What is trained, validated or tested on: a range of sections of two files.

    Attributes:
        raw: gray values.
        labels: neurons.
        sections: first and one past the last; None is the volume's end.
    """

    raw: File
    labels: File
    sections: tuple[int, int | None] = (0, None)

    @property
    def roi(self) -> str:
        """The region, in voxels of the labels."""
        first, last = self.sections
        return f"{first}:{'' if last is None else last},:,:"


@dataclass(frozen=True)
class Dataset:
    """A data set of electron microscopy with labelled neurons.

    Attributes:
        name: by which it is asked for.
        title: what it is.
        voxel_size: nm (z, y, x), where the files name none.
        parts: train, validation and test; where the protocol has two parts, validation and test are one.
        source: where its files come from.
        citation: what to cite.
        licence: as far as it is stated.
    """

    name: str
    title: str
    voxel_size: Lengths
    parts: dict[PartName, Part]
    source: str
    citation: str
    licence: str

    @property
    def files(self) -> tuple[File, ...]:
        """All of its files, each once."""
        found = (file for part in self.parts.values() for file in (part.raw, part.labels))
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "voxel_size": list(self.voxel_size),
            "parts": {
                name: {"raw": list(part.raw.names), "labels": list(part.labels.names), "roi": part.roi}
                for name, part in self.parts.items()
            },
            "source": self.source,
            "citation": self.citation,
            "licence": self.licence,
        }


def _two_parts(raw: File, labels: File, first_held_out: int, last: int | None = None) -> dict[PartName, Part]:
    held_out = Part(raw, labels, (first_held_out, last))
    return {"train": Part(raw, labels, (0, first_held_out)), "validation": held_out, "test": held_out}


def _cremi(sample: str) -> Dataset:
    names = (f"sample_{sample}_padded_20160501.hdf", f"sample_{sample}_20160501.hdf")
    return Dataset(
        f"cremi-{sample.lower()}",
        f"CREMI sample {sample}: adult Drosophila brain, ssTEM",
        (40.0, 4.0, 4.0),
        _two_parts(File(names, "volumes/raw"), File(names, "volumes/labels/neuron_ids"), 100, 125),
        "https://cremi.org/data/",
        "Funke et al., MICCAI challenge on circuit reconstruction from electron microscopy images, 2016",
        "see cremi.org",
    )


_KASTHURI = "Kasthuri et al., Saturated reconstruction of a volume of neocortex, Cell 2015"
_AC3 = (File(("AC3_inputs.h5",)), File(("AC3_labels.h5",)))
_AC4 = (File(("AC4_inputs.h5",)), File(("AC4_labels.h5",)))
_SNEMI = (File(("train-input.tif",)), File(("train-labels.tif",)))
_WAFER4 = (File(("wafer4_inputs.h5",)), File(("wafer4_labels.h5",)))
_FIB25 = (File(("fib25_t2.h5",), "raw"), File(("fib25_t2.h5",), "labels"))

_ALL = (
    Dataset(
        "ac3ac4",
        "AC3 and AC4: mouse somatosensory cortex, ATUM-SEM",
        (29.0, 3.0, 3.0),
        {"train": Part(*_AC4, (0, 80)), "validation": Part(*_AC4, (80, 100)), "test": Part(*_AC3, (0, 100))},
        "https://github.com/weih527/SSNS-Net (processed HDF5 files)",
        _KASTHURI,
        "gray values ODC-By 1.0; labels not stated",
    ),
    *(_cremi(sample) for sample in "ABC"),
    Dataset(
        "wafer4",
        "Wafer4: mouse cortex, multi-beam SEM",
        (35.0, 8.0, 8.0),
        _two_parts(*_WAFER4, 100, 125),
        "https://github.com/liuxy1103/CAD",
        "Liu et al., Cross-dimension affinity distillation for 3D EM neuron segmentation, CVPR 2024",
        "CC BY-NC 4.0",
    ),
    Dataset(
        "snemi3d",
        "SNEMI3D: mouse somatosensory cortex, ATUM-SEM",
        (30.0, 6.0, 6.0),
        _two_parts(*_SNEMI, 80, 100),
        "https://zenodo.org/record/7142003",
        _KASTHURI,
        "gray values ODC-By 1.0; labels not stated",
    ),
    Dataset(
        "fib25",
        "FIB-25, training_sample2: Drosophila medulla, FIB-SEM",
        (10.0, 10.0, 10.0),
        _two_parts(*_FIB25, 200),
        "https://github.com/janelia-flyem/neuroproof_examples (training_sample2: its sections as 'raw' and its"
        " groundtruth.h5 as 'labels' of one HDF5 file)",
        "Takemura et al., PNAS 2015; Parag et al., PLoS ONE 2015",
        "CC BY 3.0",
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
"""All data sets by name."""


def find_dataset(name: str) -> Dataset:
    """The data set of a name.

    Raises:
        TrainingError: there is none.
    """
    if name not in DATASETS:
        raise TrainingError(f"there is no data set {name!r}", remedy=f"one of {', '.join(DATASETS)}")
    return DATASETS[name]


def locate(dataset: Dataset, file: File, folder: Path) -> Path:
    """Where a data set's file lies: in the folder, or in one of the data set's name inside of it.

    Raises:
        AddressError: it does not; the message says where to get it.
    """
    for name in file.names:
        for place in (folder / name, folder / dataset.name / name):
            if place.is_file():
                return place
    wanted = " or ".join(file.names)
    raise AddressError(
        f"{wanted} of the data set {dataset.name} is missing", where=folder, remedy=f"get it from {dataset.source}"
    )


def load_part(dataset: Dataset, part: PartName, folder: Path, unlabelled: int | None = None) -> LabelledVolume:
    """Read one part of a data set into memory.

    Args:
        dataset: one of `DATASETS`.
        part: train, validation or test.
        folder: where its files are.
        unlabelled: another id of voxels that nobody labelled, such as 0; see `load_labelled`.

    Raises:
        AddressError: a file is missing or cannot be opened.
        TrainingError, VolumeError, GeometryError: files that are not what the data set says they are.
    """
    wanted = dataset.parts[part]
    raw, labels = (_address(locate(dataset, file, folder), file) for file in (wanted.raw, wanted.labels))
    volume = load_labelled(raw, labels, wanted.roi, unlabelled=unlabelled, voxel_size=dataset.voxel_size)
    return replace(volume, name=f"{dataset.name} {part} [{wanted.roi}]")


def _address(path: Path, file: File) -> str:
    return str(path) if file.dataset is None else f"{path}:{file.dataset}"
