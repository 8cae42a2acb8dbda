import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc import metrics, overlaps
from fgnet.postproc.metrics import score
from fgnet.postproc.overlaps import Slab, count_overlaps, scored

IDS = hnp.arrays(np.uint64, (5, 4, 5), elements=st.sampled_from([0, 1, 2, 7, 2**40, 2**64 - 1]))


def by_hand(segments, truth, masked):
    pairs = {}
    for i, j, hidden in zip(truth.ravel().tolist(), segments.ravel().tolist(), masked.ravel().tolist(), strict=True):
        pairs.setdefault((i, j), [0, 0])[hidden] += 1
    return [(i, j, *pairs[i, j]) for i, j in sorted(pairs)]


def rows(found):
    return list(zip(*(column.tolist() for column in vars(found).values()), strict=True))


@given(IDS, IDS, hnp.arrays(np.bool_, (5, 4, 5)), st.lists(st.integers(1, 4), max_size=3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pairs_are_counted_whatever_the_slabs(segments, truth, masked, cuts, by_sorting):
    bounds = sorted({0, 5, *cuts})
    slabs = [Slab(truth[a:b], segments[a:b], masked[a:b]) for a, b in itertools.pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patch:
        if by_sorting:
            patch.setattr(overlaps, "_TABLE", 0)
        assert rows(count_overlaps(reversed(slabs))) == by_hand(segments, truth, masked)


@given(IDS, IDS)
@settings(max_examples=25, deadline=None)
def test_scores_are_the_same_bits_in_slabs(segments, truth):
    truth[0, 0, 0] = 7
    whole = score(segments, truth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_SLAB", 20)
        assert score(segments, truth) == whole


def test_masked_voxels_count_for_the_size_of_an_object_only():
    truth, hidden = np.array([[[1, 1, 1, 2, 2]]]), np.array([[[1, 1, 0, 0, 0]]], bool)
    found = count_overlaps([Slab(truth, truth, hidden)])
    assert rows(scored(found, (), 3)) == [(1, 1, 1, 2)]
    assert rows(scored(found, (1,), 0)) == [(2, 2, 2, 0)]
