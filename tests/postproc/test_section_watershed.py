"""Fragments of sections: heights and directions by definition, basins against maxima, blocks against the volume."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.morphology import local_maxima

from fgnet.postproc.metrics import score
from fgnet.postproc.section_kernels import BACKGROUND, LEVELS, inside_level, raise_boundaries, section_heights
from fgnet.postproc.watershed import WatershedOptions, basin_directions, watershed
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box


@st.composite
def affinity_volumes(draw, longest=16):
    """Few boundaries and many plateaus; some without any affinity in places."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, longest), st.integers(1, longest)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.choice([0, 100, 127, 128, 200, 255], (3, *shape), p=[0.04, 0.03, 0.02, 0.01, 0.2, 0.7])
    values[:, :, : draw(st.integers(0, 3)), : draw(st.integers(0, 9))] = 0
    return values.astype(np.uint8)


def best_ways(total, inside, radius):
    """Highest lowest sum on a way into a process of fewer than `radius` steps, and the fewest steps of such a way."""
    lowest = np.where(inside, LEVELS, -1)
    steps = np.zeros(total.shape, int)
    for step in range(1, radius):
        padded = np.pad(lowest, 1, constant_values=-1)
        around = np.max([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0)
        better = np.where(inside, LEVELS, np.maximum(lowest, np.minimum(total, around)))
        steps[better > lowest] = step
        lowest = better
    return lowest, steps


def heights_by_definition(along_y, along_x, radius):
    total = along_y.astype(np.int64) + along_x
    inside = total > 255
    # Boundaries beyond the section do not count.
    squares = np.full(total.shape, radius**2)
    if not inside.all():
        squares = np.minimum(np.rint(distance_transform_edt(inside) ** 2), radius**2)
    lowest, steps = best_ways(total, inside, radius)
    alone = np.where(total > 0, total, BACKGROUND)
    boundary = np.where(steps > 0, LEVELS + radius * lowest + radius - steps, alone)
    return np.where(inside, inside_level(radius) + squares, boundary)


def heights_of(along_y, along_x, radius):
    heights = np.full([side + 2 for side in along_y.shape], BACKGROUND, np.int32)
    section_heights(along_y, along_x, radius, np.empty(along_y.shape, np.int32), heights[1:-1, 1:-1])
    raise_boundaries(heights, radius, np.empty((5, heights.size), np.int32))
    return heights[1:-1, 1:-1]


@settings(deadline=None, max_examples=200)
@given(affinity_volumes(), st.integers(1, 12))
def test_heights_are_capped_distances_and_the_best_ways_to_a_process(affinities, radius):
    for along_y, along_x in zip(affinities[1], affinities[2], strict=True):
        expected = heights_by_definition(along_y, along_x, radius)
        np.testing.assert_array_equal(heights_of(along_y, along_x, radius), expected)


def test_what_lies_in_a_boundary_flows_over_its_lowest_wall():
    row = [250, 250, 10, 100, 120, 100, 40, 30, 250, 250]
    affinities = np.zeros((3, 1, 1, len(row)), np.uint8)
    affinities[1, 0, 0], affinities[2, 0, 0] = row, [6 * (value == 250) for value in row]
    fragments, count = watershed(affinities, WatershedOptions(flow="sections"))
    assert count == 2
    assert fragments.ravel().tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("turned", [False, True])
def test_a_voxel_between_processes_flows_to_the_one_of_higher_affinities(turned):
    affinities = np.zeros((3, 1, 1, 7), np.uint8)
    affinities[1, 0, 0] = affinities[2, 0, 0] = [200, 150, 150, 60, 180, 180, 200]
    affinities = np.ascontiguousarray(affinities[..., ::-1]) if turned else affinities
    (fragments,), count = watershed(affinities, WatershedOptions(flow="sections"))
    assert count == 2
    assert fragments[0, 3] == fragments[0, 2 if turned else 4]


def test_boundaries_without_affinity_are_filled_as_far_as_the_radius():
    affinities = np.zeros((3, 1, 20, 20), np.uint8)
    affinities[1:, 0, :, :5] = 255
    fragments, count = watershed(affinities, WatershedOptions(flow="sections", radius=8))
    assert count == 1
    assert (fragments[0, :, : 5 + 7] == 1).all()
    assert (fragments[0, :, 5 + 7 :] == 0).all()


@settings(deadline=None, max_examples=200)
@given(affinity_volumes(), st.integers(1, 12))
def test_there_is_a_fragment_for_each_maximum_of_a_section(affinities, radius):
    options = WatershedOptions(1000, flow="sections", radius=radius)
    fragments, count = watershed(affinities, options)
    maxima = 0
    for z, (along_y, along_x) in enumerate(zip(affinities[1], affinities[2], strict=True)):
        heights = heights_by_definition(along_y, along_x, radius).astype(int) + 1
        np.testing.assert_array_equal(fragments[z] > 0, heights > 0)
        # Padded, so that a section of one height has a maximum.
        peaks = local_maxima(np.pad(heights, 1), connectivity=1)[1:-1, 1:-1]
        peaks[heights == 0] = False
        labels, many = label(peaks, connectivity=1, return_num=True)
        maxima += many
        # A maximum lies in one fragment, and no fragment holds two.
        owners = {(a, b) for a, b in zip(labels[peaks].tolist(), fragments[z][peaks].tolist(), strict=True)}
        assert len(owners) == many == len({b for _, b in owners})
    assert count == maxima


@settings(deadline=None, max_examples=150)
@given(affinity_volumes(), st.integers(0, 2), st.integers(1, 4), st.data())
def test_a_block_with_its_halo_knows_what_the_volume_knows(affinities, steps, radius, data):
    options = WatershedOptions(steps, flow="sections", radius=radius)
    shape = affinities.shape[1:]
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = Box(start, [data.draw(st.integers(first + 1, n)) for first, n in zip(start, shape, strict=True)])
    region = box.grow(options.halo).intersect(Box.from_shape(shape))
    inner = box.grow((0, 1, 1)).intersect(Box((box.start[0], 0, 0), box.stop))
    here = basin_directions(np.ascontiguousarray(affinities[(slice(None), *region.slices)]), options)
    within = inner.shift([-first for first in region.start])
    np.testing.assert_array_equal(here[within.slices], basin_directions(affinities, options)[inner.slices])


def test_fragments_of_real_neurons_are_larger_than_those_of_affinities_and_stay_within_neurons(shared_data):
    from fgnet.postproc.targets import affinities_from_labels, widen_borders

    with h5py.File(shared_data("fib25_t2.h5")) as file:
        labels = widen_borders(file["labels"][:10, :160, :160])
    affinities = (affinities_from_labels(labels) * 255).astype(np.uint8)
    fragments, _ = watershed(affinities, WatershedOptions(flow="sections"))
    assert score(fragments, labels).voi_merge < 0.05
    noisy = np.clip(affinities + np.random.default_rng(0).normal(0, 8, affinities.shape), 0, 255).astype(np.uint8)
    few, many = (watershed(noisy, WatershedOptions(flow=flow))[1] for flow in ("sections", "affinity"))
    assert few < many


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint8, (3, 2, 5, 6), elements=st.sampled_from([0, 90, 255])))
def test_nothing_flows_along_z(affinities):
    directions = basin_directions(affinities, WatershedOptions(2, flow="sections"))
    assert not (directions & 9).any()


@pytest.mark.parametrize(
    "options", [{"radius": 0}, {"radius": 10**6}, {"flow": "downhill"}, {"flow": "sections", "plateau_steps": None}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(DecodingError, match=r"radius|flow|plateau"):
        WatershedOptions(**options)
