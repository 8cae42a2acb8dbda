from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.network.augment import AugmentOptions, change_gray, orient
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


@given(seed=st.integers(0, 1000), square=st.booleans())
@settings(max_examples=60, deadline=None)
def test_raw_and_labels_turn_together_and_z_stays_z(seed: int, square: bool) -> None:
    shape = (2, 4, 4) if square else (2, 4, 5)
    raw = np.arange(np.prod(shape)).reshape(shape)
    turned, labels = orient(raw, raw + 1000, np.random.default_rng(seed))
    np.testing.assert_array_equal(labels, turned + 1000)
    assert turned.shape == shape
    # A section's voxels stay together, in a section.
    assert {tuple(sorted(section.ravel())) for section in turned} == {tuple(sorted(s.ravel())) for s in raw}


def test_all_sixteen_orientations_are_drawn() -> None:
    raw = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    seen = {orient(raw, raw, np.random.default_rng(seed))[0].tobytes() for seed in range(300)}
    assert len(seen) == 16


@pytest.mark.parametrize("change", [{"noise": -1.0}, {"probability": 1.5}, {"contrast": 2.0}, {"blur": float("nan")}])
def test_strengths_outside_their_range_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=f"augment.{next(iter(change))}"):
        AugmentOptions(**change)
