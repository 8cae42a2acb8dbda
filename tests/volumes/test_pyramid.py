from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.pyramid import downsample, plan_levels
from fgnet.volumes.reading import Space, open_volume
from fgnet.volumes.writing import create_image, create_labels

quick = settings(max_examples=40, deadline=None)
steps = st.tuples(*[st.sampled_from([1, 2])] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def test_sections_are_halved_in_plane_until_the_voxels_are_about_isotropic() -> None:
    levels = plan_levels((100, 8000, 8000), Space((40, 4, 4)))
    assert [level.step for level in levels] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert levels[-1].shape == (50, 500, 500)
    assert levels[-1].voxel_size == (80, 64, 64)


def test_isotropic_volumes_are_halved_along_all_axes_and_small_ones_not_at_all() -> None:
    assert [level.step for level in plan_levels((600, 600, 600), Space((10, 10, 10)))] == [(1, 1, 1), (2, 2, 2)]
    assert len(plan_levels((5000, 512, 512), Space((10, 10, 10)))) == 1


@quick
@given(
    st.tuples(st.integers(1, 50), st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(*[st.floats(0.1, 100)] * 3),
)
def test_every_level_keeps_the_far_border_and_the_centre_of_its_first_voxel(
    shape: Triple, size: tuple[float, ...]
) -> None:
    levels = plan_levels(shape, Space((size[0], size[1], size[2]), (7, 8, 9)))
    assert max(levels[-1].shape[1:]) <= 512
    for axis in range(3):
        factor = 1
        for level in levels:
            factor *= level.step[axis]
            assert level.shape[axis] * factor >= shape[axis] > (level.shape[axis] - 1) * factor
            assert level.voxel_size[axis] == pytest.approx(size[axis] * factor)
            assert level.offset[axis] == pytest.approx(7 + axis + (factor - 1) / 2 * size[axis])


def merged_plainly(block: np.ndarray, step: Triple, method: str) -> np.ndarray:
    """One window at a time; voxels past the border repeat the last one."""
    out = np.empty([-(-n // s) for n, s in zip(block.shape, step, strict=True)], block.dtype)
    for index in np.ndindex(out.shape):
        window = [
            block[tuple(min(i * s + d, n - 1) for i, s, d, n in zip(index, step, delta, block.shape, strict=True))]
            for delta in np.ndindex(step)
        ]
        if method == "mode":
            counts = Counter(int(value) for value in window)
            out[index] = next(value for value in window if counts[int(value)] == max(counts.values()))
        else:
            mean = np.mean(np.array(window, np.float64))
            out[index] = np.rint(mean) if block.dtype.kind == "u" else mean
    return out


@quick
@given(shapes, steps, st.integers(0, 99))
def test_labels_take_the_most_frequent_id(shape: Triple, step: Triple, seed: int) -> None:
    block = np.random.default_rng(seed).integers(2**60, 2**60 + 4, shape, np.uint64)
    np.testing.assert_array_equal(downsample(block, step, "mode"), merged_plainly(block, step, "mode"))


@quick
@given(shapes, steps, st.integers(0, 99), st.sampled_from(["u1", "f2", "f4"]))
def test_images_are_averaged(shape: Triple, step: Triple, seed: int, dtype: str) -> None:
    block = (np.random.default_rng(seed).random(shape) * 255).astype(dtype)
    merged = downsample(block, step, "mean")
    assert merged.dtype == block.dtype
    np.testing.assert_allclose(merged, merged_plainly(block, step, "mean"), rtol=2e-3)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_pyramid_built_out_of_core_equals_the_one_built_in_memory(
    tmp_path: Path, zarr_format: int, workers: int
) -> None:
    shape, space = (9, 70, 61), Space((40, 8, 8), (5, 6, 7))
    labels = np.random.default_rng(0).integers(0, 5, shape, np.uint64)
    image = np.random.default_rng(1).random((2, *shape), np.float32)
    for name, data, method in (("labels", labels, "mode"), ("image", image, "mean")):
        make = create_labels if method == "mode" else create_image
        extra = {} if method == "mode" else {"axes": "czyx"}
        path = tmp_path / f"{name}.zarr"
        with make(  # type: ignore[operator]
            path, shape=data.shape, dtype=data.dtype, space=space, chunks=(4, 16, 16), zarr_format=zarr_format, **extra
        ) as writer:
            writer.write(Box.from_shape(shape), data)
            writer.build_pyramid(largest=16, workers=workers)
        expected = data
        for index, level in enumerate(plan_levels(shape, space, largest=16)):
            expected = downsample(expected, level.step, method)  # type: ignore[arg-type]
            volume = open_volume(path / str(index), ndim=(data.ndim,))
            np.testing.assert_array_equal(volume.read(volume.box), expected)
            assert (volume.space.voxel_size, volume.space.offset) == (level.voxel_size, level.offset)


def test_pyramid_built_again_replaces_the_first(tmp_path: Path) -> None:
    with create_image(tmp_path / "v.zarr", shape=(2, 40, 40), dtype=np.uint8, space=Space((1, 1, 1))) as writer:
        for value in (1, 2):
            writer.write(Box.from_shape((2, 40, 40)), np.full((2, 40, 40), value, np.uint8))
            writer.build_pyramid(largest=10)
    assert (open_volume(tmp_path / "v.zarr" / "2").read((slice(0, 1),) * 3) == 2).all()
