import numpy as np
import pytest

from fgnet.postproc.metrics import Scores, score
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.threshold_curve import CurvePoint, best_point, parse_thresholds, segmentations, threshold_curve
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.errors import DecodingError


@pytest.fixture(scope="module")
def noisy():
    """Labels, and affinities of which a part is wrong."""
    rng = np.random.default_rng(3)
    labels = rng.integers(1, 9, (3, 3, 3)).astype(np.uint64).repeat(4, 0).repeat(12, 1).repeat(12, 2)
    truth = affinities_from_labels(widen_borders(labels)).astype(float)
    strength = rng.random(truth.shape) * 0.9
    return labels, np.rint(255 * np.where(truth > 0, 1 - strength, strength)).astype(np.uint8)


@pytest.mark.parametrize("decoder", ["waterz", "blockwise"])
@pytest.mark.parametrize("options", [WaterzOptions(), WaterzOptions(fragments="affinity", scoring="mean")], ids=str)
def test_a_point_is_what_its_threshold_alone_gives(noisy, decoder, options):
    labels, affinities = noisy
    thresholds = (0.2, 0.45, 0.5, 0.8)
    curve = list(threshold_curve(affinities, labels, thresholds, decoder=decoder, options=options, protocol="standard"))
    assert [point.threshold for point in curve] == [0.2, 0.45, 0.5, 0.8]
    assert len({point.scores for point in curve}) > 2
    for point in curve:
        (alone,) = segmentations(affinities, [point.threshold], decoder, options)
        assert point.scores == score(alone, labels)


def test_what_is_not_scored_is_not_scored_in_any_point(noisy):
    labels, affinities = noisy
    masked = np.zeros(labels.shape, bool)
    masked[:, :9] = True
    (point,) = threshold_curve(
        affinities, labels, [0.5], decoder="blockwise", options=WaterzOptions(), protocol="cremi", masked=masked
    )
    assert point.scores.voxels == np.count_nonzero(~masked)


def test_the_best_point_is_the_lowest_and_of_equal_ones_the_first():
    points = [
        CurvePoint(threshold, Scores(split, merge, arand, 1, 1, 1, 1, 1))
        for threshold, split, merge, arand in [(0.1, 0.9, 0.1, 0.2), (0.3, 0.4, 0.4, 0.3), (0.2, 0.6, 0.2, 0.3)]
    ]
    assert best_point(points, "voi").threshold == 0.2
    assert best_point(points, "arand").threshold == 0.1
    assert best_point(points[1:], "cremi_score").threshold == 0.2


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("0.1:0.9:0.1", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0.5:0.6:0.04", (0.5, 0.54, 0.58)),
        ("0:1:1", (0.0, 1.0)),
        ("0.5", (0.5,)),
        ("0.7,0.3,0.7", (0.3, 0.7)),
    ],
)
def test_thresholds_are_ranges_or_lists(text, levels):
    assert parse_thresholds(text) == levels


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "0.1:0.9",
        "0.1:0.9:0",
        "0.9:0.1:0.1",
        "0.1:0.9:-0.1",
        "0.5,1.1",
        "-0.1",
        "0:1:1e-9",
        "nan",
        "nan:1:0.1",
        "0:inf:1",
    ],
)
def test_other_texts_are_no_thresholds(text):
    with pytest.raises(DecodingError, match="thresholds"):
        parse_thresholds(text)
