from pathlib import Path

import pytest

from fgnet.volumes.address import Address, parse_address, section_files
from fgnet.volumes.errors import AddressError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder, metadata in (("v.zarr", "zarr.json"), ("old.zarr", ".zgroup"), ("bare", ".zarray"), ("s.zarr", "")):
        (tmp_path / folder).mkdir()
        if metadata:
            (tmp_path / folder / metadata).write_text("{}")
    (tmp_path / "projects.zarr" / "v.zarr").mkdir(parents=True)
    (tmp_path / "projects.zarr" / "v.zarr" / "zarr.json").write_text("{}")
    for file in ("f.h5", "g.HDF", "h.hdf5", "stack.tif", "big.ome.tiff", "notes.txt"):
        (tmp_path / file).touch()
    (tmp_path / "sections").mkdir()
    for number in (10, 2, 1):
        (tmp_path / "sections" / f"s{number}.png").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path", "dataset", "kind"),
    [
        ("v.zarr", "v.zarr", None, "zarr"),
        ("v.zarr/", "v.zarr", None, "zarr"),
        ("v.zarr/group/array", "v.zarr", "group/array", "zarr"),
        ("old.zarr/0", "old.zarr", "0", "zarr"),
        ("bare", "bare", None, "zarr"),
        ("projects.zarr/v.zarr/0", "projects.zarr/v.zarr", "0", "zarr"),
        ("f.h5", "f.h5", None, "hdf5"),
        ("f.h5:", "f.h5", None, "hdf5"),
        ("f.h5:volumes/raw", "f.h5", "volumes/raw", "hdf5"),
        ("f.h5:/volumes/raw/", "f.h5", "volumes/raw", "hdf5"),
        ("g.HDF:main", "g.HDF", "main", "hdf5"),
        ("h.hdf5", "h.hdf5", None, "hdf5"),
        ("stack.tif", "stack.tif", None, "tiff"),
        ("big.ome.tiff", "big.ome.tiff", None, "tiff"),
        ("sections", "sections", None, "sections"),
    ],
)
def test_address_is_split_into_path_dataset_and_kind(
    place: Path, text: str, path: str, dataset: str | None, kind: str
) -> None:
    found = parse_address(f"{place}/{text}")
    assert found == Address(place / path, dataset, kind)
    assert parse_address(str(found)) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the address is empty"),
        ("nowhere/v.zarr", "no such file or folder"),
        ("nowhere.h5:raw", "no such file or folder"),
        ("nowhere.tif", "no such file or folder"),
        ("empty", "no section images"),
        ("s.zarr", "holds no Zarr metadata"),
        ("notes.txt", "'.txt' is of no kind known here"),
    ],
)
def test_address_of_nothing_readable_says_what_is_wrong_and_what_to_do(place: Path, text: str, says: str) -> None:
    with pytest.raises(AddressError, match=says) as caught:
        parse_address(f"{place}/{text}" if text else text)
    assert caught.value.remedy


def test_sections_come_in_natural_order(place: Path) -> None:
    assert [file.name for file in section_files(place / "sections")] == ["s1.png", "s2.png", "s10.png"]


@pytest.mark.parametrize("twin", ["s2.tif", "s2.PNG", "s2.jpeg"])
def test_section_that_is_there_in_two_kinds_is_refused(tmp_path: Path, twin: str) -> None:
    for name in ("s1.png", "s2.png", "s3.png", twin):
        (tmp_path / name).touch()
    with pytest.raises(AddressError, match=r"the section s2 twice, as s2\.\w+ and s2\.\w+"):
        parse_address(tmp_path)


def test_name_is_that_of_the_dataset_else_of_the_file() -> None:
    assert Address(Path("a/f.h5"), "volumes/raw", "hdf5").name == "raw"
    assert Address(Path("a/v.zarr"), None, "zarr").name == "v"
