"""What the blockwise decoder refuses, and how it divides a volume."""

import numpy as np
import pytest

from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    BlockPlan,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
    fitting_block,
)
from fgnet.postproc.blockwise_levels import grid, places, span, top_level
from fgnet.postproc.watershed import Flow, WatershedOptions
from fgnet.volumes.errors import DecodingError, GeometryError
from fgnet.volumes.geometry import Box, Triple


@pytest.mark.parametrize(
    ("affinities", "message"),
    [
        (np.zeros((3, 2, 2, 2), np.float32), "dtype float32"),
        (np.full((3, 2, 2, 2), np.nan), "dtype float64"),
        (np.zeros((3, 2, 2, 2), np.uint16), "dtype uint16"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((12, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((3, 0, 2, 2), np.uint8), "shape"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
    ],
)
def test_other_affinities_are_refused(affinities, message):
    with pytest.raises(DecodingError, match=message):
        decode_array(affinities, BlockwiseOptions())


@pytest.mark.parametrize("given", [np.zeros((3, 3, 4, 4), np.uint8), np.full((3, 4, 4, 4), np.nan, np.float32)])
def test_a_source_that_gives_something_else_is_refused_naming_the_box(given):
    class Wrong:
        shape = (4, 4, 4)

        def affinities(self, box):
            return given

    with pytest.raises(DecodingError, match="box 0:4,0:4,0:4"):
        decode_blockwise(Wrong(), [print], BlockwiseOptions())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"thresholds": ()}, DecodingError),
        ({"thresholds": (1.2,)}, DecodingError),
        ({"thresholds": (float("nan"),)}, DecodingError),
        ({"thresholds": (0.5, 0.5)}, DecodingError),
        ({"min_size": -1}, DecodingError),
        ({"thresholds": (0.3, 0.6), "tree_threshold": 0.5}, DecodingError),
        ({"tree_threshold": 1.5}, DecodingError),
        ({"watershed": WatershedOptions(None)}, DecodingError),
        ({"block": (0, 4, 4)}, GeometryError),
        ({"block": (4, 4)}, GeometryError),
        ({"halo": (11, 11, 10)}, GeometryError),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        BlockwiseOptions(**options)


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"sinks": []}, {"outputs": ["a", "b"]}])
def test_wrong_workers_and_sinks_are_refused(arguments):
    arguments = {"sinks": [print], "workers": 1, **arguments}
    with pytest.raises(DecodingError, match=r"workers|sinks|outputs"):
        decode_blockwise(ArrayAffinities(np.ones((3, 2, 2, 2), np.uint8)), options=BlockwiseOptions(), **arguments)


def test_blocks_tile_the_volume_and_know_their_neighbours():
    plan = BlockPlan((5, 9, 4), BlockwiseOptions(block=(2, 4, 8)))
    assert plan.counts == (3, 3, 1)
    covered = np.zeros(plan.shape, int)
    for block in plan:
        covered[plan.box(block).slices] += 1
        for axis in range(3):
            after = plan.after(block, axis)
            assert after is None or plan.before(after, axis) == block
    assert (covered == 1).all()
    assert plan.region((1, 1, 0)) == Box((0, 0, 0), (5, 9, 4))
    with pytest.raises(GeometryError, match="cannot be decoded"):
        BlockPlan((2**21, 2**21, 2**21), BlockwiseOptions())


@pytest.mark.parametrize("block", [(2, 4, 8), (1, 1, 1), (9, 9, 9)])
def test_units_of_a_level_are_made_of_those_below_each_once(block):
    plan = BlockPlan((5, 9, 4), BlockwiseOptions(block=block))
    top = top_level(plan)
    assert grid(plan, top) == (1, 1, 1)
    assert top == 1 or max(grid(plan, top - 1)) > 1
    for level in range(1, top + 1):
        for below in range(level):
            members = [
                m for u in places(Box.from_shape(grid(plan, level))) for m in places(span(plan, level, u, below))
            ]
            assert sorted(members) == list(places(Box.from_shape(grid(plan, below))))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2, "options": {}}'])
def test_a_description_of_something_else_is_refused(text):
    with pytest.raises(DecodingError, match="merge tree"):
        BlockPlan.from_description(text)


def test_a_plan_is_described_by_what_its_merges_depend_on():
    options = BlockwiseOptions((0.3, 0.6), (2, 4, 8), watershed=WatershedOptions(3, flow="sections", radius=2))
    plan = BlockPlan((5, 9, 4), options)
    text = plan.describe("x")
    again = BlockPlan.from_description(text)
    assert (again.shape, again.options.block, again.options.highest) == (plan.shape, options.block, 0.6)
    assert again.options.watershed == options.watershed
    assert again.describe("x") == text
    same = BlockwiseOptions((0.2,), (2, 4, 8), (9, 99, 99), 7, options.watershed, 0.6)
    assert BlockPlan(plan.shape, same).describe("x") == text
    assert plan.describe("y") != text


@pytest.mark.parametrize(
    ("shape", "flow", "block"),
    [
        ((64, 512, 512), "sections", (128, 256, 256)),  # four blocks for a few workers
        ((128, 1024, 1024), "sections", (64, 512, 512)),
        ((129, 1024, 513), "sections", (64, 512, 512)),
        ((128, 1024, 1024), "affinity", (128, 256, 256)),
        ((1, 1, 1), "sections", (128, 256, 256)),
    ],
)
def test_large_volumes_are_cut_into_large_blocks_where_memory_allows(shape: Triple, flow: Flow, block: Triple) -> None:
    assert fitting_block(shape, WatershedOptions(flow=flow)) == block
