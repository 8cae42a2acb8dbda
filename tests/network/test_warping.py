"""Geometry: raw and labels stay on each other, inside the volume, and nothing folds over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.network.augment import PRESETS, AugmentOptions, Choices, alone
from fgnet.network.warping import Warp, draw_warp, warp_gray, warp_labels

GEOMETRY = ("rescale", "thick sections", "elastic", "jitter", "slip", "rotation slip")
SIDES = (40, 60, 60)


def warp_of(
    options: AugmentOptions, seed: int, shape: Any = (6, 24, 24), sides: Any = SIDES, isotropic: bool = True
) -> Any:
    return draw_warp(shape, sides, isotropic, options, Choices((seed, 0, 0)))


def blocks(shape: tuple[int, int, int], size: int = 10) -> Any:
    """Labels in cubes, so large that interpolation leaves most voxels alone."""
    z, y, x = (np.arange(side) // size for side in shape)
    return (1 + (z[:, None, None] * 3 + y[:, None] * 2 + x) % 5).astype(np.uint32)


GEOMETRIES = st.one_of(
    st.sampled_from([alone(PRESETS[preset], name) for preset in ("default", "strong") for name in GEOMETRY]),
    st.just(PRESETS["strong"]),
    st.builds(
        AugmentOptions,
        rescale=st.just(1.0),
        rescale_in_plane=st.floats(0, 3),
        rescale_z=st.floats(0, 3),
        elastic=st.sampled_from([0.0, 1.0]),
        jitter=st.just(1.0),
        jitter_shift=st.floats(0, 5),
        slip=st.just(1.0),
        slip_shift=st.floats(0, 100),
        rotation_slip=st.just(1.0),
        rotation_degrees=st.floats(0, 45),
        thick_sections=st.sampled_from([0.0, 1.0]),
        thickest=st.integers(1, 16),
    ),
)


@given(options=GEOMETRIES, seed=st.integers(0, 10**6), isotropic=st.booleans())
@settings(max_examples=60, deadline=None)
def test_gray_made_of_labels_stays_made_of_labels(options: AugmentOptions, seed: int, isotropic: bool) -> None:
    warp = warp_of(options, seed, isotropic=isotropic)
    if warp is None:
        return
    labels = blocks(warp.region)
    gray, moved = warp_gray((labels * 40).astype(np.uint8), warp), warp_labels(labels, warp)
    assert gray.shape == moved.shape == (6, 24, 24)
    # Gray is a mixture of two labels' only where an interpolated or averaged voxel reaches beyond where they meet.
    positions = [warp.sections[:, None, None], *(() if warp.plane is None else warp.plane)]
    inside = np.ones(moved.shape, bool)
    for position, reach in zip(positions, (max(1, warp.thickness / 2), 1, 1), strict=False):
        inside &= np.abs((position + 0.5) % 10 - 5) < 5 - reach
    assert inside.any() or warp.thickness > 4
    np.testing.assert_array_equal(gray[inside], 40 * moved[inside])


@given(
    options=GEOMETRIES,
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)),
    room=st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9)),
    isotropic=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_voxel_is_taken_from_inside_the_volume(
    options: AugmentOptions, seed: int, shape: Any, room: Any, isotropic: bool
) -> None:
    sides = tuple(side + more for side, more in zip(shape, room, strict=True))
    warp = warp_of(options, seed, shape, sides, isotropic)
    if warp is None:
        return
    assert all(0 < need <= side for need, side in zip(warp.region, sides, strict=True))
    assert warp.sections.min() >= 0
    assert warp.sections.max() <= warp.region[0] - 1
    if warp.plane is not None:
        assert warp.plane.shape == (2, *shape)
        for positions, need in zip(warp.plane, warp.region[1:], strict=True):
            assert 0 <= positions.min() <= positions.max() <= need - 1
    region = np.arange(np.prod(warp.region), dtype=np.uint32).reshape(warp.region)
    assert warp_labels(region, warp).shape == warp_gray(region.astype(np.uint8), warp).shape == shape


@given(seed=st.integers(0, 10**6), isotropic=st.booleans())
@settings(max_examples=25, deadline=None)
def test_an_elastic_deformation_folds_nothing_over(seed: int, isotropic: bool) -> None:
    warp = warp_of(alone(PRESETS["strong"], "elastic"), seed, (3, 60, 60), (3, 99, 99), isotropic)
    y, x = warp.plane.astype(np.float64)
    (yy, yx), (xy, xx) = (np.gradient(positions, axis=(1, 2)) for positions in (y, x))
    assert (yy * xx - yx * xy).min() > 0
    assert np.abs(yy - 1).max() > 0.01


@pytest.mark.parametrize("isotropic", [True, False])
def test_switched_off_nothing_is_warped(isotropic: bool) -> None:
    for options in (PRESETS["none"], AugmentOptions()):
        assert all(warp_of(options, seed, isotropic=isotropic) is None for seed in range(20))


def slips(name: str, **strength: float) -> list[Warp]:
    options = AugmentOptions(**{name: 1.0}, **strength)  # type: ignore[arg-type]
    return [warp for seed in range(40) if (warp := warp_of(options, seed)) is not None]


def test_a_slip_moves_one_section_or_all_that_follow_by_whole_voxels() -> None:
    moved = set()
    for warp in slips("slip", slip_shift=5):
        assert warp.plane is not None
        steps = np.diff(warp.plane[:, :, 0, 0], axis=1).T
        np.testing.assert_array_equal(warp.plane, np.rint(warp.plane))
        changed = np.flatnonzero(steps.any(axis=1))
        assert np.abs(steps).max() <= 5
        if changed.size == 2:
            np.testing.assert_array_equal(steps[changed[0]], -steps[changed[1]])
            assert changed[1] == changed[0] + 1
        moved.add(int(changed.size))
        raw = np.random.default_rng(0).integers(0, 256, warp.region, dtype=np.uint8)
        np.testing.assert_array_equal(warp_gray(raw, warp), warp_labels(raw, warp))
    assert moved == {1, 2}


def test_a_rotation_slip_turns_about_the_middle_of_the_section() -> None:
    for warp in slips("rotation_slip", rotation_degrees=10):
        assert warp.plane is not None
        middle = warp.plane[:, :, 11:13, 11:13].mean((2, 3))
        np.testing.assert_allclose(middle, np.repeat(middle[:, :1], 6, 1), atol=1e-4)
        across = warp.plane[:, :, 0, -1] - warp.plane[:, :, 0, 0]
        np.testing.assert_allclose(np.hypot(*across), 23, rtol=1e-4)
        angles = np.rad2deg(np.arctan2(across[0], across[1]))
        assert 0 < np.abs(angles).max() <= 10


def test_sections_of_anisotropic_volumes_are_never_mixed() -> None:
    options = AugmentOptions(rescale=1.0, rescale_z=1.0, thick_sections=1.0)
    warps = [warp_of(options, seed, isotropic=False) for seed in range(20)]
    for warp in warps:
        np.testing.assert_array_equal(warp.sections, np.rint(warp.sections))
        assert warp.thickness == 1
    assert len({warp.region[0] for warp in warps}) > 3


def test_thick_sections_are_means_with_the_labels_of_their_middle() -> None:
    options = alone(AugmentOptions(thickest=3), "thick sections")
    seen = set()
    for seed in range(10):
        warp = warp_of(options, seed)
        raw = np.random.default_rng(seed).integers(0, 256, warp.region, dtype=np.uint8)
        gray = warp_gray(raw, warp).astype(float)
        groups = raw.reshape(6, warp.thickness, *raw.shape[1:])
        np.testing.assert_allclose(gray, groups.mean(1), atol=0.5)
        np.testing.assert_array_equal(warp_labels(raw, warp), groups[:, warp.thickness // 2])
        seen.add(warp.thickness)
    assert seen == {2, 3}


def test_voxels_become_coarser_and_finer_by_no_more_than_was_asked_for() -> None:
    warps = [warp_of(alone(PRESETS["default"], "rescale"), seed) for seed in range(60)]
    voxels = [
        [np.diff(warp.sections)[0], np.diff(warp.plane[0], axis=1).mean(), np.diff(warp.plane[1], axis=2).mean()]
        for warp in warps
    ]
    for sizes, change in zip(zip(*voxels, strict=True), (1.15, 1.25, 1.25), strict=True):
        assert 0.999 / change <= min(sizes) < 0.95
        assert 1.05 < max(sizes) <= 1.001 * change
