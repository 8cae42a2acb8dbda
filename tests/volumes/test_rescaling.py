from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import block_reduce

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.rescaling import Rescaling, rescaling_to
from fgnet.volumes.space import Space

FACTORS = st.sampled_from([1.0, 2.0, 3.0, 0.5, 1 / 3, 1.25, 0.8, 1.1, 2.7, 0.37])
RESCALINGS = st.builds(Rescaling, st.tuples(*[st.integers(1, 9)] * 3), st.tuples(FACTORS, FACTORS, FACTORS))


def reader(array: npt.NDArray[Any]) -> Callable[[Box], npt.NDArray[Any]]:
    def read(box: Box) -> npt.NDArray[Any]:
        assert Box.from_shape(array.shape[-3:]).contains(box)
        return array[(..., *box.slices)]

    return read


def boxes(shape: Triple, sizes: Triple) -> list[Box]:
    corners = itertools.product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True)))
    return [Box.from_shape(sizes).shift(corner).intersect(Box.from_shape(shape)) for corner in corners]


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@given(RESCALINGS, st.tuples(*[st.integers(2, 6)] * 3), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_blocks_give_what_the_whole_gives(rescaling: Rescaling, sizes: Triple, seed: int) -> None:
    gray = noise(rescaling.shape, seed)
    network = Box.from_shape(rescaling.network_shape)
    whole = rescaling.gray(network, reader(gray))
    assert whole.shape == network.shape
    for box in boxes(network.shape, sizes):
        np.testing.assert_array_equal(rescaling.gray(box, reader(gray)), whole[box.slices])

    made = noise((3, *network.shape), seed)
    back = rescaling.affinities(Box.from_shape(rescaling.shape), reader(made))
    assert back.shape == (3, *rescaling.shape)
    for box in boxes(rescaling.shape, sizes):
        np.testing.assert_array_equal(rescaling.affinities(box, reader(made)), back[(slice(None), *box.slices)])
        needed = rescaling.network_box(box)
        spoiled = np.zeros_like(made)
        spoiled[(slice(None), *needed.slices)] = made[(slice(None), *needed.slices)]
        np.testing.assert_array_equal(rescaling.affinities(box, reader(spoiled)), back[(slice(None), *box.slices)])


@pytest.mark.parametrize("factors", [(2, 3, 1), (1, 4, 4), (2, 2, 2)])
def test_shrinking_by_whole_numbers_takes_means_as_skimage_does(factors: Triple) -> None:
    gray = noise((8, 12, 16))
    rescaling = Rescaling(gray.shape, tuple(map(float, factors)))
    made = rescaling.gray(Box.from_shape(rescaling.network_shape), reader(gray))
    np.testing.assert_allclose(made, block_reduce(gray, factors, np.mean), atol=0.5001)


@pytest.mark.parametrize("factors", [(0.5, 1.0, 0.25), (0.8, 0.4, 1.0)])
def test_enlarging_is_linear_as_in_scipy(factors: tuple[float, float, float]) -> None:
    gray = noise((6, 7, 8))
    rescaling = Rescaling(gray.shape, factors)
    shape = rescaling.network_shape
    made = rescaling.gray(Box.from_shape(shape), reader(gray))
    middles = [0.5 * f - 0.5 for f in factors]
    expected = ndimage.affine_transform(
        gray.astype(float), np.array(factors), middles, output_shape=shape, order=1, mode="nearest"
    )
    np.testing.assert_allclose(made, expected, atol=0.501)


def test_a_voxel_that_covers_parts_of_others_takes_its_share_of_each() -> None:
    rescaling = Rescaling((1, 1, 5), (1.0, 1.0, 1.5))
    made = rescaling.gray(Box.from_shape((1, 1, 4)), reader(np.array([[[30, 60, 90, 120, 150]]], np.uint8)))
    # The last one reaches beyond the volume and takes what there is of it.
    assert made.tolist() == [[[40, 80, 130, 150]]]


def test_one_size_changes_nothing() -> None:
    rescaling = rescaling_to((3, 4, 5), (30.0, 6.0, 6.0), (30.0, 6.0, 6.0001))
    assert rescaling.identity
    gray, made = noise((3, 4, 5)), noise((3, 3, 4, 5))
    np.testing.assert_array_equal(rescaling.gray(Box((1, 0, 2), (3, 4, 5)), reader(gray)), gray[1:3, :, 2:])
    np.testing.assert_array_equal(rescaling.affinities(Box.from_shape((3, 4, 5)), reader(made)), made)


def line(values: list[int]) -> npt.NDArray[np.uint8]:
    """Affinities along x, the same in all channels."""
    return np.array([[[values]]] * 3, np.uint8)


def test_a_boundary_between_large_voxels_lies_at_their_face() -> None:
    rescaling = Rescaling((1, 1, 12), (1.0, 1.0, 3.0))
    back = rescaling.affinities(Box.from_shape((1, 1, 12)), reader(line([240, 240, 0, 240])))
    # The face before voxel 2 of the network's grid is the one before voxel 6 of the volume.
    assert back[2, 0, 0].tolist() == [240, 240, 240, 240, 160, 80, 0, 80, 160, 240, 240, 240]
    # Across, an affinity lies in the middle of a voxel as gray does.
    assert back[0, 0, 0].tolist() == back[1, 0, 0].tolist() == [240, 240, 240, 240, 240, 160, 80, 0, 80, 160, 240, 240]


def test_a_boundary_between_small_voxels_parts_the_large_ones() -> None:
    rescaling = Rescaling((1, 1, 4), (1.0, 1.0, 1 / 3))
    small = [255] * 12
    small[4] = 0
    back = rescaling.affinities(Box.from_shape((1, 1, 4)), reader(line(small)))
    # Voxel 1's middle is the face 4.5; the boundary before small voxel 4 lies on the way to it from voxel 0.
    assert back[2, 0, 0].tolist() == [255, 0, 255, 255]
    assert back[0, 0, 0].tolist() == [255, 170, 255, 255]


def test_the_network_sees_the_same_place() -> None:
    rescaling = rescaling_to((10, 100, 100), (40.0, 4.0, 4.0), (40.0, 8.0, 6.0))
    assert rescaling.network_shape == (10, 50, 67)
    space = rescaling.network_space(Space((40.0, 4.0, 4.0), (0.0, 100.0, 0.0)))
    assert (space.voxel_size, space.offset) == ((40.0, 8.0, 6.0), (0.0, 102.0, 1.0))


@given(RESCALINGS, st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_affinities_in_tissue_need_no_network_voxel_without(rescaling: Rescaling, seed: int, data: Any) -> None:
    inside = data.draw(hnp.arrays(np.bool_, rescaling.shape, elements=st.sampled_from([False, False, False, True])))
    network = Box.from_shape(rescaling.network_shape)
    near = rescaling.tissue(network, reader(inside))
    made = noise((3, *network.shape), seed)
    whole = rescaling.affinities(Box.from_shape(rescaling.shape), reader(made))
    spoiled = rescaling.affinities(Box.from_shape(rescaling.shape), reader(made * near))
    np.testing.assert_array_equal(spoiled * inside, whole * inside)
    for box in boxes(network.shape, (3, 4, 5)):
        np.testing.assert_array_equal(rescaling.tissue(box, reader(inside)), near[box.slices])


@pytest.mark.parametrize("wanted", [(0.0, 4.0, 4.0), (40.0, 4.0, 65.0), (2.0, 4.0, 4.0)])
def test_sizes_that_are_none_or_too_far_are_refused(wanted: tuple[float, float, float]) -> None:
    with pytest.raises(GeometryError, match=r"rescale|axis"):
        rescaling_to((10, 10, 10), (40.0, 4.0, 4.0), wanted)
