import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.error_places import Place, find_places
from fgnet.postproc.object_report import Pieces, largest_splits
from fgnet.postproc.overlaps import Slab, count_overlaps, scored

NM = (40.0, 4.0, 8.0)


def in_planes(truth, segments, depth, start=(0, 0, 0)):
    def planes():
        for z in range(0, len(truth), depth):
            yield (start[0] + z, *start[1:]), truth[z : z + depth], segments[z : z + depth]

    return planes


def places(truth, segments, depth=2, start=(0, 0, 0)):
    found = scored(count_overlaps([Slab(truth, segments)]), (0,), 0)
    errors = largest_splits(found, 5)
    return errors, find_places(errors, in_planes(truth, segments, depth, start), NM)


def test_a_cut_is_found_in_the_middle_of_its_face_at_its_place_in_the_volume():
    truth = np.full((9, 9, 9), 3, np.uint64)
    segments = np.where(np.arange(9) < 5, 7, 2**50).astype(np.uint64) * np.ones_like(truth)
    errors, (place,) = places(truth, segments, start=(100, 10, 20))
    assert errors == [Pieces(3, (7, 2**50), (405, 324), 2)]
    assert place == Place((104, 14, 25), 81, 8.0)


def test_a_cut_between_two_parts_that_are_read_is_found():
    truth = np.ones((4, 3, 3), np.uint64)
    segments = np.repeat([1, 1, 1, 2], 9).reshape(4, 3, 3).astype(np.uint64)
    for depth in (1, 2, 3, 4):
        assert places(truth, segments, depth)[1] == [Place((3, 1, 1), 9, 40.0)]


def test_parts_that_do_not_touch_are_shown_where_they_come_nearest():
    truth = np.zeros((1, 1, 12), np.uint64)
    truth[0, 0, [0, 1, 2, 8, 9]] = 1
    segments = np.array([4, 4, 4, 0, 0, 0, 0, 0, 5, 5, 0, 0], np.uint64).reshape(1, 1, 12)
    assert places(truth, segments)[1] == [Place((0, 0, 8), 0, 48.0)]


def by_hand(truth, segments, error):
    """Faces and least distance between the two parts of an error, all voxels against all."""
    parts = [np.argwhere((truth == error.whole) & (segments == part)) for part in error.parts]
    steps = parts[1][:, None] - parts[0][None]
    return np.count_nonzero(np.abs(steps).sum(-1) == 1), np.linalg.norm(steps * NM, axis=-1)


@given(
    hnp.arrays(np.uint64, (5, 5, 6), elements=st.integers(0, 3)),
    hnp.arrays(np.uint64, (5, 5, 6), elements=st.integers(0, 9)),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_places_lie_where_all_pairs_of_voxels_say(truth, segments, depth):
    truth[0, 0, 0] = 1
    errors, found = places(truth, segments, depth)
    for error, place in zip(errors, found, strict=True):
        faces, distances = by_hand(truth, segments, error)
        assert place.faces == faces
        assert (truth[place.voxel], segments[place.voxel]) == (error.whole, error.parts[1])
        larger = np.argwhere((truth == error.whole) & (segments == error.parts[0])) - place.voxel
        assert np.isclose(np.linalg.norm(larger * NM, axis=1), place.gap).any()
        if faces:
            assert np.abs(larger).sum(1).min() == 1
        else:
            assert np.isclose(place.gap, distances.min())
