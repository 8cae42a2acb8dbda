"""Blending over grids of patches, chunk by chunk, against its definition in NumPy and float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.blending import BlendWeights, WeightKind, WeightTotals, add_patch, finish_chunk, make_weights
from fgnet.volumes.errors import DecodingError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid

Array = npt.NDArray[Any]

KINDS: list[WeightKind] = ["gaussian", "bump", "constant"]
DTYPES = ["uint8", "float16", "uint16", "float32"]
PATCH = (3, 4, 5)


@dataclass(frozen=True, eq=False)
class Blend:
    """Predictions of all patches of a grid, and the region that is asked for."""

    grid: PatchGrid
    weights: BlendWeights
    patches: list[Array]
    region: Box

    @property
    def totals(self) -> WeightTotals:
        return WeightTotals.of(self.weights, self.grid)

    def chunk(self, box: Box) -> npt.NDArray[np.uint8]:
        """Affinities of a box."""
        sums = np.zeros((3, *box.shape), np.float32)
        for patch, block in zip(self.patches, self.grid, strict=True):
            add_patch(sums, box, patch, block.start, self.weights)
        affinities = finish_chunk(sums, box, self.totals)
        assert not sums.any()
        return affinities

    def definition(self) -> npt.NDArray[np.float64]:
        """Sums of the weighted predictions over sums of the weights, in [0, 1]."""
        dense = self.weights.dense().astype(np.float64)
        sums, totals = np.zeros((3, *self.grid.padded)), np.zeros(self.grid.padded)
        for patch, block in zip(self.patches, self.grid, strict=True):
            sums[(slice(None), *block.slices)] += dense * as_probability(patch)
            totals[block.slices] += dense
        blended: npt.NDArray[np.float64] = (sums / totals)[(slice(None), *self.region.slices)]
        return blended


def as_probability(patch: Array) -> npt.NDArray[np.float64]:
    if patch.dtype == np.uint16:
        patch = patch.view(np.float16)
    return patch.astype(np.float64) / (255 if patch.dtype == np.uint8 else 1)


def as_dtype(probability: Array, dtype: str) -> Array:
    if dtype == "uint8":
        return np.rint(probability * 255).astype(np.uint8)
    if dtype == "uint16":
        return probability.astype(np.float16).view(np.uint16)
    return probability.astype(dtype)


def triples(least: int, most: Triple) -> st.SearchStrategy[Triple]:
    return st.tuples(*(st.integers(least, extent) for extent in most))


@st.composite
def boxes(draw: st.DrawFn, shape: Triple) -> Box:
    """Boxes inside a volume that hold a voxel."""
    first = [draw(st.integers(0, extent - 1)) for extent in shape]
    return Box(first, [draw(st.integers(low + 1, extent)) for low, extent in zip(first, shape, strict=True)])  # type: ignore[arg-type]


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    """Volumes of any size, also smaller than a patch, with any stride."""
    patch = draw(triples(1, (4, 6, 9)))
    return PatchGrid(draw(triples(1, (9, 12, 20))), patch, draw(triples(1, patch)))


@st.composite
def blends(draw: st.DrawFn, kinds: list[WeightKind] = KINDS, dtypes: list[str] = DTYPES) -> Blend:
    grid = draw(grids())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Also probabilities that are 0 or 1, and patches that disagree as much as they can.
    patches = [
        as_dtype(np.clip(rng.random((3, *grid.patch)) * 1.5 - 0.25, 0, 1), dtypes[rng.integers(len(dtypes))])
        for _ in range(len(grid))
    ]
    return Blend(grid, make_weights(draw(st.sampled_from(kinds)), grid.patch), patches, draw(boxes(grid.volume)))


@given(blends())
@settings(max_examples=150, deadline=None)
def test_blending_stays_within_one_level_of_its_definition(case: Blend) -> None:
    result = case.chunk(case.region)
    assert result.dtype == np.uint8
    # Rounding costs half a level; float32 sums next to nothing.
    assert np.abs(result - case.definition() * 255).max() <= 0.51


@given(blends(kinds=["constant"], dtypes=["uint8"]))
@settings(max_examples=100, deadline=None)
def test_8_bit_patches_under_constant_weights_blend_exactly(case: Blend) -> None:
    sums, counts = np.zeros((3, *case.grid.padded), int), np.zeros(case.grid.padded, int)
    for patch, block in zip(case.patches, case.grid, strict=True):
        sums[(slice(None), *block.slices)] += patch
        counts[block.slices] += 1
    means = (2 * sums + counts) // (2 * counts)
    np.testing.assert_array_equal(case.chunk(case.region), means[(slice(None), *case.region.slices)])


@given(blends(), st.data())
@settings(max_examples=100, deadline=None)
def test_chunks_of_any_shape_give_what_one_chunk_of_the_whole_region_gives(case: Blend, data: st.DataObject) -> None:
    region = case.region
    chunk = data.draw(triples(1, region.shape))
    expected, found = case.chunk(region), np.zeros((3, *region.shape), np.uint8)
    ranges = (range(a, b, n) for a, b, n in zip(region.start, region.stop, chunk, strict=True))
    for start in itertools.product(*ranges):
        box = Box.from_shape(chunk).shift(start).intersect(region)
        found[(slice(None), *box.shift([-first for first in region.start]).slices)] = case.chunk(box)
    np.testing.assert_array_equal(found, expected)


@given(grids(), st.sampled_from(KINDS), st.data())
@settings(max_examples=150, deadline=None)
def test_totals_are_what_the_weights_of_all_patches_add_up_to(
    grid: PatchGrid, kind: WeightKind, data: st.DataObject
) -> None:
    weights = make_weights(kind, grid.patch)
    added = np.zeros(grid.padded)
    for block in grid:
        added[block.slices] += weights.dense()
    box = data.draw(boxes(grid.padded))
    totals = WeightTotals.of(weights, grid).dense(box)
    assert totals.dtype == np.float32
    np.testing.assert_allclose(totals, added[box.slices], rtol=1e-5)


@given(blends(), st.data())
@settings(max_examples=50, deadline=None)
def test_a_chunks_memory_serves_the_next_one_of_its_shape(case: Blend, data: st.DataObject) -> None:
    shape = data.draw(triples(1, case.grid.padded))
    sums, out = np.zeros((3, *shape), np.float32), np.full((3, *shape), 99, np.uint8)
    for _ in range(2):
        start = data.draw(st.tuples(*(st.integers(0, n - m) for n, m in zip(case.grid.padded, shape, strict=True))))
        box = Box.from_shape(shape).shift(start)
        for patch, block in zip(case.patches, case.grid, strict=True):
            add_patch(sums, box, patch, block.start, case.weights)
        assert finish_chunk(sums, box, case.totals, out) is out
        np.testing.assert_array_equal(out, case.chunk(box))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_that_agree_come_out_unchanged(kind: WeightKind, dtype: str) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 10)) / 255
    grid = PatchGrid((8, 9, 10), PATCH, (2, 2, 3))
    patches = [as_dtype(volume[(slice(None), *block.slices)], dtype) for block in grid]
    whole = Box.from_shape(grid.volume)
    found = Blend(grid, make_weights(kind, PATCH), patches, whole).chunk(whole)
    np.testing.assert_array_equal(found, np.rint(volume * 255))


@given(hnp.arrays(np.float16, (1, 2, 3, 17), elements=st.floats(0, 1, width=16)))
@settings(max_examples=100, deadline=None)
def test_every_half_precision_probability_is_read_exactly(patch: Array) -> None:
    box, weights = Box.from_shape((2, 3, 17)), make_weights("constant", (2, 3, 17))
    halves, singles = np.zeros((2, 1, 2, 3, 17), np.float32)
    add_patch(halves, box, patch, (0, 0, 0), weights)
    add_patch(singles, box, patch.astype(np.float32), (0, 0, 0), weights)
    np.testing.assert_array_equal(halves, singles)


def one_patch(patch: Array, kind: WeightKind) -> Blend:
    return Blend(PatchGrid(PATCH, PATCH, PATCH), make_weights(kind, PATCH), [patch], Box.from_shape(PATCH))


def test_negative_zero_in_half_precision_is_zero() -> None:
    case = one_patch(np.full((3, *PATCH), -0.0, np.float16), "gaussian")
    assert not case.chunk(case.region).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_no_probability_are_reported(dtype: Any, value: float, kind: WeightKind) -> None:
    patch = np.full((3, *PATCH), 0.5, dtype)
    patch[1, 1, 2, 2] = value
    alone = one_patch(patch, kind)
    with pytest.raises(DecodingError, match=r"box 0:3,0:4,0:5: 1 blended affinities are NaN or lie outside"):
        alone.chunk(alone.region)
    if not np.isfinite(value):
        grid = PatchGrid((3, 4, 6), PATCH, (3, 4, 1))
        whole = Box.from_shape(grid.volume)
        two = Blend(grid, make_weights(kind, PATCH), [patch, np.full((3, *PATCH), 0.5, dtype)], whole)
        with pytest.raises(DecodingError, match="NaN"):
            two.chunk(whole)


@pytest.mark.parametrize("patch", [(1, 1, 1), (3, 4, 5), (2, 1, 8), (32, 160, 160)])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_their_formulas(kind: WeightKind, patch: Triple) -> None:
    if kind == "gaussian":
        axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in patch]
        radius = sum(u**2 for u in np.meshgrid(*axes, indexing="ij"))
        expected = 1e-4 + np.exp(-radius / (2 * 0.2**2))
    elif kind == "bump":
        axes = [np.arange(1, n + 1) / (n + 1) for n in patch]
        exponent = -sum((u * (1 - u)) ** -1.5 for u in np.meshgrid(*axes, indexing="ij"))
        expected = 1e-4 + np.exp(exponent - exponent.max())
    else:
        expected = np.ones(patch)
    weights = make_weights(kind, patch)
    assert weights.shape == patch
    np.testing.assert_allclose(weights.dense(), expected, rtol=1e-5)
    assert weights.dense().min() > 0


@pytest.mark.parametrize(
    "patch", [np.zeros((2, *PATCH), np.uint8), np.zeros((3, 3, 4, 6), np.uint8), np.zeros((3, *PATCH))]
)
def test_patches_of_another_shape_or_dtype_are_refused(patch: Array) -> None:
    sums = np.zeros((3, *PATCH), np.float32)
    with pytest.raises(VolumeError, match=r"patch at \(0, 1, 2\)"):
        add_patch(sums, Box.from_shape(PATCH), patch, (0, 1, 2), make_weights("gaussian", PATCH))


@pytest.mark.parametrize(
    "out", [np.zeros((5, 4, 3, 3), np.uint8).T, np.zeros((3, 3, 4, 4), np.uint8), np.zeros((3, *PATCH), np.int8)]
)
def test_an_output_of_another_shape_dtype_or_layout_is_refused(out: Array) -> None:
    case = one_patch(np.zeros((3, *PATCH), np.uint8), "gaussian")
    with pytest.raises(VolumeError, match="contiguous"):
        finish_chunk(np.zeros((3, *PATCH), np.float32), case.region, case.totals, out)


def test_sums_of_another_shape_than_their_box_are_refused() -> None:
    case, sums = one_patch(np.zeros((3, *PATCH), np.uint8), "gaussian"), np.zeros((3, 3, 4, 4), np.float32)
    with pytest.raises(VolumeError, match=r"box 0:3,0:4,0:5: the sums have shape"):
        add_patch(sums, case.region, case.patches[0], (0, 0, 0), case.weights)
    with pytest.raises(VolumeError, match=r"box 0:3,0:4,0:5: the sums have shape"):
        finish_chunk(sums, case.region, case.totals)


def test_unknown_weights_and_empty_patches_are_refused() -> None:
    with pytest.raises(GeometryError, match="gaussian, bump, constant"):
        make_weights("hann", PATCH)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="no weights"):
        make_weights("gaussian", (0, 4, 5))
