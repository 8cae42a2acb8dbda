"""What overwriting leaves as it is: links, and what lies among the groups of an output without being of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr

from fgnet.volumes.errors import OutputError
from fgnet.volumes.output_store import require_room
from fgnet.volumes.reading import open_volume
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image, create_labels

SHAPE, SPACE = (5, 40, 70), Space((40, 4, 4))
Format = Literal[2, 3]
both_formats = pytest.mark.parametrize("zarr_format", [2, 3])


def test_a_link_is_refused_before_anything_beside_the_store_goes(tmp_path: Path) -> None:
    create_image(tmp_path / "store.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    (tmp_path / "link.zarr").symlink_to("store.zarr")
    called: list[None] = []
    again: dict[str, Any] = {"shape": (2, 3, 4), "dtype": np.uint8, "space": SPACE, "overwrite": True}
    with pytest.raises(OutputError, match="this is a link") as caught:
        create_image(tmp_path / "link.zarr", first=lambda: called.append(None), **again)
    assert str(tmp_path / "store.zarr") in str(caught.value.remedy)
    with pytest.raises(OutputError, match="this is a link"):
        require_room(tmp_path / "link.zarr", overwrite=True)
    assert (called, open_volume(tmp_path / "store.zarr").shape) == ([], SHAPE)


@both_formats
@pytest.mark.parametrize(
    "place",
    [
        "affinities/notes.txt",
        "affinities/0/notes.txt",
        "affinities/labels/0/zarr.json",
        "thresholds/notes.txt",
        "thresholds/0.7/notes.txt",
        "thresholds/mine/0/c",
        ".affinities.mine.replaced/notes.txt",
    ],
)
def test_what_somebody_has_put_among_the_groups_of_an_output_is_not_deleted(
    tmp_path: Path, zarr_format: Format, place: str
) -> None:
    path = tmp_path / "seg.zarr"
    for group in (None, "affinities", "thresholds/0.7"):
        create_labels(path, shape=SHAPE, space=SPACE, group=group, zarr_format=zarr_format).finish()
    kept = path / place
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("{}")
    with pytest.raises(OutputError, match="delete what else it holds"):
        create_labels(path, shape=SHAPE, space=SPACE, overwrite=True, replaces=["affinities", "thresholds/*"])
    assert kept.read_text() == "{}"


@both_formats
def test_nor_an_array_in_the_place_of_a_group(tmp_path: Path, zarr_format: Format) -> None:
    path = tmp_path / "seg.zarr"
    create_labels(path, shape=SHAPE, space=SPACE, zarr_format=zarr_format).finish()
    mine = zarr.create_array(str(path / "affinities"), data=np.ones(SHAPE, np.uint8), zarr_format=zarr_format)
    with pytest.raises(OutputError, match="delete what else it holds: affinities"):
        create_labels(path, shape=SHAPE, space=SPACE, overwrite=True, replaces=["affinities"])
    assert np.asarray(mine[:]).all()
