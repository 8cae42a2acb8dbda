from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fgnet.network.augment import AUGMENTATIONS, PRESETS, AugmentOptions, Choices, alone
from fgnet.network.data import CropSampler, LabelledVolume, Sample, changed, cut, load_labelled
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
    if volume.labels.min() == volume.labels.max():
        if not volume.labels.size > 1:
            return
        volume.labels[...], volume.raw[...] = 1, 50
        volume.labels.flat[0] = volume.raw.flat[0] = 0
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
    labels = np.ones((2, 2, 2), np.uint32)
    labels[0, 0, 0] = 2
    volume = LabelledVolume("ramp", np.asarray(ramp, np.uint8), labels, space)
    sampler = CropSampler([volume], (2, 2, 2), OFF, 0)
    steps = [np.rint(255 * sampler.sample(0, index).gray[0]) for index in range(40)]
    seen = {2 - round(np.log10(abs(gray[1, 0, 0] - gray[0, 0, 0]))) for gray in steps}
    assert seen == axes_along_z


def test_without_augmentation_crops_are_cut_as_they_lie() -> None:
    volume = labelled((12, 20, 20), ISOTROPIC)
    volume.raw[...] = np.random.default_rng(0).integers(0, 256, volume.raw.shape)
    sampler = CropSampler([volume], (4, 8, 8), PRESETS["none"], 0)
    for index in range(20):
        sample = sampler.sample(0, index)
        spans = [slice(*map(int, span.split(":"))) for span in sample.place.rpartition(" ")[2].split(",")]
        np.testing.assert_array_equal(np.rint(255 * sample.gray[0]), volume.raw[tuple(spans)][-4:, -8:, -8:])


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


EMPTY = np.zeros((8, 16, 16), np.uint8)


@pytest.mark.parametrize(
    ("volumes", "reason"),
    [
        ([], "no training volume"),
        ([labelled((3, 16, 16))], "smaller than the crop .* larger region"),
        ([labelled((3, 70, 40))], "smaller than the crop .*--crop 3,64,32"),
        ([LabelledVolume("void", EMPTY, EMPTY.astype(np.uint32), UNKNOWN)], "void: the labels hold no object"),
        ([LabelledVolume("one", EMPTY, EMPTY.astype(np.uint32) + 1, UNKNOWN)], "one: .*one object and no background"),
        (
            [LabelledVolume("askew", EMPTY, EMPTY[1:].astype(np.uint32), UNKNOWN)],
            "askew: labels of shape .* do not fit",
        ),
        (
            [
                LabelledVolume(
                    "sparse", EMPTY, EMPTY + np.arange(16, dtype=np.uint32), UNKNOWN, 1.0, EMPTY + np.arange(16) == 3
                )
            ],
            "sparse: .*one object and no background",
        ),
        ([labelled((8, 16, 16), weight=-1.0)], "weights"),
        ([labelled((8, 16, 16), weight=0.0)], "weights"),
        ([labelled((8, 16, 16), weight=float("nan"))], "weights"),
    ],
)
def test_volumes_that_nothing_can_be_drawn_from_are_refused(volumes: list[LabelledVolume], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        CropSampler(volumes, (4, 16, 16), OFF, 0)


def test_real_sections_are_read_with_their_labels(shared_data: Any) -> None:
    path = shared_data("gala_fib_train.h5")
    volume = load_labelled(f"{path}:raw", f"{path}:labels", "0:8,:,:")
    assert volume.raw.shape == volume.labels.shape == (8, 100, 200)
    sample = CropSampler([volume], (4, 64, 64), AugmentOptions(), 0).sample(0, 0)
    assert 0.3 < sample.affinities.mean() < 1


# What the first version drew: a run of it that is resumed goes on with the same crops.
FIRST_VERSION = {
    "plain": (OFF, "0bc7463a14c136181abc335ea1fb49367652a61465f2eeb3fafaa5bfd3c9af94"),
    "gray": (AugmentOptions(blur=0, gamma=0), "47158b7d4bd1ff49bb12f7abf4fb77ba92e5bc491dd1df8960ff164db817173d"),
}


@pytest.mark.parametrize("name", FIRST_VERSION)
def test_options_of_the_first_version_draw_what_they_drew(name: str) -> None:
    options, expected = FIRST_VERSION[name]
    volumes = [noise((4, 10, 12), ANISOTROPIC, 0), noise((8, 9, 10), ISOTROPIC, 2)]
    volumes[0].labels[:, :12] = 0
    sampler = CropSampler(volumes, (4, 8, 8), options, 7)
    drawn = hashlib.sha256()
    for step, index in itertools.product(range(6), range(2)):
        sample = sampler.sample(step, index)
        drawn.update(np.rint(sample.gray * 255).astype(np.uint8).tobytes())
        drawn.update(sample.affinities.astype(np.uint8).tobytes())
    assert drawn.hexdigest() == expected


def noise(shape: tuple[int, int, int], space: Space, seed: int) -> LabelledVolume:
    labels = np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint32)
    for axis in range(3):
        labels = labels.repeat(2, axis)
    raw = np.random.default_rng(seed + 1).integers(0, 256, labels.shape, dtype=np.uint8)
    return LabelledVolume(str(seed), raw, labels, space)


CHANGES = [alone(PRESETS["strong"], name) for name in AUGMENTATIONS]


@given(options=st.sampled_from([*CHANGES, PRESETS["default"], PRESETS["strong"]]), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_affinities_are_those_of_the_augmented_labels(options: AugmentOptions, seed: int) -> None:
    """And gray values, damaged or not, change none of them."""
    volume = labelled((20, 40, 40), ISOTROPIC if seed % 2 else ANISOTROPIC, seed=seed)
    geometry = {name: getattr(options, name) for name in GEOMETRY}
    sampler = CropSampler([volume], (5, 16, 16), dataclasses.replace(PRESETS["none"], **geometry), seed)
    choices = Choices((seed, 0, 0))
    rng = np.random.default_rng(choices.key)
    rng.choice(1, p=[1.0])
    place, warp = sampler.draw_place(0, choices, rng)
    crop = changed(cut(volume, place), warp, sampler.augment, choices, rng)
    sample = sampler.sample(0, 0)
    np.testing.assert_array_equal(
        sample.affinities, affinities_from_labels(widen_borders(crop.labels))[:, -5:, -16:, -16:]
    )
    np.testing.assert_array_equal(sample.gray[0], crop.raw[-5:, -16:, -16:])
    # The same crop, with changes of gray and damage on top.
    other = CropSampler([volume], (5, 16, 16), options, seed).sample(0, 0)
    np.testing.assert_array_equal(sample.affinities, other.affinities)
    assert other.place == sample.place


GEOMETRY = {
    option
    for name in ("orientation", "rescale", "thick sections", "elastic", "jitter", "slip", "rotation slip")
    for option in AUGMENTATIONS[name]
}


@pytest.mark.parametrize("options", CHANGES, ids=list(AUGMENTATIONS))
def test_each_augmentation_changes_crops_and_repeats_itself(options: AugmentOptions) -> None:
    volume = labelled((30, 60, 60), ISOTROPIC, seed=3)
    plain, first, second = (CropSampler([volume], (6, 24, 24), each, 0) for each in (PRESETS["none"], options, options))
    drawn = [first.sample(0, index) for index in range(3)]
    for index, sample in enumerate(drawn):
        np.testing.assert_array_equal(sample.gray, second.sample(0, index).gray)
        np.testing.assert_array_equal(sample.affinities, second.sample(0, index).affinities)
    assert any(not np.array_equal(sample.gray, plain.sample(0, index).gray) for index, sample in enumerate(drawn))


def test_a_crop_as_large_as_its_volume_can_be_augmented() -> None:
    volume = labelled((6, 24, 24), seed=5)
    sampler = CropSampler([volume], (6, 24, 24), PRESETS["strong"], 0)
    samples = [sampler.sample(0, index) for index in range(10)]
    assert {sample.gray.shape for sample in samples} == {(1, 6, 24, 24)}
    assert all(sample.mask.all() for sample in samples)


def sparse(shape: tuple[int, int, int], part: tuple[slice, ...]) -> LabelledVolume:
    volume = labelled(shape)
    known = np.zeros(shape, np.bool_)
    known[part] = True
    volume.labels[~known] = 0
    return dataclasses.replace(volume, known=known)


def test_an_affinity_is_known_where_both_of_its_voxels_are() -> None:
    volume = sparse((3, 8, 8), (slice(1, 2), slice(2, 6), slice(2, 6)))
    sample = CropSampler([volume], (2, 8, 8), dataclasses.replace(OFF, orient=0.0), 0).sample(0, 1)
    known = np.zeros((3, 3, 8, 8), np.bool_)
    known[1, 1, 3:6, 2:6] = known[2, 1, 2:6, 3:6] = True
    np.testing.assert_array_equal(sample.mask, known[:, 1:])
    assert sample.mask.dtype == np.bool_


def test_at_the_volumes_border_one_voxel_says_whether_an_affinity_is_known() -> None:
    volume = sparse((2, 4, 4), (slice(0, 1), slice(None), slice(None)))
    sample = CropSampler([volume], (2, 4, 4), dataclasses.replace(OFF, orient=0.0), 0).sample(0, 0)
    assert sample.mask[:, 0].all()
    assert not sample.mask[:, 1].any()


@pytest.mark.parametrize("space", [ANISOTROPIC, ISOTROPIC])
@pytest.mark.parametrize("preset", ["none", "default"])
def test_sparse_labels_are_where_crops_are_drawn(space: Space, preset: Any) -> None:
    volume = dataclasses.replace(sparse((30, 90, 90), (slice(20, 23), slice(50, 60), slice(70, 80))), space=space)
    sampler = CropSampler([volume], (6, 24, 24), PRESETS[preset], 0)
    samples = [sampler.sample(step, 0) for step in range(30)]
    assert all(sample.mask.any() for sample in samples)
    assert len({sample.place for sample in samples}) > 20
    # What nobody labelled is not scored, and what is scored is not only objects' insides.
    assert all(sample.affinities[sample.mask].mean() < 1 for sample in samples)
    assert not any(sample.affinities[~sample.mask & ~_beside(sample.mask)].any() for sample in samples)


def _beside(mask: Any) -> Any:
    """Where one of the two voxels may be known."""
    return ndimage.binary_dilation(mask.any(0), iterations=2)[None].repeat(3, 0)


def test_labels_everywhere_are_scored_everywhere() -> None:
    sample = CropSampler([labelled((6, 30, 30))], (4, 16, 16), PRESETS["default"], 0).sample(0, 0)
    assert sample.mask.shape == sample.affinities.shape
    assert sample.mask.all()
