import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.blending import BlendAccumulator, make_weights
from fgnet.volumes.errors import DecodingError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box

KINDS = ["gaussian", "bump", "constant"]
DTYPES = ["uint8", "float16", "uint16", "float32"]
PATCH = (3, 4, 5)


def blend_reference(patches, starts, box, weights):
    """The definition in NumPy, in float64: patches of any dtype in; float affinities of the box out."""
    dense = weights.dense().astype(np.float64)
    low, high = (
        np.min([*starts, box.start], axis=0),
        np.max(np.add([*starts, box.start], max(*PATCH, *box.shape)), axis=0),
    )
    sums, weight_sums = np.zeros((3, *(high - low))), np.zeros(high - low)
    for patch, start in zip(patches, starts, strict=True):
        at = tuple(slice(s - o, s - o + n) for s, o, n in zip(start, low, PATCH, strict=True))
        sums[(slice(None), *at)] += dense * as_probability(patch)
        weight_sums[at] += dense
    inside = tuple(slice(s - o, e - o) for s, o, e in zip(box.start, low, box.stop, strict=True))
    blended = np.divide(sums, weight_sums, out=np.zeros_like(sums), where=weight_sums > 0)
    return blended[(slice(None), *inside)], weight_sums[inside] > 0


def as_probability(patch):
    if patch.dtype == np.uint16:
        patch = patch.view(np.float16)
    return patch.astype(np.float64) / (255 if patch.dtype == np.uint8 else 1)


def as_dtype(probability, dtype):
    if dtype == "uint8":
        return np.rint(probability * 255).astype(np.uint8)
    if dtype == "uint16":
        return probability.astype(np.float16).view(np.uint16)
    return probability.astype(dtype)


@st.composite
def blends(draw, kinds=KINDS, dtypes=DTYPES):
    """Patches at random places, also outside of the box, each with a dtype of its own."""
    starts = draw(st.lists(st.tuples(*[st.integers(-5, 8)] * 3), min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    patches = [as_dtype(rng.random((3, *PATCH)), draw(st.sampled_from(dtypes))) for _ in starts]
    origin = draw(st.tuples(*[st.integers(-3, 3)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    box = Box(origin, tuple(np.add(origin, shape).tolist()))
    return patches, starts, box, make_weights(draw(st.sampled_from(kinds)), PATCH), draw(st.integers(1, 3))


def blend(patches, starts, box, weights, threads=1):
    accumulator = BlendAccumulator(3, box, weights, threads=threads)
    for patch, start in zip(patches, starts, strict=True):
        accumulator.add(patch, start)
    return accumulator.finish()


@given(blends())
@settings(max_examples=200, deadline=None)
def test_blending_stays_within_one_level_of_its_definition(case):
    *arguments, threads = case
    expected, covered = blend_reference(*arguments)
    result = blend(*arguments, threads)
    assert result.dtype == np.uint8
    # Rounding costs half a level; float32 sums next to nothing.
    assert np.abs(result - expected * 255).max() <= 0.5 + 1e-2
    assert not result[:, ~covered].any()


@given(blends(kinds=["constant"], dtypes=["uint8"]))
@settings(max_examples=100, deadline=None)
def test_8_bit_patches_under_constant_weights_blend_exactly(case):
    *arguments, threads = case
    expected, _ = blend_reference(*arguments)
    # The means are fractions with small denominators: 1e-6 only undoes the rounding of float64.
    np.testing.assert_array_equal(blend(*arguments, threads), np.floor(expected * 255 + 0.5 + 1e-6))


@given(blends())
@settings(max_examples=50, deadline=None)
def test_threads_do_not_change_a_bit(case):
    *arguments, _ = case
    np.testing.assert_array_equal(blend(*arguments, threads=3), blend(*arguments, threads=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_that_agree_come_out_unchanged(kind, dtype):
    volume = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 10)) / 255
    box = Box.from_shape((8, 9, 10))
    starts = [(z, y, x) for z in (0, 2, 4, 5) for y in (0, 2, 4, 5) for x in (0, 3, 5)]
    patches = [
        as_dtype(volume[(slice(None), *(slice(s, s + n) for s, n in zip(start, PATCH, strict=True)))], dtype)
        for start in starts
    ]
    np.testing.assert_array_equal(blend(patches, starts, box, make_weights(kind, PATCH)), np.rint(volume * 255))


@given(hnp.arrays(np.float16, (1, 2, 3, 17), elements=st.floats(0, 1, width=16)))
@settings(max_examples=100, deadline=None)
def test_every_half_precision_probability_is_read_exactly(patch):
    accumulators = [BlendAccumulator(1, Box.from_shape((2, 3, 17)), make_weights("constant", (2, 3, 17))) for _ in "ab"]
    accumulators[0].add(patch, (0, 0, 0))
    accumulators[1].add(patch.astype(np.float32), (0, 0, 0))
    np.testing.assert_array_equal(accumulators[0]._sums, accumulators[1]._sums)


def test_negative_zero_in_half_precision_is_zero():
    patch = np.full((3, *PATCH), -0.0, np.float16)
    assert not blend([patch], [(0, 0, 0)], Box.from_shape(PATCH), make_weights("gaussian", PATCH)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_no_probability_are_reported(dtype, value, kind):
    patch = np.full((3, *PATCH), 0.5, dtype)
    patch[1, 1, 2, 2] = value
    other = np.full((3, *PATCH), 0.5, dtype)
    with pytest.raises(DecodingError, match=r"box 0:3,0:4,0:5: 1 blended affinities are NaN or lie outside"):
        blend([patch], [(0, 0, 0)], Box.from_shape(PATCH), make_weights(kind, PATCH))
    if not np.isfinite(value):
        with pytest.raises(DecodingError, match="NaN"):
            blend([patch, other], [(0, 0, 0), (0, 0, 1)], Box.from_shape(PATCH), make_weights(kind, PATCH))


@pytest.mark.parametrize("patch", [(1, 1, 1), (3, 4, 5), (2, 1, 8), (32, 160, 160)])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_their_formulas(kind, patch):
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


def test_a_cleared_accumulator_serves_the_next_box():
    weights = make_weights("gaussian", PATCH)
    accumulator = BlendAccumulator(3, Box.from_shape(PATCH), weights)
    patch = np.full((3, *PATCH), 200, np.uint8)
    accumulator.add(patch, (0, 0, 0))
    accumulator.clear(Box((3, 0, 0), (6, 4, 5)))
    accumulator.add(patch // 2, (3, 0, 0))
    out = np.empty((3, *PATCH), np.uint8)
    assert accumulator.finish(out) is out
    np.testing.assert_array_equal(out, 100)
    with pytest.raises(VolumeError, match="has shape"):
        accumulator.clear(Box.from_shape((1, 1, 1)))


@pytest.mark.parametrize(
    "patch", [np.zeros((2, *PATCH), np.uint8), np.zeros((3, 3, 4, 6), np.uint8), np.zeros((3, *PATCH))]
)
def test_patches_of_another_shape_or_dtype_are_refused(patch):
    accumulator = BlendAccumulator(3, Box.from_shape(PATCH), make_weights("gaussian", PATCH))
    with pytest.raises(VolumeError, match=r"patch at \(0, 1, 2\)"):
        accumulator.add(patch, (0, 1, 2))


def test_an_output_of_another_layout_is_refused():
    accumulator = BlendAccumulator(3, Box.from_shape(PATCH), make_weights("gaussian", PATCH))
    with pytest.raises(VolumeError, match="contiguous"):
        accumulator.finish(np.zeros((5, 4, 3, 3), np.uint8).T)


def test_unknown_weights_and_empty_patches_are_refused():
    with pytest.raises(GeometryError, match="gaussian, bump, constant"):
        make_weights("hann", PATCH)
    with pytest.raises(GeometryError, match="no weights"):
        make_weights("gaussian", (0, 4, 5))
