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
from fgnet.postproc.section_kernels import INSIDE, section_heights
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


def heights_by_definition(along_y, along_x, radius):
    total = along_y.astype(np.int64) + along_x
    inside = total > 255
    # Boundaries beyond the section do not count.
    squares = np.full(total.shape, radius**2)
    if not inside.all():
        squares = np.minimum(np.rint(distance_transform_edt(inside) ** 2), radius**2)
    return np.where(inside, INSIDE + squares, total)


def heights_of(along_y, along_x, radius):
    heights = np.empty(along_y.shape, np.int32)
    section_heights(along_y, along_x, radius, np.empty_like(heights), heights)
    return heights


@settings(deadline=None, max_examples=200)
@given(affinity_volumes(), st.integers(1, 12))
def test_heights_are_affinities_or_capped_distances(affinities, radius):
    for along_y, along_x in zip(affinities[1], affinities[2], strict=True):
        expected = heights_by_definition(along_y, along_x, radius)
        np.testing.assert_array_equal(heights_of(along_y, along_x, radius), expected)


@settings(deadline=None, max_examples=200)
@given(affinity_volumes(), st.integers(1, 12))
def test_there_is_a_fragment_for_each_maximum_of_a_section(affinities, radius):
    options = WatershedOptions(1000, flow="sections", radius=radius)
    fragments, count = watershed(affinities, options)
    padded = np.pad(affinities, ((0, 0), (0, 1), (0, 1), (0, 1)))
    padded[0, 0], padded[1, :, 0], padded[2, :, :, 0] = 0, 0, 0
    d, h, w = affinities.shape[1:]
    known = np.zeros((d, h, w), bool)
    for channel in range(3):
        known |= padded[channel, :d, :h, :w] > 0
        known |= np.roll(padded[channel], -1, channel)[:d, :h, :w] > 0
    np.testing.assert_array_equal(fragments > 0, known)
    maxima = 0
    for z in range(d):
        heights = heights_by_definition(affinities[1, z], affinities[2, z], radius).astype(int) + 1
        heights[~known[z]] = 0
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
