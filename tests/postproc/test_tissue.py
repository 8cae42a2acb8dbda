"""Labels where there is no tissue: none, by either decoder, whatever the blocks; and what padding becomes."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label

from fgnet.postproc.blockwise_decoder import ArrayAffinities, ArraySink, BlockwiseOptions, decode_blockwise
from fgnet.postproc.fragments import REACH, section_fragments
from fgnet.postproc.tissue import links_within
from fgnet.postproc.watershed import WatershedOptions, basin_directions, basins
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import DecodingError

SHAPE = (4, 40, 50)


@dataclass(frozen=True, eq=False)
class Masked(ArrayAffinities):
    mask: np.ndarray | None = None

    def tissue(self, box):
        return self.mask[box.slices]


def random_volume(seed, shape=SHAPE):
    """Affinities, and a mask of boxes and single voxels; affinities of masked voxels are 0, as runs write them."""
    rng = np.random.default_rng(seed)
    tissue = rng.random(shape) < 0.97
    tissue[:, rng.integers(0, shape[1]) :, : rng.integers(0, shape[2])] = False
    affinities = rng.choice([0, 90, 127, 128, 200, 255], (3, *shape), p=[0.05, 0.05, 0.05, 0.05, 0.3, 0.5])
    return affinities.astype(np.uint8) * tissue, tissue


def blockwise(affinities, tissue, flow, block=SHAPE, tile=256):
    watershed = WatershedOptions(flow=flow, tile=tile, radius=4)
    labels = np.empty(tissue.shape, np.uint64)
    options = BlockwiseOptions((0.4,), block=block, watershed=watershed)
    decode_blockwise(Masked(affinities, tissue), [ArraySink(labels)], options)
    return labels


@pytest.mark.parametrize("fragments", ["sections", "affinity"])
def test_waterz_labels_nothing_but_tissue(fragments):
    affinities, tissue = random_volume(0)
    plain, masked = (
        next(decode_waterz(affinities, [0.4], WaterzOptions(fragments=fragments), tissue=given))
        for given in (None, tissue)
    )
    assert plain[~tissue].any()
    assert not masked[~tissue].any()
    assert (masked[tissue] > 0).mean() > 0.99


@pytest.mark.parametrize("flow", ["sections", "affinity"])
def test_the_blockwise_decoder_labels_nothing_but_tissue(flow):
    affinities, tissue = random_volume(0)
    masked = blockwise(affinities, tissue, flow)
    assert not masked[~tissue].any()
    assert (masked[tissue] > 0).mean() > 0.95


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 4), st.integers(3, 40), st.integers(3, 50)),
    st.sampled_from(["sections", "affinity"]),
)
def test_labels_of_masked_affinities_do_not_depend_on_blocks(seed, block, flow):
    affinities, tissue = random_volume(seed)
    np.testing.assert_array_equal(
        blockwise(affinities, tissue, flow, block, tile=16), blockwise(affinities, tissue, flow, tile=16)
    )


@pytest.mark.parametrize("flow", ["sections", "affinity"])
def test_nothing_flows_out_of_tissue(flow):
    affinities, tissue = random_volume(1)
    directions = basin_directions(affinities, WatershedOptions(flow=flow), tissue=tissue)
    assert not directions[~tissue].any()
    for axis, (bit, step) in itertools.product(range(3), ((1, -1), (8, 1))):
        leads = (directions & (bit << axis)) != 0
        assert np.roll(tissue, -step, axis)[leads].all()


def test_no_flood_crosses_what_is_masked():
    affinities = np.zeros((3, 1, 9, 30), np.uint8)
    affinities[:, :, :, :10] = 255
    affinities[:, :, :, 12:] = 60  # a boundary that is within the reach of the process
    tissue = np.ones((1, 9, 30), bool)
    tissue[:, :, 10:12] = False
    found, count = basins(basin_directions(affinities, WatershedOptions(flow="sections"), tissue=tissue))
    for fragments, many in ((section_fragments(affinities, tissue=tissue), None), (found, count)):
        assert many in (None, 2)
        assert set(np.unique(fragments[:, :, :10])) == {1}
        assert not fragments[:, :, 10:12].any()
        assert len(np.unique(fragments[:, :, 12:])) == 1
        assert fragments[0, 0, 12] == 2


def test_a_mask_that_cuts_no_process_changes_no_fragment_of_waterz():
    affinities, _ = random_volume(2)
    tissue = np.ones(SHAPE, bool)
    np.testing.assert_array_equal(section_fragments(affinities, tissue=tissue), section_fragments(affinities))


def test_padding_far_from_processes_is_background():
    affinities = np.zeros((3, 2, 80, 60), np.uint8)
    affinities[:, 0, :20] = 255
    affinities[1:, 0, 60:, :20] = 90  # a patch that no flood reaches
    fragments = section_fragments(affinities)
    ours, _ = basins(basin_directions(affinities, WatershedOptions(flow="sections")))
    np.testing.assert_array_equal(fragments > 0, ours > 0)
    assert (fragments[0, : 20 + REACH - 1] == 1).all()
    assert not fragments[0, 20 + REACH - 1 : 60].any()
    assert (fragments[0, 60:, :20] == 2).all()
    assert not fragments[1].any()


def test_a_section_of_boundary_alone_is_a_fragment_for_each_patch():
    affinities = np.zeros((3, 1, 9, 9), np.uint8)
    affinities[1:, 0, :3], affinities[1:, 0, 5:] = 80, 90
    np.testing.assert_array_equal(section_fragments(affinities)[0], label(affinities[1, 0] > 0, connectivity=1))


def test_links_are_kept_between_voxels_of_tissue_alone():
    affinities, tissue = np.full((3, 3, 3, 3), 7, np.uint8), np.ones((3, 3, 3), bool)
    tissue[1, 1, 1] = False
    gone = np.argwhere(links_within(affinities, tissue) == 0).tolist()
    expected = [[c, 1, 1, 1] for c in range(3)] + [[0, 2, 1, 1], [1, 1, 2, 1], [2, 1, 1, 2]]
    assert sorted(gone) == sorted(expected)
    assert (affinities == 7).all()


@pytest.mark.parametrize("tissue", [np.ones(SHAPE, np.uint8), np.ones((4, 40, 49), bool)])
def test_a_mask_that_does_not_fit_is_refused(tissue):
    affinities, _ = random_volume(3)
    attempts = (
        lambda: decode_waterz(affinities, [0.5], tissue=tissue),
        lambda: section_fragments(affinities, tissue=tissue),
        lambda: basin_directions(affinities, WatershedOptions(), tissue=tissue),
    )
    for attempt in attempts:
        with pytest.raises(DecodingError, match="give bool of shape"):
            attempt()
