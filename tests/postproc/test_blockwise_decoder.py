"""Blocks against the whole volume, against waterz, and in groups against all at once."""

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fgnet.postproc import blockwise_merge
from fgnet.postproc.agglomeration import agglomerate
from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    ArraySink,
    BlockPlan,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
)
from fgnet.postproc.blockwise_stages import stages
from fgnet.postproc.blockwise_steps import CONTACTS
from fgnet.postproc.blockwise_tree import SidecarTree
from fgnet.postproc.metrics import score
from fgnet.postproc.region_graph import region_graph
from fgnet.postproc.sidecar import Sidecar
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.watershed import WatershedOptions, watershed
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small

THRESHOLDS = (0.3, 0.6)


def whole(affinities, **options):
    return decode_array(affinities, BlockwiseOptions(block=affinities.shape[1:], **options))


def predicted_affinities(labels, noise=0.06, seed=0):
    """uint8 affinities like those of a network: blurred, with noise fine and coarse, a third of them saturated."""
    rng = np.random.default_rng(seed)
    truth = affinities_from_labels(widen_borders(labels)).astype(np.float32)
    predicted = np.stack([gaussian_filter(channel, 1) for channel in truth])
    for sigma, strength in ((1, noise), (4, 2 * noise)):
        texture = np.stack([gaussian_filter(rng.standard_normal(labels.shape), sigma) for _ in range(3)])
        predicted += strength * texture / texture.std()
    return np.clip(np.rint(255 * predicted), 0, 255).astype(np.uint8)


def real_labels(shared_data, region):
    with h5py.File(shared_data("fib25_t2.h5")) as file:
        return file["labels"][region]


@st.composite
def volumes(draw):
    """uint8 affinities, most with few levels: ties and plateaus everywhere, and background."""
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    levels = draw(st.sampled_from([2, 3, 5, 256]))
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, levels, (3, *shape))
    return (values * (255 // (levels - 1))).astype(np.uint8)


@st.composite
def divisions(draw, shape):
    """A block shape that makes a few dozen blocks at most, and more of a halo than it takes."""
    parts = st.sampled_from([(1, 1), (1, 1), (2, 3), (3, 5)])
    block = tuple(draw(parts.flatmap(lambda p, n=n: st.integers(-(-n // p[1]), -(-n // p[0])))) for n in shape)
    return block, draw(st.integers(0, 3)), draw(st.integers(1, 3))


def decode_in_order(affinities, options, seed, sidecar, memory):
    """The stages by hand, each in a random order, a third of the units a second time, some files lost in between."""
    source, rng = ArrayAffinities(affinities), np.random.default_rng(seed)
    plan = BlockPlan(source.shape, options)
    results = [np.zeros(source.shape, np.uint64) for _ in options.thresholds]
    sinks = [ArraySink(result) for result in results]
    sidecar.claim(plan.describe(""))
    for stage in stages(plan, sidecar, source, sinks, memory=memory):
        units = list(stage)
        for i in rng.permutation(np.append(np.arange(len(units)), rng.integers(0, len(units), len(units) // 3))):
            # As in another process, which has only the name.
            (again,) = (s for s in stages(plan, sidecar, source, sinks, memory=memory) if s.name == stage.name)
            again.work(units[i])
        if stage.name == "cut":
            for block in plan:
                if rng.random() < 0.3:
                    sidecar.path(CONTACTS, block).unlink(missing_ok=True)
    return results


@settings(deadline=None, max_examples=130)
@given(volumes(), st.integers(0, 3), st.integers(0, 6), st.sampled_from([(0, 255), (60, 200), None]), st.data())
def test_every_division_into_blocks_gives_the_ids_of_the_whole(
    tmp_path_factory, affinities, steps, min_size, limits, data
):
    """Four divisions of each of 130 volumes: 520 configurations. Without limits, fragments of sections."""
    thresholds = data.draw(st.sampled_from([(0.3,), (0.5,), (0.8,), (0.9, 0.4)]))
    sections = {"flow": "sections", "radius": data.draw(st.integers(1, 5)), "tile": data.draw(st.integers(1, 14))}
    watershed = WatershedOptions(steps, *limits) if limits else WatershedOptions(steps, **sections)
    common = {"thresholds": thresholds, "min_size": min_size, "watershed": watershed}
    expected = whole(affinities, **common)
    shape = affinities.shape[1:]
    for number in range(4):
        block, extra, workers = data.draw(divisions(shape))
        halo = tuple(np.add(watershed.halo, (extra, 0, extra)).tolist())
        tree_threshold = data.draw(st.sampled_from([None, 0.95, 1.0]))
        options = BlockwiseOptions(block=block, halo=halo, tree_threshold=tree_threshold, **common)
        # From a group of blocks for every level to none at all.
        memory = data.draw(st.sampled_from([None, 0, 0, 3000, 30_000, 300_000]))
        if number:
            results = decode_array(affinities, options, workers=workers, memory=memory)
        else:
            sidecar = Sidecar(tmp_path_factory.mktemp("sidecar"), durable=False)
            results = decode_in_order(affinities, options, data.draw(st.integers(0, 99)), sidecar, memory)
        np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("levels", [2, 4, 256])
@pytest.mark.parametrize("shape", [(9, 9, 9), (5, 11, 7), (1, 1, 40)])
def test_groups_of_groups_of_blocks_give_what_blocks_give_at_once(tmp_path, shape, levels):
    affinities = np.random.default_rng(levels).integers(0, levels, (3, *shape)) * (255 // (levels - 1))
    affinities = affinities.astype(np.uint8)
    # Odd numbers of single voxels: every fragment touches others, and there are up to six levels.
    options = BlockwiseOptions((0.4, 0.8), block=(1, 1, 1) if shape[0] == 1 else (2, 2, 3), min_size=2)
    results = []
    for memory in (None, 0):
        sidecar = Sidecar(tmp_path / f"{memory}", durable=False)
        results.append(decode_in_order(affinities, options, 0, sidecar, memory))
        levels = SidecarTree(BlockPlan(shape, options), sidecar).levels
        assert len(levels) == 2 if memory is None else len(levels) > 3
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(results[0], whole(affinities, thresholds=(0.4, 0.8), min_size=2))


def test_many_contacts_are_put_together_in_groups_whatever_memory_there_is(tmp_path, monkeypatch):
    affinities = np.random.default_rng(5).integers(0, 8, (3, 9, 9, 9)).astype(np.uint8) * 36
    options = BlockwiseOptions((0.6,), block=(2, 2, 2))
    results = []
    for most, many in ((1 << 20, 2), (50, 4)):
        monkeypatch.setattr(blockwise_merge, "CONTACTS_AT_ONCE", most)
        sidecar = Sidecar(tmp_path / f"{most}", durable=False)
        results.append(decode_in_order(affinities, options, 0, sidecar, None))
        assert len(SidecarTree(BlockPlan((9, 9, 9), options), sidecar).levels) == many
    np.testing.assert_array_equal(*results)


@settings(deadline=None, max_examples=60)
@given(volumes(), st.integers(0, 5), st.sampled_from([0.0, 0.4, 1.0]))
def test_ids_are_compact_in_the_order_of_first_voxels_without_dust(affinities, min_size, threshold):
    (everything,) = whole(affinities, thresholds=(threshold,))
    (result,) = whole(affinities, thresholds=(threshold,), min_size=min_size)
    assert result.dtype == np.uint64
    np.testing.assert_array_equal(result, compact_ids(remove_small(everything, min_size)))
    fragments, _ = watershed(affinities)
    np.testing.assert_array_equal(everything == 0, fragments == 0)
    if threshold == 0.0:
        np.testing.assert_array_equal(everything, fragments)


@pytest.mark.parametrize("flow", ["affinity", "sections"])
@pytest.mark.parametrize("block", [(12, 20, 20), (48, 3, 64), (13, 37, 29)])
def test_blocks_of_real_neurons_give_the_ids_of_the_whole(shared_data, block, flow):
    affinities = predicted_affinities(real_labels(shared_data, np.s_[100:148, 60:140, 60:140]))
    options = {"thresholds": (0.3, 0.5, 0.7), "min_size": 20, "watershed": WatershedOptions(flow=flow)}
    results = decode_array(affinities, BlockwiseOptions(block=block, **options), workers=2)
    np.testing.assert_array_equal(results, whole(affinities, **options))


@pytest.mark.parametrize("flow", ["affinity", "sections"])
def test_noisy_real_neurons_are_decoded_as_well_as_by_waterz(shared_data, flow):
    # On average: which of two equal affinities is followed decides single large merges, for better or worse.
    thresholds = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
    options = WaterzOptions(fragments=flow, scoring="mean", discretize_queue=0)
    ours, theirs = [], []
    for first in range(0, 250, 50):
        labels = real_labels(shared_data, np.s_[first : first + 50, :128, :128])
        affinities = predicted_affinities(labels)
        theirs.append(min(score(result, labels).voi for result in decode_waterz(affinities, thresholds, options)))
        results = decode_array(affinities, BlockwiseOptions(thresholds, watershed=WatershedOptions(flow=flow)))
        ours.append(min(score(result, labels).voi for result in results))
    assert np.mean(ours) < np.mean(theirs) + 0.02


def test_plateaus_without_a_limit_give_the_segments_of_waterz_but_for_ties(shared_data):
    labels = real_labels(shared_data, np.s_[100:140, :128, :128])
    affinities = predicted_affinities(labels)
    fragments, count = watershed(affinities, WatershedOptions(None))
    graph = region_graph(affinities, fragments, count)
    options = WaterzOptions(fragments="affinity", scoring="mean", discretize_queue=0)
    # Thresholds of use; below, where most contacts are still small, many means are equal.
    thresholds = (0.5, 0.65)
    for threshold, theirs in zip(thresholds, decode_waterz(affinities, thresholds, options), strict=True):
        ours = agglomerate(graph, threshold).roots[fragments]
        assert abs(score(ours, labels).voi - score(theirs, labels).voi) < 0.02
        assert score(ours, theirs).voi < 0.1


@pytest.mark.parametrize(("value", "segments"), [(0, 0), (1, 1), (255, 1)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_constant_affinities_are_background_or_one_segment(value, segments, threshold):
    affinities = np.full((3, 20, 90, 100), value, np.uint8)
    (result,) = decode_array(affinities, BlockwiseOptions((threshold,), block=(8, 40, 40)), workers=2)
    assert (result == segments).all()


@pytest.mark.parametrize(("value", "segments"), [(0, 0), (1, 20), (255, 20)])
def test_sections_of_constant_affinities_are_background_or_a_segment_each(value, segments):
    affinities = np.full((3, 20, 90, 100), value, np.uint8)
    options = BlockwiseOptions((0.0,), block=(8, 40, 40), watershed=WatershedOptions(flow="sections"))
    (result,) = decode_array(affinities, options, workers=2)
    np.testing.assert_array_equal(result[:, 0, 0], np.arange(1, 21) if segments else np.zeros(20))
    assert (result == result[:, :1, :1]).all()


def test_processes_give_what_threads_give(tmp_path):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 24), dtype=np.uint8)
    stored = zarr.create_array(
        tmp_path / "affinities.zarr", shape=affinities.shape, dtype="uint8", chunks=(3, 8, 12, 12)
    )
    stored[:] = affinities
    common = {"shape": (20, 24, 24), "chunks": (10, 12, 12), "dtype": "uint64"}
    labels = [zarr.create_array(tmp_path / f"{number}.zarr", **common) for number in range(2)]
    options = BlockwiseOptions(THRESHOLDS, block=(10, 12, 12))
    sinks = [ArraySink(array) for array in labels]
    decode_blockwise(ArrayAffinities(stored), sinks, options, workers=2, pool="processes")
    np.testing.assert_array_equal([array[:] for array in labels], whole(affinities, thresholds=THRESHOLDS))
