from dataclasses import asdict

import h5py
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import adapted_rand_error, variation_of_information

from fgnet.postproc.metrics import Scores, score
from fgnet.postproc.protocols import border_mask
from fgnet.volumes.errors import VolumeError

IDS = hnp.arrays(np.uint64, (3, 4, 5), elements=st.integers(0, 4))


def read(path, dataset, region=()):
    with h5py.File(path) as file:
        return file[dataset][region]


def scored_by_skimage(segmentation, ground_truth):
    foreground = ground_truth > 0
    merge, split = variation_of_information(segmentation[foreground], ground_truth[foreground])
    arand, *precision_and_recall = adapted_rand_error(ground_truth, segmentation, ignore_labels=(0,))
    return (split, merge, arand, *sorted(precision_and_recall))


def comparable(scores):
    # scikit-image 0.26 returns recall where it documents precision; the hand-computed cases tell them apart here.
    return scores.voi_split, scores.voi_merge, scores.arand, *sorted((scores.precision, scores.recall))


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_random_labels_score_as_in_skimage(seed, n_objects, n_segments):
    rng = np.random.default_rng(seed)
    ground_truth = rng.integers(0, n_objects, (6, 20, 21))
    segmentation = rng.integers(0, n_segments, ground_truth.shape)
    np.testing.assert_allclose(
        comparable(score(segmentation, ground_truth)), scored_by_skimage(segmentation, ground_truth), atol=1e-6
    )


@pytest.mark.parametrize("name", ["fib25_t2.h5", "gala_fib_train.h5"])
def test_real_labels_score_as_in_skimage(shared_data, name):
    region = np.s_[:40, :120, :120]
    ground_truth = read(shared_data(name), "labels", region).astype(np.int64)
    segmentation = read(shared_data(name), "oversegmentation", region).astype(np.int64)
    scores = score(segmentation, ground_truth)
    np.testing.assert_allclose(comparable(scores), scored_by_skimage(segmentation, ground_truth), atol=1e-6)
    assert scores.voi_split > scores.voi_merge, "supervoxels split more than they merge"


def test_huge_and_signed_ids_score_as_their_small_names():
    ground_truth = np.array([0, 1, 1, 2, 2, 3]).reshape(1, 2, 3)
    segmentation = np.array([5, 5, 5, 6, 0, 0]).reshape(1, 2, 3)
    huge = np.array([0, 2**63 + 5, 7, 2**40], np.uint64)[ground_truth]
    assert score(segmentation, huge) == score(segmentation.astype(np.int8), ground_truth.astype(np.int16))


def test_a_halved_object_costs_one_bit_of_split():
    ground_truth = np.ones((1, 2, 4), np.uint8)
    segmentation = np.array([[[1, 1, 2, 2]] * 2])
    scores = score(segmentation, ground_truth)
    assert (scores.voi_split, scores.voi_merge, scores.voi) == (1.0, 0.0, 1.0)
    assert (scores.precision, scores.recall) == (1.0, 24 / 56)
    assert scores.arand == pytest.approx(1 - 2 * 24 / (24 + 56))
    assert (scores.voxels, scores.segments, scores.objects) == (8, 2, 1)


def test_a_merger_of_two_equal_objects_costs_one_bit_of_merge():
    ground_truth = np.array([[[1, 1, 2, 2]] * 2])
    scores = score(np.full_like(ground_truth, 9), ground_truth)
    assert (scores.voi_split, scores.voi_merge) == (0.0, 1.0)
    assert (scores.precision, scores.recall) == (24 / 56, 1.0)


@given(IDS)
@settings(max_examples=25, deadline=None)
def test_a_perfect_segmentation_scores_zero_whatever_its_names(labels):
    labels[0, 0, 0] = 1
    scores = score(labels[::1] * 11 + 3, labels)
    assert (scores.voi_split, scores.voi_merge, scores.arand) == (0.0, 0.0, 0.0)
    assert (scores.precision, scores.recall) == (1.0, 1.0)


def test_segment_zero_is_an_ordinary_segment():
    ground_truth = np.array([[[1, 1, 2, 2]]])
    assert score(np.array([[[0, 0, 5, 5]]]), ground_truth).voi == 0.0


@given(IDS, IDS)
@settings(max_examples=50, deadline=None)
def test_snemi3d_takes_segment_zero_as_singletons(segmentation, ground_truth):
    ground_truth[0, 0, 0] = 1
    singletons = segmentation.copy()
    singletons[segmentation == 0] = 100 + np.arange(np.count_nonzero(segmentation == 0))
    found, expected = score(segmentation, ground_truth, protocol="snemi3d"), score(singletons, ground_truth)
    # Sums of the same numbers in another order.
    assert asdict(found) == pytest.approx(asdict(expected), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.int32])
def test_cremi_scores_id_zero_and_ignores_only_minus_one(dtype):
    ground_truth = np.array([[[-1, 0, 0, 3]]]).astype(dtype)
    scores = score(np.array([[[1, 1, 2, 3]]]), ground_truth, protocol="cremi")
    assert (scores.voxels, scores.objects, scores.segments) == (3, 2, 3)
    assert scores.voi_split == pytest.approx(2 / 3)


def as_the_challenge_scores(segmentation, ground_truth):
    """VOI and Rand error by the formulas of CREMI's reference implementation: ids shifted so that -1 is 0, unscored."""
    truth = (ground_truth + np.uint64(1)).astype(int).ravel()
    table = np.zeros((truth.max() + 1, segmentation.max() + 1))
    np.add.at(table, (truth, segmentation.astype(int).ravel()), 1)
    table = table[1:]
    shares = table / table.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        split = -np.nansum(shares * np.log2(shares / shares.sum(1, keepdims=True)))
        merge = -np.nansum(shares * np.log2(shares / shares.sum(0, keepdims=True)))
    background = table[:, 0].sum() / truth.size
    joined = (table[:, 1:].sum(0) ** 2).sum() + background
    shared = (table[:, 1:] ** 2).sum() + background
    precision, recall = shared / joined, shared / (table.sum(1) ** 2).sum()
    return split, merge, 1 - 2 * precision * recall / (precision + recall)


def test_cremi_scores_as_the_challenge_does():
    rng = np.random.default_rng(5)
    ground_truth = rng.integers(0, 9, (4, 5, 6)).repeat(12, 1).repeat(12, 2).astype(np.uint64)
    ground_truth[:, :7] = 2**64 - 1
    segmentation = np.where(rng.random(ground_truth.shape) < 0.1, 0, ground_truth // 2 + 1)
    segmentation[ground_truth > 9] = 3
    scores = score(segmentation, ground_truth, protocol="cremi")
    *voi, arand = as_the_challenge_scores(segmentation, ground_truth)
    np.testing.assert_allclose((scores.voi_split, scores.voi_merge), voi, atol=1e-9)
    # The challenge counts pairs of a voxel with itself, and voxels of segment 0 a little less than as singletons.
    assert scores.arand == pytest.approx(arand, abs=1e-3)
    assert abs(scores.arand - score(segmentation, ground_truth, ignore=(-1,)).arand) > 5e-3
    assert scores.cremi_score == pytest.approx(np.sqrt(scores.voi * scores.arand))


def test_ignored_ids_can_be_named():
    ground_truth = np.array([[[0, 4, 7, 7]]])
    assert score(ground_truth, ground_truth, ignore=(4, 7)).voxels == 1
    assert score(ground_truth, ground_truth, ignore=()).voxels == 4


@pytest.mark.parametrize("protocol", ["standard", "cremi"])
def test_objects_below_the_minimum_size_are_not_scored(protocol):
    ground_truth = np.array([[[1, 2, 2, 3, 3, 3]]], np.uint16)
    scores = score(ground_truth, ground_truth, min_size=3, protocol=protocol)
    assert (scores.voxels, scores.objects) == (3, 1)


def test_masked_borders_are_not_scored():
    ground_truth = np.repeat([1, 2], 10).reshape(1, 1, 20)
    segmentation = np.repeat([1, 2], [9, 11]).reshape(1, 1, 20)
    assert score(segmentation, ground_truth).voi > 0
    mask = border_mask(ground_truth, 4.0, (40, 4, 4))
    scores = score(segmentation, ground_truth, border_mask=mask)
    assert (scores.voi, scores.voxels) == (0.0, 16)


def test_border_mask_measures_nanometres_within_sections():
    labels = np.ones((2, 9, 9), np.uint64)
    labels[0, 4, 4] = 2
    mask = border_mask(labels, 8.0, (40, 4, 8))
    y, x = np.mgrid[-4:5, -4:5]
    on_boundary = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    near = [np.hypot((y - dy) * 4, (x - dx) * 8) <= 8.0 for dy, dx in on_boundary]
    np.testing.assert_array_equal(mask[0], np.any(near, axis=0))
    assert not mask[1].any(), "a section without a boundary is scored whole"


def test_different_shapes_are_refused_with_both():
    with pytest.raises(VolumeError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        score(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 5), np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "isbi"}, "no protocol 'isbi'"),
        ({"min_size": 100}, "no voxel"),
        ({"border_mask": np.zeros((1, 1, 1), bool)}, "border mask has shape"),
        ({"border_mask": np.full((2, 3, 4), 255, np.uint8)}, "border mask holds uint8 .give bool"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    labels = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(VolumeError, match=message):
        score(labels, labels, **options)


def test_ids_must_be_integers():
    labels = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(VolumeError, match="ground truth holds float32"):
        score(labels, labels.astype(np.float32))


def test_scores_are_plain_values():
    labels = np.ones((1, 1, 2), np.uint8)
    assert score(labels, labels) == Scores(0.0, 0.0, 0.0, 1.0, 1.0, 2, 1, 1)
