"""Damage to sections: where it may reach, and that labels' geometry is none of its business."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgnet.network.augment import PRESETS, AugmentOptions, Choices, alone
from fgnet.network.section_damage import damage

DAMAGE = ("missing part", "out of focus", "defect", "cut-blur", "cut-noise")


def tissue(shape: tuple[int, int, int] = (6, 40, 48)) -> Any:
    return np.random.default_rng(0).integers(60, 200, shape, dtype=np.uint8)


def changed_voxels(options: AugmentOptions, seed: int, raw: Any) -> Any:
    before = raw.copy()
    after = damage(raw, options, Choices((seed,)))
    np.testing.assert_array_equal(raw, before)
    assert after.shape == raw.shape
    return after != raw


def test_switched_off_raw_is_handed_on() -> None:
    raw = tissue()
    for options in (PRESETS["none"], AugmentOptions()):
        assert damage(raw, options, Choices((0,))) is raw


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_leaves_a_part_of_most_volumes_alone(name: str) -> None:
    raw = tissue()
    shares = [changed_voxels(alone(PRESETS["strong"], name), seed, raw).mean() for seed in range(12)]
    assert 0.01 < np.mean(shares) < 0.95


@pytest.mark.parametrize("name", ["missing_part", "out_of_focus", "defect"])
def test_sections_are_damaged_one_by_one_with_their_probability(name: str) -> None:
    options = AugmentOptions(**{name: 0.3})  # type: ignore[arg-type]
    sections = [changed_voxels(options, seed, tissue()).any((1, 2)) for seed in range(100)]
    assert 0.24 < np.mean(sections) < 0.36


@pytest.mark.parametrize("name", ["cut_blur", "cut_noise"])
def test_boxes_are_cut_with_their_probability(name: str) -> None:
    options = AugmentOptions(**{name: 0.3})  # type: ignore[arg-type]
    hit = [changed_voxels(options, seed, tissue()) for seed in range(100)]
    assert 0.18 < np.mean([voxels.any() for voxels in hit]) < 0.42
    for voxels in hit:
        box = [np.ptp(where) + 1 for where in np.nonzero(voxels)] if voxels.any() else [1, 1, 1]
        assert all(extent <= 0.75 * side + 1 for extent, side in zip(box, voxels.shape, strict=True))


def test_a_missing_part_is_almost_empty() -> None:
    raw = tissue()
    after = damage(raw, AugmentOptions(missing_part=1.0), Choices((1,)))
    for section, before in zip(after, raw, strict=True):
        rest = section[section != before]
        assert rest.std() < 0.15 * before.std()
        assert 0.04 < rest.size / before.size < 0.8


def test_cut_blur_keeps_means_and_nothing_finer_than_its_squares() -> None:
    raw = tissue((1, 40, 40))
    for seed in range(10):
        after = damage(raw, AugmentOptions(cut_blur=1.0, cut_blur_factor=2), Choices((seed,)))
        assert after.mean() == pytest.approx(raw.mean(), abs=1e-3)
        rows = np.flatnonzero((after != raw).any((0, 2)))
        first = rows[0]
        columns = np.flatnonzero((after != raw)[0, first])
        square = after[0, first : first + 2, columns[0] : columns[0] + 2]
        assert np.ptp(square) < 1e-3


def test_defocus_blurs_without_changing_the_mean() -> None:
    raw = tissue()
    after = damage(raw, AugmentOptions(out_of_focus=1.0, out_of_focus_sigma=3), Choices((2,)))
    for section, before in zip(after, raw, strict=True):
        hit = section != before
        assert section[hit].std() < 0.7 * before.std()
        assert section[hit].mean() == pytest.approx(before[hit].mean(), abs=3)


def test_section_gamma_keeps_the_order_of_gray_levels() -> None:
    raw = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(5, 0)
    after = damage(raw, AugmentOptions(section_gamma=1.0), Choices((0,)))
    for section in after:
        assert (np.diff(section.ravel()) > 0).all()
        assert (section[0, 0], section[-1, -1]) == (0, 255)
    assert len({section[8, 8] for section in after}) == 5


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (3, 2, 5)])
def test_tiny_crops_can_be_damaged(shape: tuple[int, int, int]) -> None:
    for seed in range(10):
        assert damage(tissue(shape), PRESETS["strong"], Choices((seed,))).shape == shape
