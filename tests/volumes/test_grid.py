import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid, mirror_pad

quick = settings(max_examples=60, deadline=None)
small = st.tuples(*[st.integers(1, 14)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    patch = draw(st.tuples(*[st.integers(1, 7)] * 3))
    stride = tuple(draw(st.integers(1, extent)) for extent in patch)
    return PatchGrid(draw(small), patch, stride)


@quick
@given(grids())
def test_every_voxel_is_covered_and_every_block_lies_inside_the_padded_volume(grid: PatchGrid) -> None:
    covered = np.zeros(grid.padded, bool)
    for box in grid:
        assert box.shape == grid.patch
        assert Box.from_shape(grid.padded).contains(box)
        covered[box.slices] = True
    assert covered[Box.from_shape(grid.volume).slices].all()


@quick
@given(grids())
def test_blocks_are_unique_and_ordered_with_z_slowest(grid: PatchGrid) -> None:
    starts = [box.start for box in grid]
    assert starts == sorted(set(starts))
    assert len(starts) == len(grid) == np.prod(grid.counts)
    assert [grid[index].start for index in range(len(grid))] == starts


@quick
@given(grids())
def test_only_the_last_block_of_an_axis_leaves_the_stride_and_it_ends_at_the_border(grid: PatchGrid) -> None:
    for starts, extent, patch, stride in zip(grid.starts, grid.volume, grid.patch, grid.stride, strict=True):
        assert starts[0] == 0
        assert starts[:-1] == tuple(range(0, stride * (len(starts) - 1), stride))
        assert starts[-1] == max(extent - patch, 0)


@quick
@given(grids())
def test_an_axis_shorter_than_the_patch_holds_one_block(grid: PatchGrid) -> None:
    for starts, extent, patch in zip(grid.starts, grid.volume, grid.patch, strict=True):
        if extent <= patch:
            assert starts == (0,)


@quick
@given(grids())
def test_grid_survives_json(grid: PatchGrid) -> None:
    assert PatchGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@quick
@given(grids(), st.data())
def test_blocks_covering_a_box_are_those_that_share_a_voxel_with_it(grid: PatchGrid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, extent - 1)) for extent in grid.volume)
    stop = tuple(data.draw(st.integers(first + 1, extent)) for first, extent in zip(start, grid.volume, strict=True))
    box = Box(start, stop)
    z, y, x = grid.covering(box)
    _, rows, columns = grid.counts
    found = [(i * rows + j) * columns + k for i in z for j in y for k in x]
    assert found == [index for index, block in enumerate(grid) if block.intersect(box).size]


def test_output_voxels_ignore_overlap_and_patch_voxels_count_it() -> None:
    grid = PatchGrid((10, 10, 10), (10, 10, 8), (10, 10, 4))
    assert grid.starts == ((0,), (0,), (0, 2))
    assert grid.output_voxels == 1000
    assert grid.patch_voxels == 1600


def test_block_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="grid of 1"):
        PatchGrid((4, 4, 4), (4, 4, 4), (4, 4, 4))[1]


@pytest.mark.parametrize(
    ("volume", "patch", "stride", "says"),
    [
        ((4, 4, 4), (2, 2, 2), (3, 2, 2), "axis z: stride 3 is larger than the patch 2"),
        ((4, 4, 4), (2, 2, 2), (2, 0, 2), "axis y: stride 0 does not advance"),
        ((4, 4, 4), (2, 2, 0), (2, 2, 1), "axis x.*at least 1 voxel"),
        ((4, 0, 4), (2, 2, 2), (2, 2, 2), "axis y.*at least 1 voxel"),
        ((4, 4), (2, 2), (2, 2), "volume must be three whole numbers"),
    ],
)
def test_grid_that_makes_no_sense_is_refused(volume: Triple, patch: Triple, stride: Triple, says: str) -> None:
    with pytest.raises(GeometryError, match=says):
        PatchGrid(volume, patch, stride)


def test_grid_from_incomplete_json_names_the_missing_entry() -> None:
    with pytest.raises(GeometryError, match="stride"):
        PatchGrid.from_json({"volume": [1, 1, 1], "patch": [1, 1, 1]})


@quick
@given(st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(0, 13)] * 3), st.booleans())
def test_mirroring_reflects_back_and_forth_about_the_last_voxel(shape: Triple, more: Triple, channels: bool) -> None:
    block = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    if channels:
        block = np.stack([block, block + 1])
    target = tuple(a + b for a, b in zip(shape, more, strict=True))
    expected = block
    for axis, extent, wanted in zip((-3, -2, -1), shape, target, strict=True):
        period = max(2 * (extent - 1), 1)
        index = [min(i % period, period - i % period) if extent > 1 else 0 for i in range(wanted)]
        expected = np.take(expected, index, axis=axis)
    padded = mirror_pad(block, target)
    assert padded.dtype == block.dtype
    np.testing.assert_array_equal(padded, expected)


def test_mirroring_returns_a_block_of_the_right_shape_itself() -> None:
    block = np.ones((2, 3, 4))
    assert mirror_pad(block, (2, 3, 4)) is block


@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (5, 2, 2)])
def test_mirroring_refuses_what_it_cannot_enlarge(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError):
        mirror_pad(np.zeros(shape), (4, 4, 4))
