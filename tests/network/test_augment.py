from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.network.augment import AUGMENTATIONS, PRESETS, PROBABILITIES, AugmentOptions, Choices, alone
from fgnet.network.gray_values import change_gray
from fgnet.volumes.errors import TrainingError

OFF = AugmentOptions(contrast=0, brightness=0, gamma=0, noise=0, blur=0, missing_section=0, probability=0)


def gray(seed: int = 0, shape: tuple[int, ...] = (3, 8, 9)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(
    seed=st.integers(0, 1000),
    options=st.builds(
        AugmentOptions,
        contrast=st.floats(0, 1),
        brightness=st.floats(0, 255),
        gamma=st.floats(0, 2),
        noise=st.floats(0, 100),
        blur=st.floats(0, 3),
        missing_section=st.floats(0, 1),
        probability=st.floats(0, 1),
    ),
)
@settings(max_examples=60, deadline=None)
def test_gray_stays_in_the_range_and_in_the_steps_of_8_bits(seed: int, options: AugmentOptions) -> None:
    raw = gray(seed)
    before = raw.copy()
    changed = change_gray(raw, options, np.random.default_rng(seed))
    assert changed.dtype == np.float32
    assert changed.shape == raw.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    np.testing.assert_array_equal(changed, np.rint(changed * 255).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(raw, before)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_switched_off_nothing_changes(seed: int) -> None:
    raw = gray(seed)
    changed = change_gray(raw, OFF, np.random.default_rng(seed))
    np.testing.assert_array_equal(changed * np.float32(255), raw)


def test_probability_0_switches_gamma_noise_and_blur_off() -> None:
    raw = gray()
    options = AugmentOptions(contrast=0, brightness=0, missing_section=0, probability=0, gamma=2, noise=99, blur=3)
    np.testing.assert_array_equal(change_gray(raw, options, np.random.default_rng(0)) * np.float32(255), raw)


def test_blur_stays_within_sections() -> None:
    raw = np.zeros((3, 9, 9), np.uint8)
    raw[1, 4, 4] = 255
    options = AugmentOptions(0, 0, 0, 0, 3, 0, 1)
    changed = change_gray(raw, options, np.random.default_rng(3))
    assert changed[1].astype(bool).sum() > 1
    assert not changed[[0, 2]].any()


def test_a_missing_section_is_almost_empty() -> None:
    raw = gray(shape=(4, 16, 16))
    options = AugmentOptions(0, 0, 0, 0, 0, missing_section=1, probability=0)
    changed = change_gray(raw, options, np.random.default_rng(0))
    assert (changed.std(axis=(1, 2)) < 0.15 * (raw / 255).std()).all()


@pytest.mark.parametrize(
    "change",
    [
        {"noise": -1.0},
        {"probability": 1.5},
        {"contrast": 2.0},
        {"blur": float("nan")},
        {"noise": float("inf")},
        {"slip": 1.1},
        {"jitter_shift": -1.0},
        {"thickest": 0},
        {"thickest": 2.5},
        {"cut_blur_factor": 99},
        {"rotation_degrees": 90.0},
        {"elastic_shift": 16.0, "elastic": 0.1},
    ],
)
def test_strengths_outside_their_range_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=f"augment.{next(iter(change))}"):
        AugmentOptions(**change)  # type: ignore[arg-type]


def test_without_arguments_only_the_gray_values_of_the_first_version_change() -> None:
    plain = AugmentOptions()
    assert {name for name in PROBABILITIES if getattr(plain, name)} == {"orient", "missing_section", "probability"}


def test_presets_rise_in_strength_and_none_is_nothing() -> None:
    assert not any(getattr(PRESETS["none"], name) for name in PROBABILITIES)
    assert not any(getattr(PRESETS["none"], name) for name in ("contrast", "brightness", "section_gamma"))
    for field in dataclasses.fields(AugmentOptions):
        weak, strong = (getattr(PRESETS[name], field.name) for name in ("default", "strong"))
        assert 0 < weak <= strong, field.name


def test_every_option_belongs_to_an_augmentation_with_a_name() -> None:
    assert {field.name for field in dataclasses.fields(AugmentOptions)} == set().union(*AUGMENTATIONS.values())
    for name, options in AUGMENTATIONS.items():
        single = alone(PRESETS["strong"], name)
        assert {option for option in PROBABILITIES if getattr(single, option) == 1} == {*options} & {*PROBABILITIES}


def test_each_augmentation_has_random_numbers_of_its_own() -> None:
    choices = Choices((3, 1, 4))
    slip = choices.of("slip").random(8)
    np.testing.assert_array_equal(slip, choices.of("slip").random(8))
    for other in (choices.of("jitter"), Choices((3, 1, 5)).of("slip"), np.random.default_rng((3, 1, 4))):
        assert not np.array_equal(slip, other.random(8))
