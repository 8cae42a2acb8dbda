"""The watershed against its definition, against waterz, and against itself on parts of a volume."""

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.watershed import WatershedOptions, basin_directions, basins, leads_out, watershed
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box

UNLIMITED = WatershedOptions(plateau_steps=None)
OFFSETS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]


@st.composite
def few_levels(draw, longest=8):
    """uint8 affinities with many ties and plateaus."""
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    levels = draw(st.sampled_from([2, 3, 5, 256]))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(0, levels, (3, *shape))
    return (values * (255 // (levels - 1))).astype(np.uint8)


def predicted_affinities(labels, seed=0):
    """uint8 affinities like those of a network: blurred, with noise, a third of them saturated."""
    rng = np.random.default_rng(seed)
    truth = affinities_from_labels(widen_borders(labels)).astype(np.float32)
    predicted = np.stack([gaussian_filter(channel, 1) for channel in truth])
    for sigma, strength in ((1, 0.06), (4, 0.12)):
        noise = np.stack([gaussian_filter(rng.standard_normal(labels.shape), sigma) for _ in range(3)])
        predicted += strength * noise / noise.std()
    return np.clip(np.rint(255 * predicted), 0, 255).astype(np.uint8)


def waterz_fragments(affinities, low=0, high=255):
    options = WaterzOptions(
        fragments="affinity", scoring="mean", aff_threshold_low=(low + 0.4) / 255, aff_threshold_high=(high - 0.4) / 255
    )
    (fragments,) = decode_waterz(affinities, [0.0], options)
    return fragments


def by_definition(affinities, options):
    """Fragments of limited plateaus, voxel by voxel; partition only."""
    low, high, steps = options.aff_threshold_low, options.aff_threshold_high, options.plateau_steps
    shape = affinities.shape[1:]
    voxels = list(itertools.product(*map(range, shape)))

    def neighbours(p):
        for d, offset in enumerate(OFFSETS):
            q = tuple(np.add(p, offset))
            if all(0 <= i < n for i, n in zip(q, shape, strict=True)):
                yield d, q, int(affinities[(d % 3, *(p if d < 3 else q))])

    ways = {}
    for p in voxels:
        around = list(neighbours(p))
        best = max((value for *_, value in around), default=0)
        ways[p] = {d: q for d, q, value in around if best > low and value >= min(best, high)}
    plateau = {p: {d: q for d, q in ways[p].items() if p in ways[q].values()} for p in voxels}
    flows = {p: dict(list(ways[p].items() - plateau[p].items())) for p in voxels}
    flows = {p: min(way.items())[1] for p, way in flows.items() if way}
    level = set(flows)
    for _ in range(steps):
        level = {q for p in level for q in plateau[p].values()} - set(flows)
        flows |= {p: next(q for _, q in sorted(plateau[p].items()) if q in flows) for p in level}
    joined = list(flows.items())
    joined += [(p, q) for p in voxels for q in plateau[p].values() if p not in flows and q not in flows]
    label = {p: i + 1 if ways[p] else 0 for i, p in enumerate(voxels)}
    changed = True
    while changed:
        changed = False
        for p, q in joined:
            if label[p] != label[q]:
                label[p] = label[q] = min(label[p], label[q])
                changed = True
    return np.array([label[p] for p in voxels]).reshape(shape)


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel().astype(np.int64), b.ravel().astype(np.int64)]), axis=1).shape[1]
    return pairs == len(np.unique(a)) == len(np.unique(b)) and bool(((a == 0) == (b == 0)).all())


@settings(deadline=None, max_examples=150)
@given(few_levels(longest=5), st.integers(0, 3), st.sampled_from([(0, 255), (60, 200), (127, 128), (0, 1)]))
def test_limited_plateaus_follow_their_definition(affinities, steps, thresholds):
    options = WatershedOptions(steps, *thresholds)
    fragments, count = watershed(affinities, options)
    assert same_partition(fragments, by_definition(affinities, options))
    ids, first = np.unique(fragments[fragments > 0], return_index=True)
    np.testing.assert_array_equal(ids, np.arange(1, count + 1))
    assert (np.diff(first) > 0).all(), "ids are in the order of first voxels"


@settings(deadline=None, max_examples=150)
@given(few_levels(), st.sampled_from([(0, 255), (60, 200), (127, 128)]))
def test_without_a_limit_fragments_are_those_of_waterz(affinities, thresholds):
    fragments, count = watershed(affinities, WatershedOptions(None, *thresholds))
    np.testing.assert_array_equal(fragments, waterz_fragments(affinities, *thresholds))
    assert count == fragments.max()


@pytest.mark.parametrize("low", [0, 40])
def test_without_a_limit_fragments_of_real_neurons_are_those_of_waterz(shared_data, low):
    with h5py.File(shared_data("fib25_t2.h5")) as file:
        affinities = predicted_affinities(file["labels"][:40, :160, :160])
    fragments, _ = watershed(affinities, WatershedOptions(None, low))
    np.testing.assert_array_equal(fragments, waterz_fragments(affinities, low))


@settings(deadline=None, max_examples=150)
@given(few_levels(longest=14), st.integers(0, 2), st.data())
def test_a_block_with_its_halo_knows_what_the_volume_knows(affinities, steps, data):
    options = WatershedOptions(steps)
    shape = affinities.shape[1:]
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = Box(start, [data.draw(st.integers(first + 1, n)) for first, n in zip(start, shape, strict=True)])
    region = options.region(box).intersect(Box.from_shape(shape))
    part = np.ascontiguousarray(affinities[(slice(None), *region.slices)])
    here = basin_directions(part, options, region=region, core=box)
    np.testing.assert_array_equal(here, basin_directions(affinities, options)[box.slices])


@pytest.mark.parametrize("missing", [0, 1])
def test_the_halo_is_no_wider_than_it_has_to_be(missing):
    options = WatershedOptions(2)
    affinities = np.zeros((3, 1, 1, 20), np.uint8)
    # An exit that only the voxel before the region makes one, and a plateau that is a step too long.
    affinities[2, 0, 0, 6:] = 9, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5
    first = 6 + options.halo[0] - missing
    whole, part = basin_directions(affinities, options), basin_directions(affinities[..., 6:].copy(), options)
    same = np.array_equal(part[..., first - 6 :], whole[..., first:])
    assert same == (not missing)


@pytest.mark.parametrize("options", [WatershedOptions(2), WatershedOptions(flow="sections", radius=1, tile=2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_cut_in_two_is_joined_by_what_leads_out_of_either_half(options, axis):
    affinities = np.random.default_rng(0).integers(0, 3, (3, 6, 7, 8)).astype(np.uint8) * 100
    directions = basin_directions(affinities, options)
    halves = np.split(directions, [3], axis)
    (first, many), (second, more) = (basins(half) for half in halves)
    second += (second > 0) * np.uint32(many)
    joined = leads_out(halves[1], axis, after=False) | leads_out(halves[0], axis, after=True)
    pairs = np.take(first, -1, axis)[joined], np.take(second, 0, axis)[joined]
    _, ids = connected_components(coo_matrix((np.ones(pairs[0].size), pairs), shape=(many + more + 1,) * 2))
    (whole, _), found = basins(directions), ids[np.concatenate([first, second], axis)]
    pairs = np.unique(np.stack([whole.ravel(), found.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(whole)) == len(np.unique(found))


@pytest.mark.parametrize("options", [WatershedOptions(), UNLIMITED], ids=["limited", "unlimited"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (128, 1), (255, 1)])
def test_a_volume_that_is_one_plateau_is_one_fragment_or_background(options, value, expected):
    fragments, count = watershed(np.full((3, 32, 256, 256), value, np.uint8), options)
    assert count == expected
    assert (fragments == expected).all()


@pytest.mark.parametrize("options", [WatershedOptions(), UNLIMITED], ids=["limited", "unlimited"])
def test_a_plateau_with_a_single_exit_is_divided_in_linear_time(options):
    affinities = np.full((3, 32, 256, 256), 128, np.uint8)
    affinities[2, 16, 128, 128] = 200
    fragments, count = watershed(affinities, options)
    assert count == (2 if options.plateau_steps else 1)
    assert np.count_nonzero(fragments == fragments[16, 128, 128]) > 100


def test_a_voxel_cut_off_from_all_others_is_a_fragment_not_background():
    # The middle of a plateau, one step beyond the limit, all of whose neighbours were led to exits.
    affinities = np.zeros((3, 1, 1, 7), np.uint8)
    affinities[2, 0, 0] = 0, 9, 5, 5, 5, 5, 9
    fragments, _ = watershed(affinities, WatershedOptions(0))
    np.testing.assert_array_equal(fragments, [[[1, 1, 1, 2, 3, 3, 3]]])


@pytest.mark.parametrize(
    ("affinities", "message"),
    [
        (np.zeros((2, 3, 3, 3), np.uint8), "shape"),
        (np.zeros((3, 0, 3, 3), np.uint8), "shape"),
        (np.zeros((3, 3, 3), np.uint8), "shape"),
        (np.full((3, 2, 2, 2), np.nan, np.float32), "NaN"),
        (np.zeros((3, 2, 2, 2), np.float32), "dtype float32"),
        (np.zeros((3, 2, 2, 2), np.uint16), "dtype uint16"),
    ],
)
def test_other_affinities_are_refused(affinities, message):
    with pytest.raises(DecodingError, match=message):
        watershed(affinities)


@pytest.mark.parametrize("options", [(-1,), (10**6,), (8, 255), (8, -1), (8, 9, 9), (8, 0, 256)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(DecodingError, match="choose"):
        WatershedOptions(*options)


def test_no_halo_is_wide_enough_without_a_limit():
    with pytest.raises(DecodingError, match="whole volume"):
        _ = UNLIMITED.halo


def test_fragments_of_a_view_are_those_of_its_copy():
    directions = basin_directions(np.random.default_rng(0).integers(0, 9, (3, 8, 8, 8)).astype(np.uint8), UNLIMITED)
    view = directions[2:, 1:-1, 3:]
    np.testing.assert_array_equal(basins(view)[0], basins(view.copy())[0])
