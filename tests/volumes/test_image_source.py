from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import Space, open_volume
from fgnet.volumes.section_cache import SectionCache

SHAPE = (12, 10, 16)


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def save_sections(folder: Path, sections: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir()
    for number, section in enumerate(sections):
        Image.fromarray(section).save(folder / f"section_{number}{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".png", ".tif", ".PNG"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_folder_of_sections_is_a_volume(tmp_path: Path, raw: np.ndarray, suffix: str, dtype: type) -> None:
    data = raw.astype(dtype)
    volume = open_volume(save_sections(tmp_path / "s", data, suffix))
    box = Box((8, 2, 3), (12, 9, 11))
    assert (volume.shape, volume.dtype) == (SHAPE, dtype)
    np.testing.assert_array_equal(volume.read(box), data[box.slices])


def test_jpeg_sections_open_as_gray_values(tmp_path: Path) -> None:
    volume = open_volume(save_sections(tmp_path / "s", np.full(SHAPE, 100, np.uint8), ".jpg"))
    assert np.abs(volume.read(volume.box).astype(int) - 100).max() <= 2


def test_only_the_sections_of_a_box_are_decoded(tmp_path: Path, raw: np.ndarray) -> None:
    folder = save_sections(tmp_path / "s", raw)
    volume = open_volume(folder)
    for number in (0, 11):
        file = folder / f"section_{number}.png"
        file.write_bytes(file.read_bytes()[:60])
    box = Box((1, 0, 0), (11, 10, 16))
    np.testing.assert_array_equal(volume.read(box), raw[box.slices])
    with pytest.raises(VolumeError, match=r"section_0\.png: the section cannot be decoded"):
        volume.read(volume.box)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (np.zeros((10, 15), np.uint8), r"shape \(10, 15\)"),
        (np.zeros((10, 16), np.uint16), "uint16"),
        (np.zeros((10, 16, 3), np.uint8), "not a gray image"),
    ],
)
def test_section_that_differs_from_the_first_is_named(
    tmp_path: Path, raw: np.ndarray, odd: np.ndarray, says: str
) -> None:
    folder = save_sections(tmp_path / "s", raw)
    Image.fromarray(odd).save(folder / "section_7.png")
    with pytest.raises(VolumeError, match=rf"section_7\.png: .*{says}"):
        open_volume(folder)


def test_sections_above_the_size_limit_of_pillow_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    folder = save_sections(tmp_path / "s", np.ones((2, 10, 16), np.uint8))
    assert open_volume(folder).read(Box((0, 0, 0), (2, 10, 16))).all()


@pytest.mark.parametrize("unit", ["nm", "um", "micron", "\\u00B5m"])
def test_voxel_size_comes_from_imagej_metadata(tmp_path: Path, raw: np.ndarray, unit: str) -> None:
    scale = 1 if unit == "nm" else 1000
    tifffile.imwrite(
        tmp_path / "v.tif",
        raw,
        imagej=True,
        resolution=(scale / 4, scale / 8),
        metadata={"spacing": 40 / scale, "unit": unit, "axes": "ZYX"},
    )
    with open_volume(tmp_path / "v.tif") as volume:
        assert volume.space.known
        assert volume.space.voxel_size == pytest.approx((40, 8, 4))


@pytest.mark.parametrize("unit", ["nm", "µm", "Å"])
def test_voxel_size_comes_from_ome_metadata(tmp_path: Path, raw: np.ndarray, unit: str) -> None:
    in_nm = {"nm": 1, "µm": 1000, "Å": 0.1}[unit]
    metadata = {"axes": "ZYX"}
    for axis, size in zip("ZYX", (40, 8, 4), strict=True):
        metadata |= {f"PhysicalSize{axis}": size / in_nm, f"PhysicalSize{axis}Unit": unit}
    tifffile.imwrite(tmp_path / "v.ome.tif", raw, metadata=metadata, compression="zlib")
    with open_volume(tmp_path / "v.ome.tif") as volume:
        assert volume.space.known
        assert volume.space.voxel_size == pytest.approx((40, 8, 4))
        np.testing.assert_array_equal(volume.read(volume.box), raw)


def test_a_stack_is_not_taken_for_one_section_of_a_folder(tmp_path: Path, raw: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", raw, photometric="minisblack")
    with pytest.raises(VolumeError, match=f"a stack of {len(raw)} pages") as caught:
        open_volume(tmp_path)
    assert "stack.tif" in str(caught.value.remedy)
    with open_volume(tmp_path / "stack.tif") as volume:
        assert volume.shape == raw.shape


def test_colour_tiff_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "v.tif", np.zeros((10, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(VolumeError, match="colour"):
        open_volume(tmp_path / "v.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_whose_white_is_zero_is_not_read_inverted(
    tmp_path: Path, raw: np.ndarray, compression: str | None
) -> None:
    (tmp_path / "sections").mkdir()
    for path, data in ((tmp_path / "v.tif", raw), (tmp_path / "sections" / "0.tif", raw[0])):
        tifffile.imwrite(path, data, photometric="miniswhite", compression=compression)
    for address in (tmp_path / "v.tif", tmp_path / "sections"):
        with pytest.raises(VolumeError, match=r"\.tif: .* 0 is white") as caught:
            open_volume(address)
        assert "0 as black" in str(caught.value.remedy)


def test_bilevel_mask_keeps_its_values(tmp_path: Path, raw: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", raw > 100)
    with open_volume(tmp_path / "mask.tif") as volume:
        np.testing.assert_array_equal(volume.read(volume.box), raw > 100)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("described", [True, False])
def test_tiff_that_was_cut_short_is_refused_when_it_is_opened(
    tmp_path: Path, raw: np.ndarray, compression: str | None, described: bool
) -> None:
    path = tmp_path / "v.tif"
    with tifffile.TiffWriter(path) as tiff:
        for section in [raw] if described else raw:
            tiff.write(
                section,
                photometric="minisblack",
                compression=compression,
                contiguous=False,
                metadata={} if described else None,
            )
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VolumeError, match="cut short"):
        open_volume(path)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("compressions", [(None, None, None), (None, "zlib", "zlib"), ("zlib", None, "zlib")])
@pytest.mark.parametrize("pages", [1, 4])
def test_stack_written_in_several_calls_keeps_all_its_sections(
    tmp_path: Path, raw: np.ndarray, pages: int, compressions: tuple[str | None, ...], described: bool
) -> None:
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        for start in range(0, len(raw), pages):
            tiff.write(
                raw[start] if pages == 1 else raw[start : start + pages],
                photometric="minisblack",
                compression=compressions[start * 3 // len(raw)],
                metadata={} if described else None,
            )
    with open_volume(tmp_path / "v.tif") as volume:
        assert volume.shape == SHAPE
        np.testing.assert_array_equal(volume.read(volume.box), raw)


def test_a_page_of_another_compression_amid_the_stack_is_decoded_as_its_own(tmp_path: Path) -> None:
    # tifffile compares only some pages of a long file before it takes all to be alike.
    data = np.random.default_rng(0).integers(0, 256, (32, 64, 64), np.uint8)
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        for index, section in enumerate(data):
            tiff.write(section, metadata=None, compression="zlib" if index == 15 else None)
    with open_volume(tmp_path / "v.tif") as volume:
        np.testing.assert_array_equal(volume.read(volume.box), data)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("place", [0, 7, 15, 30])
@pytest.mark.parametrize("odd", [np.zeros((32, 32), np.uint8), np.zeros((64, 64), np.uint16)])
def test_page_that_is_no_section_of_the_stack_is_refused(
    tmp_path: Path, odd: np.ndarray, place: int, described: bool
) -> None:
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        for index in range(32):
            section = odd if index == place else np.zeros((64, 64), np.uint8)
            tiff.write(section, photometric="minisblack", metadata={} if described else None)
    with pytest.raises(VolumeError, match=r"holds 32 pages, only|do not fit|page \d+ is uint16") as caught:
        open_volume(tmp_path / "v.tif")
    assert "one size and one dtype" in str(caught.value.remedy)


@pytest.mark.parametrize("reduced", [True, False])
def test_thumbnails_behind_a_stack_are_no_sections(tmp_path: Path, raw: np.ndarray, reduced: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        for section in raw:
            tiff.write(section, metadata=None)
        tiff.write(raw[0, ::4, ::4], metadata=None, subfiletype=int(reduced))
    with open_volume(tmp_path / "v.tif") as volume:
        np.testing.assert_array_equal(volume.read(volume.box), raw)


def test_two_images_of_one_ome_file_are_not_taken_for_one_stack(tmp_path: Path, raw: np.ndarray) -> None:
    with tifffile.TiffWriter(tmp_path / "v.ome.tif", ome=True) as tiff:
        for data in (raw, raw):
            tiff.write(data, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(VolumeError, match="holds 24 pages, only 12 of them form the first series"):
        open_volume(tmp_path / "v.ome.tif")


def test_stack_of_tiles_reads_a_box(tmp_path: Path, raw: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "v.tif", raw, tile=(16, 16), compression="lzw", photometric="minisblack")
    with open_volume(tmp_path / "v.tif") as volume:
        assert volume.space == Space((1, 1, 1), known=False)
        np.testing.assert_array_equal(volume.read((slice(2, 4), slice(1, 3), slice(5, 9))), raw[2:4, 1:3, 5:9])


def test_sections_are_decoded_once_while_they_fit_the_budget() -> None:
    loaded: list[int] = []

    def load(index: int) -> np.ndarray:
        loaded.append(index)
        return np.full(100, index, np.uint8)

    cache = SectionCache(load, budget=250)
    for index in (0, 1, 0, 2, 0, 1):
        assert cache[index][0] == index
    assert loaded == [0, 1, 2, 1]
