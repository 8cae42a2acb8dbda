"""The region graph against its definition, and pieces of it against the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.region_graph import face_id, fragment_extents, merge_graphs, region_graph
from fgnet.volumes.errors import DecodingError


def by_definition(affinities, fragments, start=(0, 0, 0), shape=None):
    contacts = {}
    for voxel in np.ndindex(fragments.shape):
        for channel in range(3):
            before = list(voxel)
            before[channel] -= 1
            a, b = int(fragments[voxel]), int(fragments[tuple(before)])
            if before[channel] < 0 or a == b or not a or not b:
                continue
            face = face_id(np.add(voxel, start), shape or fragments.shape, channel)
            total, count, first = contacts.get((min(a, b), max(a, b)), (0, 0, face))
            contacts[min(a, b), max(a, b)] = total + int(affinities[(channel, *voxel)]), count + 1, min(first, face)
    return contacts


def as_dict(graph):
    rows = list(zip(*(column.tolist() for column in graph.columns), strict=True))
    contacts = {(a, b): tuple(values) for a, b, *values in rows}
    assert len(contacts) == len(rows), "a pair has one contact"
    return contacts


@st.composite
def fragments_and_affinities(draw):
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([1, 2, 5, 40]))
    fragments = rng.integers(0, count + 1, shape, dtype=np.uint32)
    return rng.integers(0, 256, (3, *shape), dtype=np.uint8), fragments, count


@settings(deadline=None, max_examples=100)
@given(fragments_and_affinities())
def test_contacts_follow_their_definition(volume):
    affinities, fragments, count = volume
    assert as_dict(region_graph(affinities, fragments, count)) == by_definition(affinities, fragments)


@settings(deadline=None, max_examples=100)
@given(fragments_and_affinities(), st.data())
def test_pieces_of_a_volume_combine_to_the_whole(volume, data):
    affinities, fragments, count = volume
    shape = fragments.shape
    axis = data.draw(st.integers(0, 2))
    cut = data.draw(st.integers(0, shape[axis]))
    # The second piece begins with the last plane of the first one, for the faces between the two.
    pieces = []
    for begin, end in ((0, cut), (max(cut - 1, 0), shape[axis])):
        part = [slice(None)] * 3
        part[axis] = slice(begin, end)
        if begin == end:
            continue
        start = [begin if a == axis else 0 for a in range(3)]
        own = fragments[tuple(part)].copy()
        if begin:
            # Contacts within the shared plane belong to the first piece: hide them by keeping only one of its ids.
            plane = [slice(None)] * 3
            plane[axis] = slice(0, 1)
            kept = data.draw(st.integers(1, count))
            own[tuple(plane)] = np.where(own[tuple(plane)] == kept, kept, 0)
        values = np.ascontiguousarray(affinities[(slice(None), *part)])
        graph = region_graph(values, own, count, start=start, shape=shape)
        assert as_dict(graph) == by_definition(values, own, start, shape)
        pieces.append(graph.columns)
    merged = as_dict(merge_graphs(count + 1, [*pieces, *pieces]))
    expected = {}
    for piece in [*pieces, *pieces]:
        for a, b, total, number, face in zip(*(column.tolist() for column in piece), strict=True):
            old = expected.get((a, b), (0, 0, face))
            expected[a, b] = old[0] + total, old[1] + number, min(old[2], face)
    assert merged == expected


def test_a_fragment_may_touch_very_many_others():
    fragments = np.ones((3, 120, 120), np.uint32)
    fragments[1, ::2, ::2] = np.arange(2, 3602).reshape(60, 60)
    affinities = np.random.default_rng(0).integers(0, 256, (3, *fragments.shape), dtype=np.uint8)
    graph = region_graph(affinities, fragments, 3601)
    assert graph.contacts == 3600
    assert as_dict(graph) == by_definition(affinities, fragments)


def test_merging_drops_contacts_of_a_node_with_itself():
    ones = np.ones(3, np.int64)
    graph = merge_graphs(4, [(np.array([1, 2, 3]), np.array([1, 1, 2]), ones, ones, ones)])
    assert as_dict(graph) == {(1, 2): (1, 1, 1), (2, 3): (1, 1, 1)}
    assert merge_graphs(4, []).contacts == 0


def test_sums_beyond_32_bits_stay_exact():
    big, a, b = np.array([2**40]), np.array([0]), np.array([1])
    graph = merge_graphs(2, [(a, b, big, big, big), (b, a, big, big, big)])
    assert as_dict(graph) == {(0, 1): (2**41, 2**41, 2**40)}


def test_extents_are_voxel_counts_and_first_voxels():
    fragments = np.array([[[0, 1, 1], [2, 0, 1], [3, 3, 2]]], np.uint32)
    sizes, first = fragment_extents(fragments, 3)
    assert sizes.tolist() == [2, 3, 2, 2]
    assert first[1:].tolist() == [1, 3, 6]


@pytest.mark.parametrize(
    ("fragments", "count"),
    [
        (np.zeros((2, 2, 3), np.uint32), 0),
        (np.zeros((2, 2, 2), np.uint64), 0),
        (np.zeros((2, 2, 2), np.uint32), 2**31),
    ],
)
def test_fragments_of_another_kind_are_refused(fragments, count):
    with pytest.raises(DecodingError, match="fragments"):
        region_graph(np.zeros((3, 2, 2, 2), np.uint8), fragments, count)
