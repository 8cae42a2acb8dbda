"""Data sets by name, read from small files written as the published ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from fgnet.network.datasets import DATASETS, PART_NAMES, PartName, find_dataset, load_part
from fgnet.volumes.errors import AddressError, GeometryError, TrainingError


def stack(sections: int, height: int = 4, width: int = 5) -> Any:
    """Gray values that count the sections."""
    return np.repeat(np.arange(sections, dtype=np.uint8), height * width).reshape(sections, height, width)


def objects(sections: int, height: int = 4, width: int = 5) -> Any:
    return (1 + np.arange(sections * height * width) % 7).reshape(sections, height, width)


def hdf5(path: Path, **datasets: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


def write_ac3ac4(folder: Path) -> None:
    for name, sections in (("AC3", 256), ("AC4", 100)):
        hdf5(folder / f"{name}_inputs.h5", main=stack(sections))
        hdf5(folder / f"{name}_labels.h5", main=objects(sections).astype(np.uint16))


def write_wafer4(folder: Path) -> None:
    hdf5(folder / "wafer4_inputs.h5", main=stack(125))
    hdf5(folder / "wafer4_labels.h5", main=objects(125).astype(np.uint32))


def write_snemi3d(folder: Path) -> None:
    tifffile.imwrite(folder / "train-input.tif", stack(100))
    tifffile.imwrite(folder / "train-labels.tif", objects(100).astype(np.uint16))


def write_fib25(folder: Path) -> None:
    hdf5(folder / "fib25_t2.h5", raw=stack(250), labels=objects(250).astype(np.uint16))
    with h5py.File(folder / "fib25_t2.h5", "a") as file:
        for name in ("raw", "labels"):
            file[name].attrs["resolution"] = (10, 10, 10)


def write_cremi(folder: Path, sample: str = "B", *, padded: bool = False) -> None:
    name = f"sample_{sample}_padded_20160501.hdf" if padded else f"sample_{sample}_20160501.hdf"
    margin = (37, 3, 2) if padded else (0, 0, 0)
    raw = np.full([side + 2 * more for side, more in zip((125, 4, 5), margin, strict=True)], 255, np.uint8)
    raw[tuple(slice(more, more + side) for side, more in zip((125, 4, 5), margin, strict=True))] = stack(125)
    with h5py.File(folder / name, "w") as file:
        file["volumes/raw"] = raw
        file["volumes/labels/clefts"] = np.zeros((125, 4, 5), np.uint64)
        file["volumes/labels/neuron_ids"] = objects(125).astype(np.uint64)
        for path in ("volumes/raw", "volumes/labels/neuron_ids"):
            file[path].attrs["resolution"] = (40.0, 4.0, 4.0)
        file["volumes/labels/neuron_ids"].attrs["offset"] = tuple(
            more * size for more, size in zip(margin, (40.0, 4.0, 4.0), strict=True)
        )


WRITERS: dict[str, Callable[[Path], None]] = {
    "ac3ac4": write_ac3ac4,
    "cremi-a": lambda folder: write_cremi(folder, "A"),
    "cremi-b": lambda folder: write_cremi(folder, "B", padded=True),
    "cremi-c": lambda folder: write_cremi(folder, "C"),
    "wafer4": write_wafer4,
    "snemi3d": write_snemi3d,
    "fib25": write_fib25,
}

# The protocol (FGNet, arXiv 2511.13063): first section and one past the last; nm (z, y, x).
SPLITS: dict[str, tuple[dict[PartName, tuple[int, int]], tuple[float, float, float]]] = {
    "ac3ac4": ({"train": (0, 80), "validation": (80, 100), "test": (0, 100)}, (29, 3, 3)),
    "cremi-a": ({"train": (0, 100), "validation": (100, 125), "test": (100, 125)}, (40, 4, 4)),
    "cremi-b": ({"train": (0, 100), "validation": (100, 125), "test": (100, 125)}, (40, 4, 4)),
    "cremi-c": ({"train": (0, 100), "validation": (100, 125), "test": (100, 125)}, (40, 4, 4)),
    "wafer4": ({"train": (0, 100), "validation": (100, 125), "test": (100, 125)}, (35, 8, 8)),
    "snemi3d": ({"train": (0, 80), "validation": (80, 100), "test": (80, 100)}, (30, 6, 6)),
    "fib25": ({"train": (0, 200), "validation": (200, 250), "test": (200, 250)}, (10, 10, 10)),
}


def test_all_data_sets_are_tested() -> None:
    assert DATASETS.keys() == WRITERS.keys() == SPLITS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_parts_are_those_of_the_protocol(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    splits, voxel_size = SPLITS[name]
    for part in PART_NAMES:
        first, last = splits[part]
        volume = load_part(find_dataset(name), part, tmp_path)
        np.testing.assert_array_equal(volume.raw[:, 0, 0], np.arange(first, last))
        assert volume.raw.shape == volume.labels.shape == (last - first, 4, 5)
        expected = objects(250)[first:last]
        assert len(np.unique(np.stack([volume.labels, expected], -1).reshape(-1, 2), axis=0)) == 7
        assert volume.space.voxel_size == voxel_size
        assert volume.space.known
        assert volume.name.startswith(f"{name} {part} [")


def test_the_test_part_of_ac3ac4_is_another_volume(tmp_path: Path) -> None:
    write_ac3ac4(tmp_path)
    hdf5(tmp_path / "AC3_inputs.h5", main=255 - stack(256))
    assert load_part(find_dataset("ac3ac4"), "train", tmp_path).raw[0, 0, 0] == 0
    assert load_part(find_dataset("ac3ac4"), "test", tmp_path).raw[0, 0, 0] == 255


def test_a_padded_sample_is_preferred_and_files_may_lie_in_a_folder_of_the_sets_name(tmp_path: Path) -> None:
    (tmp_path / "cremi-a").mkdir()
    write_cremi(tmp_path / "cremi-a", "A", padded=True)
    (tmp_path / "sample_A_20160501.hdf").write_bytes(b"no HDF5 file")
    assert load_part(find_dataset("cremi-a"), "train", tmp_path).raw.shape == (100, 4, 5)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    dataset = find_dataset(name)
    with pytest.raises(AddressError) as caught:
        load_part(dataset, "train", tmp_path)
    file = dataset.parts["train"].raw.names[0]
    assert str(caught.value).startswith(f"{tmp_path}: {file}")
    assert f"get it from {dataset.source}" in str(caught.value)


def test_an_unknown_data_set_is_refused_with_the_list() -> None:
    with pytest.raises(TrainingError, match=r"no data set 'cremi'.*ac3ac4, cremi-a"):
        find_dataset("cremi")


def test_a_file_with_fewer_sections_than_the_split_is_refused(tmp_path: Path) -> None:
    hdf5(tmp_path / "wafer4_inputs.h5", main=stack(90))
    hdf5(tmp_path / "wafer4_labels.h5", main=objects(90))
    with pytest.raises(GeometryError, match="100 lies outside the volume"):
        load_part(find_dataset("wafer4"), "train", tmp_path)


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_wafer4(tmp_path)
    hdf5(tmp_path / "wafer4_labels.h5", main=objects(125)[:, :3])
    with pytest.raises(TrainingError, match="do not fit"):
        load_part(find_dataset("wafer4"), "train", tmp_path)


def test_the_real_fib25_has_the_shape_of_its_protocol(shared_data: Any) -> None:
    folder = shared_data("fib25_t2.h5").parent
    assert load_part(find_dataset("fib25"), "validation", folder).raw.shape == (50, 250, 250)


def test_data_sets_say_what_they_are_in_plain_data() -> None:
    for name, dataset in DATASETS.items():
        plain = dataset.to_dict()
        assert plain["name"] == name
        assert set(plain["parts"]) == {"train", "validation", "test"}
        assert all(plain[key] for key in ("title", "source", "citation", "licence"))
