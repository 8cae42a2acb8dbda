import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.metrics import scores_of
from fgnet.postproc.object_report import ObjectScore, Pieces, largest_merges, largest_splits, object_scores
from fgnet.postproc.overlaps import Slab, count_overlaps, scored
from fgnet.postproc.protocols import PROTOCOLS

IDS = hnp.arrays(np.uint64, (3, 4, 5), elements=st.integers(0, 4))


def compared(segments, truth, protocol="standard"):
    rules = PROTOCOLS[protocol]
    return scored(count_overlaps([Slab(np.array(truth), np.array(segments))]), rules.ignore, 0), rules


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(segments=IDS, truth=IDS)
@settings(max_examples=50, deadline=None)
def test_what_objects_cost_sums_to_the_scores(protocol, segments, truth):
    truth[0, 0, 0] = 1
    overlaps, rules = compared(segments, truth, protocol)
    rows, scores = object_scores(overlaps, rules), scores_of(overlaps, rules)
    assert sum(row.voi_split for row in rows) == pytest.approx(scores.voi_split, abs=1e-9)
    assert sum(row.voi_merge for row in rows) == pytest.approx(scores.voi_merge, abs=1e-9)
    assert (sum(row.voxels for row in rows), len(rows)) == (scores.voxels, scores.objects)
    costs = [row.voi_split + row.voi_merge for row in rows]
    assert costs == sorted(costs, reverse=True)


def test_an_object_knows_its_segments_and_its_background():
    overlaps, rules = compared([[5, 5, 6, 0, 0, 0, 7]], [[1, 1, 1, 1, 1, 1, 2]])
    cut, whole = object_scores(overlaps, rules)
    split = (2 / 7) * np.log2(3) + (1 / 7) * np.log2(6) + (3 / 7) * np.log2(2)
    assert cut == ObjectScore(1, 6, 3, pytest.approx(split), 0.0, 5, 2, 3)
    assert whole == ObjectScore(2, 1, 1, 0.0, 0.0, 7, 1, 0)


def test_an_object_in_the_background_alone_has_no_largest_segment():
    overlaps, rules = compared([[0, 0]], [[3, 3]])
    assert object_scores(overlaps, rules) == [ObjectScore(3, 2, 1, 0.0, 0.0, 0, 0, 2)]


def test_splits_and_merges_are_sorted_by_their_second_part():
    truth = [[1] * 9 + [2] * 6 + [3] * 4]
    segments = [[4] * 6 + [5] * 2 + [0] + [6] * 3 + [7] * 3 + [7] * 4]
    overlaps, _ = compared(segments, truth)
    assert largest_splits(overlaps, 9) == [Pieces(2, (6, 7), (3, 3), 2), Pieces(1, (4, 5), (6, 2), 2)]
    assert largest_splits(overlaps, 1) == [Pieces(2, (6, 7), (3, 3), 2)]
    assert largest_merges(overlaps, 9) == [Pieces(7, (3, 2), (4, 3), 2)]


def test_segment_zero_neither_splits_nor_merges():
    overlaps, _ = compared([[0, 0, 1, 1]], [[1, 2, 2, 1]])
    assert [error.whole for error in largest_merges(overlaps, 9)] == [1]
    assert largest_splits(overlaps, 9) == []
