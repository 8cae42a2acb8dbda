import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from fgnet.volumes.errors import AddressError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import (
    Space,
    open_volume,
    read_gray,
    read_labels,
)

SHAPE = (6, 20, 30)
INNER = Box((1, 2, 3), (4, 12, 23))
FORMATS = ("zarr2", "zarr3", "hdf5", "tiff", "compressed tiff")


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def stored(folder: Path, form: str, data: np.ndarray, attributes: dict[str, Any] | None = None) -> str:
    """Stores an array in one of the formats and returns its address."""
    if form.startswith("zarr"):
        path = folder / f"{form}.zarr"
        group = zarr.create_group(str(path), zarr_format=int(form[-1]))  # type: ignore[arg-type]
        chunks = tuple(min(8, extent) or 1 for extent in data.shape)
        array = group.create_array("inner/a", shape=data.shape, dtype=data.dtype, chunks=chunks)
        array.attrs.update(attributes or {})
        array[...] = data
        return f"{path}/inner/a"
    if form == "hdf5":
        with h5py.File(folder / "f.h5", "w") as file:
            file.create_dataset("volumes/a", data=data).attrs.update(attributes or {})
        return f"{folder}/f.h5:volumes/a"
    import tifffile

    path = folder / f"{form.replace(' ', '_')}.tif"
    compression = "zlib" if form.startswith("compressed") else None
    tifffile.imwrite(path, data, photometric="minisblack", compression=compression)
    return str(path)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_voxels_of_a_box(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    with open_volume(stored(tmp_path, form, raw)) as volume:
        assert (volume.shape, volume.dtype, volume.box) == (SHAPE, raw.dtype, Box.from_shape(SHAPE))
        np.testing.assert_array_equal(volume.read(INNER), raw[INNER.slices])
        np.testing.assert_array_equal(volume.read((slice(None), slice(3, None), slice(0, 4))), raw[:, 3:, :4])
        assert volume.read(Box((1, 1, 1), (1, 2, 2))).shape == (0, 1, 1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [">u2", "<f4"])
def test_values_come_in_native_byte_order(tmp_path: Path, form: str, dtype: str) -> None:
    data = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    with open_volume(stored(tmp_path, form, data)) as volume:
        read = volume.read(volume.box)
    assert read.dtype == volume.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, data)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
def test_channels_come_in_front_where_four_axes_are_asked_for(tmp_path: Path, form: str) -> None:
    data = np.random.default_rng(1).random((3, *SHAPE), np.float32)
    with open_volume(stored(tmp_path, form, data), ndim=(4,)) as volume:
        np.testing.assert_array_equal(volume.read(INNER), data[(slice(None), *INNER.slices)])


def test_leading_axes_of_one_voxel_are_dropped_until_the_rank_fits(tmp_path: Path, raw: np.ndarray) -> None:
    address = stored(tmp_path, "zarr3", raw[None, None])
    volume = open_volume(address)
    assert (volume.shape, len(volume.chunks or ())) == (SHAPE, 3)
    np.testing.assert_array_equal(volume.read(INNER), raw[INNER.slices])
    assert open_volume(address, ndim=(4,)).shape == (1, *SHAPE)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
def test_voxel_size_and_offset_come_from_the_attributes(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    attributes = {"resolution": [40, 4, 4], "offset": [1480.0, 3644.0, 3644.0]}
    with open_volume(stored(tmp_path, form, raw, attributes)) as volume:
        assert volume.space == Space((40, 4, 4), (1480, 3644, 3644))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_says_nothing_has_an_unknown_space(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    with open_volume(stored(tmp_path, form, raw)) as volume:
        assert volume.space == Space((1, 1, 1), known=False)


def test_hdf5_falls_back_to_the_attributes_of_the_file(tmp_path: Path, raw: np.ndarray) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("a", data=raw).attrs["offset"] = (1, 2, 3)
        file.attrs["resolution"] = (30, 6, 6)
    with open_volume(tmp_path / "f.h5") as volume:
        assert volume.space == Space((30, 6, 6), (1, 2, 3))


def test_cremi_file_keeps_the_offset_of_labels_inside_the_padded_raw(tmp_path: Path, raw: np.ndarray) -> None:
    with h5py.File(tmp_path / "cremi.hdf", "w") as file:
        for name, data, offset in (
            ("raw", raw, (0, 0, 0)),
            ("labels/neuron_ids", raw[2:4].astype("u8"), (80, 0, 0)),
        ):
            node = file.create_dataset(f"volumes/{name}", data=data, compression="gzip")
            node.attrs.update({"resolution": (40.0, 4.0, 4.0), "offset": offset})
    with open_volume(f"{tmp_path}/cremi.hdf:volumes/labels/neuron_ids") as labels:
        assert labels.name == "neuron_ids"
        assert labels.space == Space((40, 4, 4)).shifted((2, 0, 0))
        assert read_labels(labels, labels.box).dtype == np.uint64
    with open_volume(f"{tmp_path}/cremi.hdf:volumes/raw") as gray:
        np.testing.assert_array_equal(read_gray(gray, INNER), raw[INNER.slices])


def test_hdf5_without_a_dataset_opens_the_only_one_of_the_rank_asked_for(tmp_path: Path, raw: np.ndarray) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["annotations"] = np.arange(3)
        file["main"] = raw
    with open_volume(tmp_path / "f.h5") as volume:
        assert volume.address.dataset == "main"


@pytest.mark.parametrize(
    ("holds", "names", "opened"),
    [
        ("gray", ("affinity", "volumes/Raw"), "volumes/Raw"),
        ("labels", ("a", "labels", "raw"), "labels"),
        ("labels", ("volumes/labels/neuron_ids", "volumes/raw"), "volumes/labels/neuron_ids"),
        (None, ("a", "raw"), None),
        ("gray", ("a", "labels"), None),
        ("gray", ("a/raw", "b/raw"), None),
        ("labels", ("raw", "segmentation"), None),
    ],
)
def test_of_several_hdf5_datasets_one_is_opened_for_what_it_is_called_or_none(
    tmp_path: Path, raw: np.ndarray, holds: Any, names: tuple[str, ...], opened: str | None
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in names:
            file[name] = raw
    if opened is None:
        with pytest.raises(AddressError, match=r"several datasets.*: .*uint8 of shape \(6, 20, 30\)") as caught:
            open_volume(tmp_path / "f.h5", holds=holds)
        assert f"f.h5:{names[0]}" in str(caught.value.remedy)
    else:
        with open_volume(tmp_path / "f.h5", holds=holds) as volume:
            assert volume.address.dataset == opened


def linked(folder: Path, raw: np.ndarray) -> Path:
    """An HDF5 file with links of every kind to one dataset, and to nothing."""
    with h5py.File(folder / "far.h5", "w") as file:
        file["inner/raw"] = raw
    with h5py.File(folder / "f.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("far.h5", "/inner/raw")
        file["group"] = h5py.ExternalLink("far.h5", "/inner")
        file["soft"] = h5py.SoftLink("/raw")
        file["nothing"] = h5py.SoftLink("/nowhere")
        file["gone"] = h5py.ExternalLink("gone.h5", "/raw")
        file["itself"] = h5py.SoftLink("/itself")
        file["above/all"] = file["/"]
    return folder / "f.h5"


@pytest.mark.parametrize("dataset", ["raw", "soft", "group/raw", "above/all/raw", None])
def test_links_of_an_hdf5_file_are_followed(tmp_path: Path, raw: np.ndarray, dataset: str | None) -> None:
    path = linked(tmp_path, raw)
    with open_volume(path if dataset is None else f"{path}:{dataset}") as volume:
        np.testing.assert_array_equal(volume.read(volume.box), raw)


def test_hard_link_opens_by_each_of_its_names(tmp_path: Path, raw: np.ndarray) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["raw"] = raw
        file["again"] = file["raw"]
    for name in ("raw", "again"):
        with open_volume(f"{tmp_path}/f.h5:{name}") as volume:
            np.testing.assert_array_equal(volume.read(volume.box), raw)


@pytest.mark.parametrize("dataset", ["nothing", "gone", "itself", "group"])
def test_link_to_no_dataset_is_refused_with_those_that_are_there(tmp_path: Path, raw: np.ndarray, dataset: str) -> None:
    with pytest.raises(AddressError, match=rf"no dataset '{dataset}'.*present: raw, soft"):
        open_volume(f"{linked(tmp_path, raw)}:{dataset}")


def test_real_volume_opens_with_its_resolution(shared_data: Callable[[str], Path]) -> None:
    with open_volume(f"{shared_data('cremi_B_5x500x500.h5')}:raw") as volume:
        assert (volume.shape, volume.space) == ((5, 500, 500), Space((40, 4, 4)))
        assert 50 < read_gray(volume, Box((0, 0, 0), (1, 100, 100))).mean() < 220


@pytest.mark.parametrize("form", FORMATS)
def test_several_threads_read_what_one_reads(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    boxes = [Box((z, y, 0), (z + 1, y + 5, 30)) for z in range(6) for y in range(0, 20, 5)]
    with open_volume(stored(tmp_path, form, raw)) as volume, ThreadPoolExecutor(4) as threads:
        for box, read in zip(boxes, threads.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(read, raw[box.slices])


@pytest.mark.parametrize("form", FORMATS)
def test_volume_sent_to_another_process_opens_the_file_anew(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    with open_volume(stored(tmp_path, form, raw)) as volume:
        copy = pickle.loads(pickle.dumps(volume))  # noqa: S301
    with copy:
        np.testing.assert_array_equal(copy.read(INNER), raw[INNER.slices])


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0, 0), (7, 20, 30)),
        Box((-1, 0, 0), (2, 2, 2)),
        (slice(None), slice(None)),
        (slice(None), slice(None), slice(None, None, 2)),
    ],
)
def test_box_outside_the_volume_is_refused(tmp_path: Path, raw: np.ndarray, box: Any) -> None:
    volume = open_volume(stored(tmp_path, "zarr3", raw))
    with pytest.raises(GeometryError):
        volume.read(box)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\), expected \(z, y, x\)"),
        (np.zeros((2, 4, 5, 6), np.uint8), r"shape \(2, 4, 5, 6\), expected \(z, y, x\)"),
        (np.zeros((4, 0, 6), np.uint8), "empty"),
        (np.zeros((4, 5, 6), np.complex64), "complex64"),
    ],
)
def test_array_that_is_no_volume_is_refused(tmp_path: Path, form: str, data: np.ndarray, says: str) -> None:
    with pytest.raises(VolumeError, match=says):
        open_volume(stored(tmp_path, form, data))


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
def test_missing_dataset_lists_those_present(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    address = stored(tmp_path, form, raw)
    with pytest.raises(AddressError, match=r"nowhere.*present: .*/a"):
        open_volume(address[:-1] + "nowhere")


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
def test_group_that_is_no_array_lists_the_arrays(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    address = stored(tmp_path, form, raw)
    with pytest.raises(AddressError, match=r"(?s)a\)?$"):
        open_volume(address.rsplit("/", 1)[0])


@pytest.mark.parametrize("name", ["f.h5", "f.tif", "sections/1.png"])
def test_file_of_another_content_than_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("not what the name says")
    with pytest.raises(AddressError, match="cannot be opened"):
        open_volume(path if path.parent == tmp_path else path.parent)


def test_damaged_zarr_metadata_is_a_volume_error(tmp_path: Path, raw: np.ndarray) -> None:
    address = stored(tmp_path, "zarr3", raw)
    (Path(address) / "zarr.json").write_text("{")
    with pytest.raises(VolumeError, match="metadata cannot be read"):
        open_volume(address)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5", "compressed tiff"])
def test_unreadable_chunk_names_the_address_and_the_box(tmp_path: Path, form: str, raw: np.ndarray) -> None:
    if form == "hdf5":
        address = f"{tmp_path}/f.h5:a"
        with h5py.File(tmp_path / "f.h5", "w") as file:
            node = file.create_dataset("a", data=raw, chunks=SHAPE, compression="gzip")
            first = node.id.get_chunk_info(0)
        damage(tmp_path / "f.h5", first.byte_offset, first.size)
    else:
        address = stored(tmp_path, form, raw)
        if form == "compressed tiff":
            damage(Path(address), 1200, 400)
        else:
            chunk = Path(address) / ("c/0/0/0" if form == "zarr3" else "0.0.0")
            chunk.write_bytes(chunk.read_bytes()[:-20])
    with open_volume(address) as volume, pytest.raises(VolumeError, match="0:6,0:20,0:30 cannot be read") as caught:
        volume.read(volume.box)
    assert caught.value.where == str(volume.address)


def damage(path: Path, start: int, count: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes([0xA5]) * count
    path.write_bytes(content)


def test_reading_after_close_is_a_volume_error(tmp_path: Path, raw: np.ndarray) -> None:
    volume = open_volume(stored(tmp_path, "hdf5", raw))
    volume.close()
    with pytest.raises(VolumeError):
        volume.read(INNER)
