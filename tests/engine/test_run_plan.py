"""The plan of a run: what is cut into tiles is whole, and what it says of blocks and memory is what a run takes."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine.run_plan import RunPlan, _candidates, default_stride, make_plan
from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.grid import PatchGrid

_BYTES = 3 * 4
_PLENTY = 1 << 40


def triples(least: int, most: Triple) -> st.SearchStrategy[Triple]:
    return st.tuples(*(st.integers(least, extent) for extent in most))


@st.composite
def boxes(draw: st.DrawFn, shape: Triple) -> Box:
    """Boxes inside a volume that hold a voxel."""
    first = draw(st.tuples(*(st.integers(0, extent - 1) for extent in shape)))
    z, y, x = (draw(st.integers(low + 1, extent)) for low, extent in zip(first, shape, strict=True))
    return Box(first, (z, y, x))


@st.composite
def plans(draw: st.DrawFn) -> RunPlan:
    """Any tiles of whole chunks, also such as `make_plan` never makes."""
    patch = draw(triples(1, (4, 7, 7)))
    grid = PatchGrid(draw(triples(1, (12, 24, 24))), patch, draw(triples(1, patch)))
    region = draw(boxes(grid.volume))
    chunk = draw(triples(1, (5, 9, 9)))
    z, y, x = (n * draw(st.integers(1, -(-extent // n))) for n, extent in zip(chunk, region.shape, strict=True))
    return RunPlan(grid, region, chunk, (z, y, x), draw(st.sampled_from(["gaussian", "constant"])))


def chunks(plan: RunPlan) -> list[Triple]:
    z, y, x = (range(count) for count in plan.chunk_counts)
    return list(itertools.product(z, y, x))


def touch(a: Box, b: Box) -> bool:
    return a.intersect(b).size > 0


@given(plans())
@settings(deadline=None)
def test_every_chunk_lies_in_exactly_one_tile_and_tiles_cover_the_region(plan: RunPlan) -> None:
    assert sum(tile.size for tile in plan.tiles) == plan.region.size
    assert all(tile.size and plan.region.contains(tile) for tile in plan.tiles)
    boxes = [plan.chunk_box(index) for index in chunks(plan)]
    assert sum(box.size for box in boxes) == plan.region.size
    for box in boxes:
        assert box.size
        assert [tile for tile in plan.tiles if touch(tile, box)] == [tile for tile in plan.tiles if tile.contains(box)]
        assert sum(tile.contains(box) for tile in plan.tiles) == 1


@given(plans(), st.data())
@settings(deadline=None)
def test_chunks_of_a_box_are_those_that_share_a_voxel_with_it(plan: RunPlan, data: st.DataObject) -> None:
    box = data.draw(boxes(plan.grid.padded)).shift(data.draw(triples(-9, (9, 9, 9))))
    assert list(plan.chunks_of(box)) == [index for index in chunks(plan) if touch(plan.chunk_box(index), box)]
    assert not list(plan.chunks_of(Box(box.start, box.start)))


@given(plans())
@settings(deadline=None)
def test_the_blocks_of_a_tile_are_those_of_the_grid_that_reach_into_it(plan: RunPlan) -> None:
    total = 0
    for tile in plan.tiles:
        columns = list(plan.columns_of(tile))
        blocks = [plan.block((z, column.y, column.x)) for column in columns for z in column.starts]
        assert sorted(box.start for box in blocks) == [box.start for box in plan.grid if touch(box, tile)]
        # A voxel's blocks come in the same order whatever the tile.
        assert blocks == sorted(blocks, key=lambda box: (box.start[1], box.start[2], box.start[0]))
        assert {box.shape for box in blocks} == {plan.grid.patch}
        total += len(blocks)
    assert plan.blocks == total


def most_alive(spans: list[tuple[int, int]]) -> int:
    """Most spans (first, last) that hold the same number."""
    return max(sum(first <= now <= last for first, last in spans) for now, _ in spans)


def most_chunks_alive(plan: RunPlan, tile: Box) -> int:
    """Most chunks between their first block and their last, both included, found by going through all blocks."""
    order = [plan.block((z, column.y, column.x)) for column in plan.columns_of(tile) for z in column.starts]
    spans: dict[Triple, tuple[int, int]] = {}
    for now, block in enumerate(order):
        for index in plan.chunks_of(block.intersect(tile)):
            spans[index] = (spans.get(index, (now, now))[0], now)
    return most_alive(list(spans.values()))


def most_columns_of_chunks_alive(plan: RunPlan, tile: Box) -> int:
    """The same for all chunks above each other together, by columns of blocks."""
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    layers = len({index[0] for index in plan.chunks_of(tile)})
    for now, column in enumerate(plan.columns_of(tile)):
        block = plan.block((0, column.y, column.x))
        flat = Box((tile.start[0], *block.start[1:]), (tile.stop[0], *block.stop[1:])).intersect(tile)
        for _, j, k in plan.chunks_of(flat):
            spans[j, k] = (spans.get((j, k), (now, now))[0], now)
    return layers * most_alive(list(spans.values()))


@given(plans())
@settings(deadline=None, max_examples=200)
def test_live_chunks_are_as_many_as_going_through_the_blocks_finds(plan: RunPlan) -> None:
    assert plan.live_chunks == max(most_columns_of_chunks_alive(plan, tile) for tile in plan.tiles)
    assert plan.live_chunks >= max(most_chunks_alive(plan, tile) for tile in plan.tiles)
    assert plan.sum_bytes == plan.live_chunks * math.prod(plan.chunk) * _BYTES


@st.composite
def orders(draw: st.DrawFn) -> tuple[Triple, Triple, Triple, Box, Triple]:
    """Volume, patch, stride, region and chunk."""
    patch = draw(triples(1, (4, 7, 7)))
    shape = draw(triples(1, (16, 40, 40)))
    return shape, patch, draw(triples(1, patch)), draw(boxes(shape)), draw(triples(1, (5, 9, 9)))


def least_memory(order: tuple[Triple, Triple, Triple, Box, Triple]) -> int:
    """Bytes for tiles of one chunk along z and x."""
    shape, patch, stride, region, chunk = order
    plan = make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=_PLENTY)
    return replace(plan, tile=(plan.chunk[0], plan.tile[1], plan.chunk[2])).sum_bytes


@given(orders(), st.data())
@settings(deadline=None)
def test_a_plan_keeps_to_its_memory_and_repeats_no_more_work_the_more_there_is(
    order: tuple[Triple, Triple, Triple, Box, Triple], data: st.DataObject
) -> None:
    shape, patch, stride, region, chunk = order
    whole = make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=_PLENTY)
    assert whole.tiles == (region,)
    assert whole.blocks == sum(touch(box, region) for box in whole.grid)
    least = least_memory(order)
    allowed = sorted(data.draw(st.lists(st.integers(least, max(least, whole.sum_bytes)), min_size=2, max_size=4)))
    made = [make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=bytes_) for bytes_ in allowed]
    for plan, bytes_ in zip(made, allowed, strict=True):
        assert plan.sum_bytes <= bytes_
        assert (plan.grid, plan.region) == (PatchGrid(shape, patch, stride), region)
        assert plan.chunk == tuple(min(pair) for pair in zip(chunk, region.shape, strict=True))
        assert all(extent % n == 0 for extent, n in zip(plan.tile, plan.chunk, strict=True))
        # Cuts along y would save no memory.
        assert plan.tile[1] >= region.shape[1]
    assert [plan.blocks for plan in made] == sorted((plan.blocks for plan in made), reverse=True)
    assert made[-1].blocks >= whole.blocks
    with pytest.raises(GeometryError, match="--memory"):
        make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=least - 1)


@given(orders(), st.integers(1, 9))
@settings(deadline=None)
def test_there_are_tiles_for_all_who_share_them(order: tuple[Triple, Triple, Triple, Box, Triple], shares: int) -> None:
    shape, patch, stride, region, chunk = order
    plan = make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=_PLENTY, shares=shares)
    layers, _, columns = plan.chunk_counts
    most = layers * columns
    assert len(plan.tiles) >= min(shares, most)
    # Each has as many as the others, or so many that one more hardly counts.
    assert len(plan.tiles) % shares == 0 or len(plan.tiles) >= min(4 * shares, most)
    alone = make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=_PLENTY)
    assert plan.blocks >= alone.blocks
    if shares == 1:
        assert plan == alone


@given(orders(), st.integers(1, 9), st.integers(1, 100))
@settings(deadline=None)
def test_no_other_tiles_that_fit_repeat_less_work(
    order: tuple[Triple, Triple, Triple, Box, Triple], shares: int, percent: int
) -> None:
    shape, patch, stride, region, chunk = order
    clipped = as_triple([min(pair) for pair in zip(chunk, region.shape, strict=True)], "chunk")
    counts = as_triple([-(-extent // n) for extent, n in zip(region.shape, clipped, strict=True)], "counts")
    grid, most = PatchGrid(shape, patch, stride), math.prod(counts)
    every = list(_candidates(grid, region, clipped, counts, "gaussian", shared=shares > 1))
    memory = max(plan.sum_bytes for plan in every) * percent // 100
    fitting = [
        plan
        for plan in every
        if plan.sum_bytes <= memory
        and plan.tile_count >= min(shares, most)
        and (plan.tile_count % shares == 0 or plan.tile_count >= min(4 * shares, most))
    ]
    if not fitting:
        with pytest.raises(GeometryError, match="--memory"):
            make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=memory, shares=shares)
        return
    made = make_plan(shape, patch, stride=stride, region=region, chunk=chunk, memory=memory, shares=shares)
    assert made == min(fitting, key=lambda plan: (plan.blocks, plan.tile_count))


def test_too_little_memory_is_refused_with_what_it_takes() -> None:
    options = {"patch": (16, 128, 128), "chunk": (32, 128, 128), "shape": (100, 1000, 700)}
    with pytest.raises(GeometryError) as caught:
        make_plan(**options, memory=1 << 20)  # type: ignore[arg-type]
    text = str(caught.value)
    found = re.search(r"take 0\.\d+ GiB at least, and 0\.0010 GiB are allowed \(allow (0\.\d+) GiB or more\)", text)
    assert found, text
    assert caught.value.where == "--memory"
    figure = int(float(found[1]) * 2**30)
    least = make_plan(**options, memory=figure).sum_bytes  # type: ignore[arg-type]
    assert least <= figure
    with pytest.raises(GeometryError):
        make_plan(**options, memory=least - 1)  # type: ignore[arg-type]


def test_a_large_volume_is_planned_in_bounded_memory_with_little_repeated_work() -> None:
    plan = make_plan((6000, 30000, 30000), (16, 256, 256), chunk=(64, 256, 256), memory=4 << 30)
    assert plan.sum_bytes <= 4 << 30
    assert plan.blocks <= 1.2 * len(plan.grid)


@pytest.mark.parametrize(
    "region", [Box((0, 0, 0), (0, 4, 4)), Box((0, 0, 0), (11, 4, 4)), Box((-1, 0, 0), (4, 4, 4))], ids=str
)
def test_a_region_that_is_empty_or_reaches_outside_is_refused(region: Box) -> None:
    with pytest.raises(GeometryError, match=r"region: .* is empty or reaches outside the volume of shape \(10, 10, 10"):
        make_plan((10, 10, 10), (4, 4, 4), region=region, chunk=(5, 5, 5))


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(GeometryError, match="stride 5"):
        make_plan((10, 10, 10), (4, 4, 4), stride=(2, 5, 2), chunk=(5, 5, 5))


@pytest.mark.parametrize(("patch", "stride"), [((16, 256, 256), (8, 128, 128)), ((1, 3, 2), (1, 1, 1))])
def test_half_a_patch_is_the_stride_unless_told_otherwise(patch: Triple, stride: Triple) -> None:
    assert default_stride(patch) == stride
    assert make_plan((20, 300, 300), patch, chunk=(8, 64, 64)).grid.stride == stride


@given(plans())
@settings(deadline=None)
def test_a_plan_survives_json(plan: RunPlan) -> None:
    assert RunPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_is_plain_data() -> None:
    plan = make_plan((20, 60, 50), (4, 16, 16), region=Box((2, 3, 4), (20, 60, 50)), chunk=(8, 16, 16), shares=3)
    data = json.loads(json.dumps(plan.to_dict()))
    assert (data["volume"], data["patch"], data["stride"]) == ([20, 60, 50], [4, 16, 16], [2, 8, 8])
    assert (data["region"], data["chunk"], data["blending"]) == ("2:20,3:60,4:50", [8, 16, 16], "gaussian")
    assert (data["tiles"], data["chunks"]) == (len(plan.tiles), 3 * 4 * 3)
    assert (data["blocks"], data["sum_bytes"]) == (plan.blocks, plan.sum_bytes)
    assert data["blocks"] > data["blocks_without_tiles"]
