"""What is said of folders of sections whose numbers have gaps."""

from pathlib import Path

import pytest
from PIL import Image

from fgnet.volumes.address import parse_address
from fgnet.volumes.section_gaps import section_gap_note


def note(folder: Path, *names: str) -> str | None:
    for name in names:
        Image.new("L", (4, 4)).save(folder / f"{name}.png")
    return section_gap_note(parse_address(folder))


def test_a_gap_is_named_by_its_neighbours(tmp_path: Path) -> None:
    told = note(tmp_path, *(f"sec_{number}" for number in (*range(10), *range(13, 27))))
    assert told is not None
    assert "a gap between sec_9.png and sec_13.png: these are taken to be adjacent" in told


def test_of_many_gaps_the_first_are_named(tmp_path: Path) -> None:
    told = note(tmp_path, *(f"{number:04}" for number in range(40) if number not in (5, 10, 15, 20, 25)))
    assert told is not None
    assert "0004.png and 0006.png" in told
    assert "and 2 more" in told
    assert "0019" not in told


@pytest.mark.parametrize(
    "names",
    [
        [f"sec_{number}" for number in range(8, 13)],
        [f"wafer3_{number:03}" for number in range(0, 50, 5)],
        ["a_1_x2", "a_2_x5", "a_7_x6", "a_8_x9"],  # several numbers
        ["120301", "120517", "120900", "121850", "122500"],  # times
        ["first", "second", "third"],
        ["1", "9"],
        ["only"],
    ],
)
def test_other_names_are_passed_over(tmp_path: Path, names: list[str]) -> None:
    assert note(tmp_path, *names) is None


def test_other_kinds_of_files_have_no_sections(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "stack.tif")
    assert section_gap_note(parse_address(tmp_path / "stack.tif")) is None
