from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fgnet.network.labelled_volume import load_labelled
from fgnet.volumes.errors import FGNetError, TrainingError, VolumeError


def write_cremi(path: Path, raw: Any, labels: Any, offset: tuple[float, float, float] | None) -> tuple[str, str]:
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = raw
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
        file["volumes/labels/neuron_ids"] = labels
        attributes = file["volumes/labels/neuron_ids"].attrs
        attributes["resolution"] = (40.0, 4.0, 4.0)
        if offset is not None:
            attributes["offset"] = offset
    return f"{path}:volumes/raw", f"{path}:volumes/labels/neuron_ids"


RAW = np.random.default_rng(0).integers(0, 256, (10, 20, 24), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 5, (4, 10, 12), dtype=np.uint64) * np.uint64(10**15)


def test_cremi_labels_lie_inside_a_larger_raw(tmp_path: Path) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, IDS, (3 * 40.0, 5 * 4.0, 6 * 4.0))
    volume = load_labelled(*addresses)
    np.testing.assert_array_equal(volume.raw, RAW[3:7, 5:15, 6:18])
    assert volume.labels.dtype == np.uint32
    np.testing.assert_array_equal(volume.labels == 0, IDS == 0)
    assert len(np.unique(volume.labels)) == len(np.unique(IDS))
    assert volume.space.voxel_size == (40.0, 4.0, 4.0)
    assert not volume.isotropic


def test_a_region_is_counted_in_voxels_of_the_labels(tmp_path: Path) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, IDS, (3 * 40.0, 5 * 4.0, 6 * 4.0))
    volume = load_labelled(*addresses, roi="1:3,2:,:4", weight=2.0)
    np.testing.assert_array_equal(volume.raw, RAW[4:6, 7:15, 6:10])
    np.testing.assert_array_equal(volume.labels == 0, IDS[1:3, 2:, :4] == 0)
    assert volume.weight == 2.0


def test_what_cremi_left_unlabelled_is_background_that_nobody_knows(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[0] = np.iinfo(np.uint64).max
    volume = load_labelled(*write_cremi(tmp_path / "a.h5", RAW, ids, (0.0, 4.0, 0.0)))
    assert not volume.labels[0].any()
    assert volume.known is not None
    np.testing.assert_array_equal(volume.known.any((1, 2)), [False, True, True, True])


def written(path: Path, labels: Any, **others: Any) -> tuple[str, str]:
    with h5py.File(path, "w") as file:
        file["raw"], file["labels"] = RAW, labels
        for name, values in others.items():
            file[name] = values
    return f"{path}:raw", f"{path}:labels"


DENSE = np.random.default_rng(2).integers(0, 4, RAW.shape)


@pytest.mark.parametrize(
    ("dtype", "nobody", "unlabelled"),
    [("uint8", 0, 0), ("int32", -1, -1), ("uint16", 2**16 - 1, -1), ("uint64", 2**64 - 1, None), ("int64", -1, None)],
)
def test_voxels_with_the_unlabelled_id_are_not_known(
    tmp_path: Path, dtype: str, nobody: int, unlabelled: int | None
) -> None:
    labels = DENSE.astype(dtype)
    labels[2:5] = nobody
    volume = load_labelled(*written(tmp_path / "v.h5", labels), unlabelled=unlabelled)
    np.testing.assert_array_equal(volume.known, labels != nobody)
    np.testing.assert_array_equal(volume.labels > 0, (labels != nobody) & (labels != 0))


def test_labels_without_gaps_are_known_everywhere(tmp_path: Path) -> None:
    assert load_labelled(*written(tmp_path / "v.h5", DENSE + 1), unlabelled=0).known is None


def test_a_mask_says_where_somebody_labelled(tmp_path: Path) -> None:
    mask = np.zeros(RAW.shape, np.uint8)
    mask[2:, 3:9] = 7
    addresses = written(tmp_path / "v.h5", DENSE + 1, mask=mask, coarse=mask[::2, ::2, ::2] * 0 + np.arange(12) % 2)
    volume = load_labelled(*addresses, roi="1:9,:,:", mask=f"{tmp_path}/v.h5:mask", unlabelled=1)
    np.testing.assert_array_equal(volume.known, (mask[1:9] > 0) & (DENSE[1:9] > 0))
    assert not volume.labels[~volume.known].any()
    coarse = load_labelled(*addresses, mask=f"{tmp_path}/v.h5:coarse")
    np.testing.assert_array_equal(coarse.known[0, 0], np.arange(24) // 2 % 2 == 1)


@pytest.mark.parametrize(
    ("labels", "options", "error", "reason"),
    [
        (DENSE / 3, {}, VolumeError, "labels are float64, expected integers"),
        (DENSE.astype(np.int32) - 1, {}, VolumeError, r"-1 at voxel .* is no label"),
        (DENSE.astype(np.int64) - 2, {}, VolumeError, r"-2 at voxel .* is no label"),
        (DENSE.astype(np.uint8), {"unlabelled": 300}, TrainingError, "300 is none that uint8 can hold"),
        (DENSE.astype(np.uint8), {"unlabelled": -7}, TrainingError, "-7 is none that uint8 can hold"),
        (DENSE[1:], {}, TrainingError, "do not fit raw of shape"),
        (DENSE, {"mask": "short"}, VolumeError, "the mask has shape"),
        (DENSE, {"mask": "none"}, FGNetError, "no dataset 'none'"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, labels: Any, options: dict[str, Any], error: type[FGNetError], reason: str
) -> None:
    addresses = written(tmp_path / "v.h5", labels, short=DENSE[:6, :6])
    if "mask" in options:
        options = {"mask": f"{tmp_path}/v.h5:{options['mask']}"}
    with pytest.raises(error, match=reason):
        load_labelled(*addresses, **options)


def test_a_voxel_size_stands_in_where_the_files_name_none(tmp_path: Path) -> None:
    volume = load_labelled(*written(tmp_path / "v.h5", DENSE), voxel_size=(29.0, 3.0, 3.0))
    assert volume.space.voxel_size == (29.0, 3.0, 3.0)
    assert volume.space.known
    volume = load_labelled(*write_cremi(tmp_path / "a.h5", RAW, IDS, (0.0, 0.0, 4.0)), voxel_size=(29.0, 3.0, 3.0))
    assert volume.space.voxel_size == (40.0, 4.0, 4.0)


@pytest.mark.parametrize("offset", [None, (7 * 40.0, 0.0, 0.0), (-40.0, 0.0, 0.0)])
def test_labels_that_stick_out_of_raw_are_refused(tmp_path: Path, offset: tuple[float, float, float] | None) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, IDS, offset)
    with pytest.raises(TrainingError, match="do not fit"):
        load_labelled(*addresses)


def test_raw_and_labels_of_one_shape_need_no_offset(tmp_path: Path) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, np.ones(RAW.shape, np.uint64), None)
    volume = load_labelled(*addresses)
    np.testing.assert_array_equal(volume.raw, RAW)
