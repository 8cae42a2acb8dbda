from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgnet.network.augment import AUGMENTATIONS, PRESETS
from fgnet.network.augmentation_sheet import COLUMNS, augmentation_sheet, save_augmentation_sheet
from fgnet.network.data import LabelledVolume
from fgnet.volumes.errors import OutputError, TrainingError
from fgnet.volumes.space import Space

CROP = (4, 32, 32)
# Panels of 32 voxels are enlarged eightfold; under each section lies a gap of 2 and a view from the side.
NAMES, WIDTH, GAP, TOP = 150, 256, 8, 26


@pytest.fixture(scope="module", params=[(10.0, 10.0, 10.0), (40.0, 4.0, 4.0)], ids=["isotropic", "serial"])
def volume(request: pytest.FixtureRequest) -> LabelledVolume:
    labels = np.arange(1, 241, dtype=np.uint32).reshape(15, 4, 4).repeat(4, 0).repeat(16, 1).repeat(16, 2)
    noise = np.random.default_rng(0).integers(0, 60, labels.shape)
    return LabelledVolume("cubes", (labels % 190 + noise).astype(np.uint8), labels, Space(request.param))


def panel(sheet: Any, row: int, column: int, height: int) -> Any:
    top, left = TOP + row * (height + GAP), NAMES + column * (WIDTH + GAP)
    return sheet[top : top + height, left : left + WIDTH]


@pytest.fixture(scope="module")
def sheet(volume: LabelledVolume) -> Any:
    return augmentation_sheet(volume, CROP, PRESETS["strong"], 1)


def test_each_row_shows_its_augmentation_and_nothing_else(volume: LabelledVolume, sheet: Any) -> None:
    names = [name for name in AUGMENTATIONS if volume.isotropic or name != "thick sections"]
    height = 256 + 2 + 4 * 8 * (1 if volume.isotropic else 10)
    assert sheet.shape == (TOP + (len(names) + 1) * (height + GAP), NAMES + len(COLUMNS) * (WIDTH + GAP), 3)
    geometry = {"orientation", "rescale", "thick sections", "elastic", "jitter", "slip", "rotation slip"}
    for row, name in enumerate([*names, "together"]):
        raw, changed, _, _, affinities, derived = (panel(sheet, row, column, height) for column in range(6))
        assert np.ptp(raw) > 0, name
        assert not np.array_equal(raw, changed), name
        if name in geometry:
            assert not np.array_equal(affinities, derived), name
        elif name != "together":
            np.testing.assert_array_equal(affinities, derived, err_msg=name)


def test_a_sheet_is_repeatable_and_written_where_it_is_asked_for(
    volume: LabelledVolume, sheet: Any, tmp_path: Path
) -> None:
    save_augmentation_sheet(tmp_path / "sheet.png", volume, CROP, PRESETS["strong"], 1)
    with Image.open(tmp_path / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), sheet)


def test_a_sheet_that_cannot_be_drawn_or_written_is_refused(volume: LabelledVolume, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_augmentation_sheet(tmp_path / "none" / "sheet.png", volume, (2, 8, 8), PRESETS["none"], 2)
    with pytest.raises(TrainingError, match="smaller than the crop"):
        augmentation_sheet(volume, (4, 99, 99), PRESETS["none"], 2)
