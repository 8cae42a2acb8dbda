from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.output_store import ZarrFormat
from fgnet.volumes.reading import Volume, check_gray, check_labels, open_volume, read_gray, read_labels
from fgnet.volumes.space import UNKNOWN
from fgnet.volumes.writing import create_image, create_labels

SHAPE = (6, 20, 30)
INNER = Box((1, 2, 3), (4, 12, 23))


def volume_of(folder: Path, data: np.ndarray) -> Volume:
    path = folder / "v.zarr"
    zarr.create_array(str(path), data=data, overwrite=True)
    return open_volume(path)


@pytest.mark.parametrize("dtype", ["u2", "i2", "f4"])
def test_gray_values_are_never_rescaled_silently(tmp_path: Path, dtype: str) -> None:
    volume = volume_of(tmp_path, np.ones(SHAPE, dtype))
    with pytest.raises(VolumeError, match="expected uint8") as caught:
        read_gray(volume, INNER)
    assert "rescale" in str(caught.value.remedy)


@pytest.mark.parametrize("rescale", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_rescaling_needs_a_finite_rising_range(tmp_path: Path, rescale: tuple[float, float]) -> None:
    volume = volume_of(tmp_path, np.ones(SHAPE, np.uint8))
    with pytest.raises(VolumeError, match="cannot rescale"):
        check_gray(volume, rescale=rescale)


@settings(max_examples=25, deadline=None)
@given(low=st.integers(-300, 300), width=st.integers(1, 70000), dtype=st.sampled_from(["u1", "u2", "i2", "f4", "f8"]))
def test_rescaling_is_linear_and_clips(
    tmp_path_factory: pytest.TempPathFactory, low: int, width: int, dtype: str
) -> None:
    data = np.random.default_rng(width).integers(0, 120, (2, 3, 4)).astype(dtype)
    volume = volume_of(tmp_path_factory.mktemp("v"), data)
    gray = read_gray(volume, volume.box, rescale=(low, low + width))
    exact = np.clip((data.astype(np.float64) - low) / width, 0, 1) * 255
    assert gray.dtype == np.uint8
    assert np.abs(gray - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gray_values_that_are_not_finite_are_refused_with_their_position(tmp_path: Path, value: float) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[2, 5, 7] = value
    volume = volume_of(tmp_path, data)
    with pytest.raises(VolumeError, match=r"\(2, 5, 7\) is not a finite gray value; 1 such"):
        read_gray(volume, INNER, rescale=(0, 1))


def test_labels_are_read_as_uint64(tmp_path: Path) -> None:
    data = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    labels = read_labels(volume_of(tmp_path, data), INNER)
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels, data[INNER.slices])


def test_labels_must_be_integers_from_zero(tmp_path: Path) -> None:
    for dtype in (np.float32, np.bool_):
        with pytest.raises(VolumeError, match="expected integers"):
            check_labels(volume_of(tmp_path, np.ones(SHAPE, dtype)))
    data = np.zeros(SHAPE, np.int64)
    data[1, 2, 4] = -3
    with (
        volume_of(tmp_path, data) as volume,
        pytest.raises(VolumeError, match=r"-3 at voxel \(z, y, x\) = \(1, 2, 4\)"),
    ):
        read_labels(volume, INNER)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("inner", ["", "tissue"])
def test_an_image_is_not_taken_for_the_labels_beside_it(tmp_path: Path, zarr_format: ZarrFormat, inner: str) -> None:
    store = tmp_path / "v.zarr"
    image = store / inner
    ids = np.arange(np.prod(SHAPE), dtype=np.uint64).reshape(SHAPE)
    if inner:
        zarr.create_group(str(store), zarr_format=zarr_format)
    gray = create_image(image, shape=SHAPE, dtype=np.uint8, space=UNKNOWN, zarr_format=zarr_format)
    zarr.create_group(str(image / "labels"), zarr_format=zarr_format)
    gray.write(Box.from_shape(SHAPE), ids.astype(np.uint8))
    gray.finish()
    for name in ("cells", "neurons"):
        labels = create_labels(image / "labels" / name, shape=SHAPE, space=UNKNOWN, zarr_format=zarr_format)
        labels.write(Box.from_shape(SHAPE), ids)
        labels.finish()
    with open_volume(image) as volume:
        read_gray(volume, INNER)
        with pytest.raises(VolumeError, match="this is an image") as caught:
            read_labels(volume, INNER)
    for name in ("cells", "neurons"):
        assert str(image / "labels" / name) in str(caught.value.remedy)
        with open_volume(image / "labels" / name) as volume:
            np.testing.assert_array_equal(read_labels(volume, INNER), ids[INNER.slices])
    with open_volume(image / "0") as volume:  # who names the array means it
        assert read_labels(volume, INNER).dtype == np.uint64
