from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fgnet.postproc.preview import coloured, id_colours, preview, save_preview
from fgnet.postproc.targets import affinities_from_labels
from fgnet.volumes.errors import OutputError, VolumeError

SHAPE = (300, 320)


@pytest.fixture
def section() -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (1, 15, 16)).repeat(20, 1).repeat(20, 2)
    raw = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    return raw, 255 * affinities_from_labels(labels)[:, 0], labels[0]


def test_three_panels_stand_side_by_side_below_their_captions(section: tuple[npt.NDArray[Any], ...]) -> None:
    raw, affinities, labels = section
    picture = preview(raw, affinities, labels)
    height, width = picture.shape[0] - SHAPE[0], SHAPE[1]
    gap = (picture.shape[1] - 3 * width) // 2
    panels = [picture[height:, i * (width + gap) :][:, :width] for i in range(3)]
    assert picture.dtype == np.uint8
    assert np.array_equal(panels[0], np.stack([raw] * 3, -1))
    assert np.array_equal(panels[1], np.moveaxis(affinities, 0, -1))
    assert np.array_equal(panels[2], coloured(panels[0], labels))
    for index in range(3):
        caption = picture[:height, index * (width + gap) :][:, :width]
        assert (caption < 128).any(), "no caption"


def test_affinities_are_drawn_alike_as_bytes_and_as_floats(section: tuple[npt.NDArray[Any], ...]) -> None:
    raw, affinities, labels = section
    assert np.array_equal(preview(raw, affinities, labels), preview(raw, affinities.astype(np.float32) / 255, labels))


def test_background_stays_gray_and_meeting_segments_get_a_dark_line() -> None:
    gray = np.full((4, 6, 3), 200, np.uint8)
    labels = np.array([[0, 0, 1, 1, 2, 2]] * 4)
    drawn = coloured(gray, labels)
    assert (drawn[:, 0] == 200).all()
    assert np.allclose(drawn[:, 2], 0.5 * 200 + 0.5 * id_colours(np.array([1])), atol=1)
    assert (drawn[:, 3].sum(-1) < drawn[:, 2].sum(-1) / 2).all()
    assert (drawn[:, 5] == drawn[0, 5]).all()


def test_colours_are_stable_bright_and_unlike_each_other() -> None:
    ids = np.arange(1, 2000, dtype=np.uint64)
    colours = id_colours(ids)
    assert np.array_equal(id_colours(ids[::-1].astype(np.int32)), colours[::-1])
    assert colours.max(axis=1).min() >= 190
    assert len(np.unique(colours, axis=0)) > 1990
    neighbours = np.abs(np.diff(colours.astype(int), axis=0)).sum(1)
    assert np.median(neighbours) > 150
    assert id_colours(np.array([2**64 - 1], np.uint64)).shape == (1, 3)


@pytest.mark.parametrize(("shape", "width"), [((5, 7), 301), ((30, 2500), 834), ((40, 300), 300)])
def test_small_sections_are_enlarged_and_large_ones_thinned_by_whole_factors(
    shape: tuple[int, int], width: int
) -> None:
    picture = preview(np.zeros(shape, np.uint8), np.zeros((3, *shape), np.float32), np.ones(shape, np.uint32))
    assert (picture.shape[1] - 16) / 3 == width


def test_the_picture_is_saved_as_drawn(tmp_path: Path, section: tuple[npt.NDArray[Any], ...]) -> None:
    save_preview(tmp_path / "p.png", *section)
    with Image.open(tmp_path / "p.png") as picture:
        assert np.array_equal(np.asarray(picture), preview(*section))


@pytest.mark.parametrize("shape", [(3000, 2), (450_000, 3), (5000, 300)])
def test_long_narrow_sections_make_no_endless_picture(shape: tuple[int, int]) -> None:
    picture = preview(np.zeros(shape, np.uint8), np.zeros((3, *shape), np.uint8), np.ones(shape, np.uint32))
    assert picture.shape[0] < 4200
    # Captions still fit.
    assert picture.shape[1] == 3 * 300 + 16


def test_what_lies_there_stays_where_a_picture_cannot_be_written(
    tmp_path: Path, section: tuple[npt.NDArray[Any], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "p.png").write_bytes(b"dear")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        save_preview(tmp_path / "p.png", *section)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"dear"]


@pytest.mark.parametrize("name", ["missing/p.png", "p.nonsense", "p.tif"])
def test_a_path_that_cannot_be_written_is_an_output_error(
    tmp_path: Path, section: tuple[npt.NDArray[Any], ...], name: str
) -> None:
    with pytest.raises(OutputError, match="the preview"):
        save_preview(tmp_path / name, *section)


@pytest.mark.parametrize(
    ("raw", "affinities", "labels"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((3, 4, 5)), np.zeros((4, 6), int)),
        (np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5)), np.zeros((4, 5), int)),
        (np.zeros((1, 4, 5), np.uint8), np.zeros((3, 1, 4, 5)), np.zeros((1, 4, 5), int)),
        (np.zeros((0, 5), np.uint8), np.zeros((3, 0, 5)), np.zeros((0, 5), int)),
        (np.zeros((4, 5), np.float32), np.zeros((3, 4, 5)), np.zeros((4, 5), int)),
        (np.zeros((4, 5), np.uint8), np.zeros((3, 4, 5)), np.zeros((4, 5), np.float32)),
    ],
)
def test_what_is_not_one_section_is_refused(
    raw: npt.NDArray[Any], affinities: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> None:
    with pytest.raises(VolumeError):
        preview(raw, affinities, labels)


def test_a_real_section_shows_every_label(shared_data: Callable[[str], Path]) -> None:
    with h5py.File(shared_data("gala_fib_train.h5")) as file:
        raw, labels = file["raw"][:2], file["labels"][:2].astype(np.uint32)
    picture = preview(raw[1], affinities_from_labels(labels)[:, 1].astype(np.float32), labels[1])
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > len(np.unique(labels[1]))
