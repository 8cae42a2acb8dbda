from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.network.augment import AugmentOptions
from fgnet.network.data import CropSampler, LabelledVolume, Sample, load_labelled
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.space import UNKNOWN, Space

OFF = AugmentOptions(0, 0, 0, 0, 0, 0, 0)
ISOTROPIC = Space((10.0, 10.0, 10.0))
ANISOTROPIC = Space((40.0, 4.0, 4.0))


def labelled(shape: tuple[int, int, int], space: Space = ANISOTROPIC, weight: float = 1.0, seed: int = 0) -> Any:
    """Raw whose gray value names the object, so that a crop's labels can be read off its raw."""
    labels = np.random.default_rng(seed).integers(0, 4, tuple(-(-side // 3) for side in shape), dtype=np.uint32)
    for axis in range(3):
        labels = labels.repeat(3, axis)
    labels = np.ascontiguousarray(labels[: shape[0], : shape[1], : shape[2]])
    return LabelledVolume(f"seed {seed}", (labels * 50).astype(np.uint8), labels, space, weight)


def labels_of(sample: Sample) -> Any:
    return np.rint(sample.gray[0] * 255 / 50).astype(np.uint32)


@given(
    crop=st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)),
    room=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    isotropic=st.booleans(),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_affinities_are_those_of_the_oriented_labels(
    crop: tuple[int, int, int], room: tuple[int, int, int], isotropic: bool, seed: int
) -> None:
    shape = (crop[0] + room[0], crop[1] + room[1], crop[2] + room[2])
    volume = labelled(shape, ISOTROPIC if isotropic else ANISOTROPIC)
    if not volume.labels.any():
        volume.labels[:] = 1
        volume.raw[:] = 50
    sample = CropSampler([volume], crop, OFF, seed).sample(0, 0)
    assert sample.gray.shape == (1, *crop)
    assert sample.affinities.shape == (3, *crop)
    direct = affinities_from_labels(widen_borders(labels_of(sample)))
    # The crop's first planes look back at voxels outside of it, and its margin takes part in the widening.
    inner = (slice(None), slice(1, None), slice(2, None), slice(2, None))
    np.testing.assert_array_equal(sample.affinities[inner], direct[inner])
    assert (sample.affinities <= direct).all()


def test_the_first_plane_sees_the_voxel_before_the_crop() -> None:
    labels = np.ones((2, 4, 4), np.uint32)
    labels[1] = 2
    volume = LabelledVolume("two sections", np.zeros((2, 4, 4), np.uint8), labels, ANISOTROPIC)
    sample = CropSampler([volume], (1, 4, 4), OFF, 0).sample(0, 0)
    assert not sample.affinities[0].any()
    assert sample.affinities[1:].all()


def test_a_sample_is_the_same_whenever_it_is_drawn() -> None:
    volumes = [labelled((6, 40, 40), seed=1), labelled((40, 40, 40), ISOTROPIC, seed=2)]
    first, second = (CropSampler(volumes, (4, 16, 16), AugmentOptions(), 7) for _ in range(2))
    drawn = {(step, index): first.sample(step, index) for step in range(3) for index in range(2)}
    for (step, index), sample in reversed(drawn.items()):
        again = second.sample(step, index)
        np.testing.assert_array_equal(sample.gray, again.gray)
        np.testing.assert_array_equal(sample.affinities, again.affinities)
    assert len({sample.gray.tobytes() for sample in drawn.values()}) == 6
    other = CropSampler(volumes, (4, 16, 16), AugmentOptions(), 8).sample(0, 0)
    assert not np.array_equal(other.gray, drawn[0, 0].gray)


@pytest.mark.parametrize(
    ("space", "axes_along_z"),
    [(ISOTROPIC, {0, 1, 2}), (Space((10.0, 9.0, 9.0)), {0, 1, 2}), (ANISOTROPIC, {0}), (UNKNOWN, {0})],
)
def test_z_is_exchanged_only_in_isotropic_volumes(space: Space, axes_along_z: set[int]) -> None:
    # Gray rises by 100 along z, by 10 along y and by 1 along x.
    ramp = sum(np.arange(2).reshape([-1 if a == axis else 1 for a in range(3)]) * 10 ** (2 - axis) for axis in range(3))
    volume = LabelledVolume("ramp", np.asarray(ramp, np.uint8), np.ones((2, 2, 2), np.uint32), space)
    sampler = CropSampler([volume], (2, 2, 2), OFF, 0)
    steps = [np.rint(255 * sampler.sample(0, index).gray[0]) for index in range(40)]
    seen = {2 - round(np.log10(abs(gray[1, 0, 0] - gray[0, 0, 0]))) for gray in steps}
    assert seen == axes_along_z


def test_a_turned_crop_must_fit() -> None:
    volume = labelled((4, 40, 40), ISOTROPIC)
    sampler = CropSampler([volume], (4, 32, 32), OFF, 0)
    assert {sampler.sample(0, index).gray.shape for index in range(10)} == {(1, 4, 32, 32)}


def test_volumes_are_drawn_by_weight() -> None:
    volumes = [labelled((4, 8, 8), weight=3.0), labelled((4, 8, 8), weight=1.0), labelled((4, 8, 8), weight=0.0)]
    for value, volume in enumerate(volumes):
        volume.raw[:] = value
    sampler = CropSampler(volumes, (2, 4, 4), OFF, 0)
    drawn = [round(255 * float(sampler.sample(step, 0).gray.max())) for step in range(200)]
    assert 0.65 < drawn.count(0) / 200 < 0.85
    assert drawn.count(2) == 0


def test_crops_without_objects_are_drawn_again() -> None:
    volume = labelled((4, 64, 64))
    volume.labels[:] = 0
    volume.labels[:, :16, :16] = 1
    sampler = CropSampler([volume], (4, 8, 8), OFF, 0)
    assert np.mean([sampler.sample(step, 0).affinities.any() for step in range(50)]) > 0.6


@pytest.mark.parametrize(
    ("volumes", "reason"),
    [
        ([], "no training volume"),
        ([labelled((3, 16, 16))], "smaller than the crop"),
        ([LabelledVolume("void", np.zeros((8, 16, 16), np.uint8), np.zeros((8, 16, 16), np.uint32), UNKNOWN)], "void"),
        ([labelled((8, 16, 16), weight=-1.0)], "weights"),
        ([labelled((8, 16, 16), weight=0.0)], "weights"),
        ([labelled((8, 16, 16), weight=float("nan"))], "weights"),
    ],
)
def test_volumes_that_nothing_can_be_drawn_from_are_refused(volumes: list[LabelledVolume], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        CropSampler(volumes, (4, 16, 16), OFF, 0)


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


def test_what_cremi_left_unlabelled_is_background(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[0] = np.iinfo(np.uint64).max
    volume = load_labelled(*write_cremi(tmp_path / "a.h5", RAW, ids, (0.0, 4.0, 0.0)))
    assert not volume.labels[0].any()


@pytest.mark.parametrize("offset", [None, (7 * 40.0, 0.0, 0.0), (-40.0, 0.0, 0.0)])
def test_labels_that_stick_out_of_raw_are_refused(tmp_path: Path, offset: tuple[float, float, float] | None) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, IDS, offset)
    with pytest.raises(TrainingError, match="do not fit"):
        load_labelled(*addresses)


def test_raw_and_labels_of_one_shape_need_no_offset(tmp_path: Path) -> None:
    addresses = write_cremi(tmp_path / "a.h5", RAW, np.ones(RAW.shape, np.uint64), None)
    volume = load_labelled(*addresses)
    np.testing.assert_array_equal(volume.raw, RAW)


def test_real_sections_are_read_with_their_labels(shared_data: Any) -> None:
    path = shared_data("gala_fib_train.h5")
    volume = load_labelled(f"{path}:raw", f"{path}:labels", "0:8,:,:")
    assert volume.raw.shape == volume.labels.shape == (8, 100, 200)
    sample = CropSampler([volume], (4, 64, 64), AugmentOptions(), 0).sample(0, 0)
    assert 0.3 < sample.affinities.mean() < 1
