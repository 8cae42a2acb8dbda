import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import waterz

from fgnet.postproc.fragments import section_fragments
from fgnet.postproc.metrics import score
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.waterz_decoder import (
    PREBUILT_QUANTILES,
    WaterzOptions,
    compact_ids,
    decode_waterz,
    remove_small,
)
from fgnet.volumes.errors import DecodingError

ALL_OPTIONS = [
    WaterzOptions(fragments=fragments, scoring=scoring, init_with_max=init, discretize_queue=bins)
    for fragments in ("sections", "affinity")
    for scoring, init in (("quantile", True), ("quantile", False), ("mean", True))
    for bins in (0, 256)
]


def read(path, dataset, region=()):
    with h5py.File(path) as file:
        return file[dataset][region]


def noisy_affinities(labels, noise, seed=0):
    """uint8 affinities of the labels, each value moved by the same share of noise towards the other end."""
    truth = affinities_from_labels(widen_borders(labels)).astype(np.float32)
    strength = np.random.default_rng(seed).random(truth.shape, dtype=np.float32) * noise
    return np.rint(255 * np.where(truth > 0, 1 - strength, strength)).astype(np.uint8)


def random_affinities(shape=(3, 4, 12, 13), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(a)) == len(np.unique(b))


def merged_by_definition(affinities, fragments, threshold, statistic, init_with_max):
    """Greedy agglomeration from the definition: always the best contact, scores recomputed from all values."""
    contacts = {}
    for axis in range(3):
        here, there = [slice(None)] * 3, [slice(None)] * 3
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        for a, b, value in zip(
            fragments[tuple(here)].flat, fragments[tuple(there)].flat, affinities[axis][tuple(here)].flat, strict=True
        ):
            if a != b:
                contacts.setdefault(frozenset((int(a), int(b))), []).append(float(value))
    if init_with_max:
        contacts = {pair: [max(values)] for pair, values in contacts.items()}
    parent = {int(i): int(i) for i in np.unique(fragments)}
    while contacts:
        best = min(contacts, key=lambda pair: 1 - statistic(contacts[pair]))
        if 1 - statistic(contacts[best]) >= threshold:
            break
        kept, gone = sorted(best)
        parent = {node: kept if root == gone else root for node, root in parent.items()}
        joined = {}
        for pair, values in contacts.items():
            renamed = frozenset(kept if node == gone else node for node in pair)
            if len(renamed) == 2:
                joined.setdefault(renamed, []).extend(values)
        contacts = joined
    return np.vectorize(parent.get)(fragments)


def upper_median_bin(values):
    bins = sorted(min(int(value * 256), 255) for value in values)
    return (bins[50 * len(bins) // 100] + 0.5) / 256


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("scoring", "init_with_max", "statistic"),
    [("quantile", True, upper_median_bin), ("quantile", False, upper_median_bin), ("mean", False, np.mean)],
)
def test_agglomeration_follows_its_definition(seed, scoring, init_with_max, statistic):
    rng = np.random.default_rng(seed)
    # Every face carries a value of its own, so that no two contacts can tie.
    affinities = (rng.permutation(3 * 36).reshape(3, 1, 6, 6) * 2 + 20.5).astype(np.float32) / 256
    fragments = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((2, 2), int))[None].astype(np.uint64)
    options = WaterzOptions(scoring=scoring, init_with_max=init_with_max, discretize_queue=0)
    for threshold in (0.2, 0.4, 0.6):
        (segmentation,) = decode_waterz(affinities, [threshold], options, fragments=fragments)
        expected = merged_by_definition(affinities, fragments, threshold, statistic, init_with_max)
        assert same_partition(segmentation, expected)


def test_the_quantile_starts_from_the_maximum_of_each_contact():
    affinities = np.zeros((3, 1, 3, 2), np.float32)
    affinities[2, 0, :, 1] = 0.9, 0.1, 0.1
    affinities[1] = 1.0
    fragments = np.array([[[1, 2]] * 3], np.uint64)
    for init_with_max, segments in ((True, 1), (False, 2)):
        options = WaterzOptions(init_with_max=init_with_max)
        (segmentation,) = decode_waterz(affinities, [0.5], options, fragments=fragments)
        assert len(np.unique(segmentation)) == segments


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_every_option_gives_what_waterz_gives(options, capfd):
    affinities = random_affinities()
    fragments = section_fragments(affinities) if options.fragments == "sections" else None
    expected = [
        segmentation.copy()
        for segmentation in waterz.agglomerate(
            affinities,
            [0.2, 0.5],
            fragments=fragments,
            scoring_function=options.scoring_function,
            discretize_queue=options.discretize_queue,
        )
    ]
    capfd.readouterr()
    results = list(decode_waterz(affinities, [0.2, 0.5], options))
    np.testing.assert_array_equal(results, expected)
    assert capfd.readouterr() == ("", ""), "nothing is printed"


def test_no_option_needs_a_compiler():
    program = (
        "import itertools, numpy as np\n"
        "from fgnet.postproc.waterz_decoder import *\n"
        "for q, init, bins in itertools.product(PREBUILT_QUANTILES, (True, False), (0, 256)):\n"
        "    o = WaterzOptions(quantile=q, init_with_max=init, discretize_queue=bins)\n"
        "    list(decode_waterz(np.ones((3, 1, 2, 2), np.uint8), [0.5], o))\n"
        "print('decoded')\n"
    )
    environment = {**os.environ, "PATH": "", "CC": "/nonexistent", "CXX": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "decoded\n"
    assert PREBUILT_QUANTILES[0] == 10


def test_segmentations_do_not_change_when_the_next_threshold_is_decoded():
    iterator = decode_waterz(random_affinities(), [0.1, 0.9])
    first = next(iterator)
    before = first.copy()
    second = next(iterator)
    np.testing.assert_array_equal(first, before)
    assert len(np.unique(second)) < len(np.unique(first))


def test_given_fragments_stay_as_they_are():
    fragments = np.arange(4 * 12 * 13, dtype=np.uint64).reshape(4, 12, 13) + np.uint64(2**62)
    before = fragments.copy()
    (segmentation,) = decode_waterz(random_affinities(), [0.0], fragments=fragments)
    np.testing.assert_array_equal(fragments, before)
    assert same_partition(segmentation, fragments), "threshold 0 merges nothing"


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
@pytest.mark.parametrize("value", [0, 255])
def test_constant_affinities_decode(options, value):
    affinities = np.full((3, 3, 4, 5), value, np.uint8)
    (segmentation,) = decode_waterz(affinities, [0.5], options)
    assert len(np.unique(segmentation)) == 1
    assert (segmentation.max() == 0) == (value == 0)


@pytest.mark.parametrize("fragments", ["sections", "affinity"])
def test_noisy_affinities_of_real_neurons_are_put_together_again(shared_data, fragments):
    labels = read(shared_data("fib25_t2.h5"), "labels", np.s_[100:130, 60:140, 60:140])
    options = WaterzOptions(fragments=fragments)
    (segmentation,) = decode_waterz(noisy_affinities(labels, noise=0.4), [0.5], options)
    # Voxels of the widened borders belong to nobody.
    assert score(segmentation, widen_borders(labels), min_size=100).voi < 0.2


def test_any_number_of_threads_gives_the_same_segmentation_of_real_neurons(shared_data):
    labels = read(shared_data("fib25_t2.h5"), "labels", np.s_[100:130, 60:140, 60:140])
    affinities = noisy_affinities(labels, noise=0.6)
    alone, together = (list(decode_waterz(affinities, [0.0, 0.5], threads=threads)) for threads in (1, 3))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    assert len(np.unique(alone[0])) > len(np.unique(alone[1])) > 10


def test_a_real_boundary_probability_decodes_better_than_its_fragments(shared_data):
    boundary = read(shared_data("snemi_mini_labels_prob.h5"), "boundary_probability").astype(np.float32)
    labels = read(shared_data("snemi_mini_labels_prob.h5"), "labels")
    inside = 1 - (boundary - boundary.min()) / np.ptp(boundary)
    affinities = np.stack([inside] * 3)
    fragments, segmentation = decode_waterz(affinities, [0.0, 0.5])
    assert score(segmentation, labels).voi < score(fragments, labels).voi


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"affinities": np.zeros((4, 2, 3, 3), np.uint8)}, "shape"),
        ({"affinities": np.full((3, 2, 3, 3), np.nan, np.float32)}, "NaN"),
        ({"affinities": np.zeros((3, 2, 3, 3), np.uint16)}, "dtype uint16"),
        ({"thresholds": []}, "thresholds are"),
        ({"thresholds": [1.5]}, "from 0 to 1"),
        ({"thresholds": [float("nan")]}, "from 0 to 1"),
        ({"thresholds": [0.5, 0.2]}, "increasing"),
        ({"thresholds": [0.5, 0.5]}, "increasing"),
        ({"fragments": np.zeros((2, 3, 4), np.uint64)}, "fragments have shape"),
        ({"fragments": np.zeros((2, 3, 3), np.int64)}, "int64"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(changes, message):
    arguments = {"affinities": np.zeros((3, 2, 3, 3), np.uint8), "thresholds": [0.5], **changes}
    with pytest.raises(DecodingError, match=message):
        decode_waterz(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"fragments": "grid"},
        {"scoring": "max"},
        {"quantile": 51},
        {"discretize_queue": 100},
        {"aff_threshold_low": 0.9, "aff_threshold_high": 0.1},
    ],
)
def test_options_that_would_need_a_compiler_are_refused(options):
    with pytest.raises(DecodingError, match=next(iter(options))):
        WaterzOptions(**options)


def test_dust_becomes_background():
    segmentation = np.array([[[1, 1, 1, 9, 9, 0, 4]]], np.uint64)
    np.testing.assert_array_equal(remove_small(segmentation, 2), [[[1, 1, 1, 9, 9, 0, 0]]])
    np.testing.assert_array_equal(remove_small(segmentation, 3), [[[1, 1, 1, 0, 0, 0, 0]]])
    np.testing.assert_array_equal(remove_small(segmentation, 0), segmentation)
    assert segmentation[0, 0, 6] == 4


def test_compact_ids_are_consecutive_in_order_of_appearance():
    segmentation = np.array([[[2**60, 0, 7], [7, 3, 2**60]]], np.uint64)
    compact = compact_ids(segmentation)
    np.testing.assert_array_equal(compact, [[[1, 0, 2], [2, 3, 1]]])
    assert compact.dtype == np.uint64
