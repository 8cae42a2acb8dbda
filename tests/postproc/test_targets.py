import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.targets import LONG_RANGE_OFFSETS, NEAREST_OFFSETS, affinities_from_labels, widen_borders
from fgnet.volumes.errors import VolumeError

DTYPES = st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64])
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)


@st.composite
def label_volumes(draw):
    dtype = draw(DTYPES)
    values = st.integers(0, 3).map(lambda i: int(i * (np.iinfo(dtype).max // 3)))
    return draw(hnp.arrays(dtype, SHAPES, elements=values))


def widened_plainly(labels):
    widened = labels.copy()
    for z, y, x in np.ndindex(labels.shape):
        window = labels[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if len(np.unique(window[window > 0])) > 1:
            widened[z, y, x] = 0
    return widened


def affinities_plainly(labels, offsets):
    affinities = np.zeros((len(offsets), *labels.shape), np.uint8)
    for c, offset in enumerate(offsets):
        for p in np.ndindex(labels.shape):
            q = tuple(np.add(p, offset))
            inside = all(0 <= i < n for i, n in zip(q, labels.shape, strict=True))
            affinities[(c, *p)] = labels[p] > 0 and (not inside or labels[p] == labels[q])
    return affinities


@given(label_volumes())
@settings(max_examples=150, deadline=None)
def test_widening_zeroes_exactly_the_windows_with_two_ids(labels):
    before = labels.copy()
    widened = widen_borders(labels)
    np.testing.assert_array_equal(widened, widened_plainly(labels))
    assert widened.dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)


@given(label_volumes(), st.lists(st.tuples(*[st.integers(-7, 7)] * 3), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_affinities_follow_their_definition_for_any_offset(labels, offsets):
    affinities = affinities_from_labels(labels, offsets)
    assert affinities.dtype == np.uint8
    np.testing.assert_array_equal(affinities, affinities_plainly(labels, offsets))


def test_negative_ids_are_background():
    labels = np.array([[[-1, -1, 5, 5]]])
    np.testing.assert_array_equal(widen_borders(labels), labels)
    np.testing.assert_array_equal(affinities_from_labels(labels)[2], [[[0, 0, 0, 1]]])


def test_widening_reads_views_of_any_layout():
    labels = np.arange(60, dtype=np.uint64).reshape(3, 4, 5) // 8
    flipped = labels[:, ::-1].transpose(0, 2, 1)
    flipped.flags.writeable = False
    np.testing.assert_array_equal(widen_borders(flipped), widened_plainly(flipped))


def test_touching_objects_are_separated_within_sections_only():
    labels = np.ones((2, 4, 6), np.uint32)
    labels[0, :, 3:] = 2
    widened = widen_borders(labels)
    np.testing.assert_array_equal(widened[0], [[1, 1, 0, 0, 2, 2]] * 4)
    np.testing.assert_array_equal(widened[1], labels[1])


def test_first_planes_tell_object_from_background():
    labels = np.array([[[0, 7], [7, 7]]])
    np.testing.assert_array_equal(
        affinities_from_labels(labels), [[[[0, 1], [1, 1]]], [[[0, 1], [0, 1]]], [[[0, 0], [1, 1]]]]
    )


def test_long_range_starts_with_the_nearest():
    assert LONG_RANGE_OFFSETS[:3] == NEAREST_OFFSETS
    steps = [sorted(-offset[axis] for offset in LONG_RANGE_OFFSETS if offset[axis]) for axis in range(3)]
    assert steps == [[1, 2, 3, 4], [1, 3, 9, 27], [1, 3, 9, 27]]


@pytest.mark.parametrize("labels", [np.zeros((3, 3), np.uint8), np.zeros((2, 3, 3), np.float32)])
@pytest.mark.parametrize("function", [widen_borders, affinities_from_labels])
def test_labels_must_be_three_dimensional_integers(labels, function):
    with pytest.raises(VolumeError, match=r"shape .* dtype"):
        function(labels)
