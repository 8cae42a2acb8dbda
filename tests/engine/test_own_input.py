from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from fgnet.engine.own_input import refuse_own_input
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image

SHAPE = (4, 64, 64)


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A multiscale image of two levels in a store, an array, and a link to the store."""
    path = tmp_path / "im.zarr"
    with create_image(path, shape=SHAPE, dtype=np.uint8, space=Space((1, 1, 1)), zarr_format=request.param) as writer:
        writer.write(Box.from_shape(SHAPE), np.ones(SHAPE, np.uint8))
        writer.build_pyramid(largest=32)
    zarr.create_group(str(tmp_path / "plain.zarr"), zarr_format=request.param)
    zarr.create_array(str(tmp_path / "plain.zarr/raw"), data=np.ones(SHAPE, np.uint8), zarr_format=request.param)
    (tmp_path / "link.zarr").symlink_to(path)
    return path


REFUSED = [
    ("im.zarr", "im.zarr"),
    ("im.zarr", "im.zarr/0"),
    ("im.zarr", "im.zarr/1"),
    ("im.zarr", "im.zarr/1/inner"),
    ("im.zarr", "."),
    ("im.zarr", "link.zarr/0"),
    ("link.zarr", "im.zarr/0"),
    ("link.zarr/1", "im.zarr/0"),
    ("im.zarr/1", "im.zarr/0"),
    ("im.zarr/0", "im.zarr/1"),
    ("im.zarr/0", "im.zarr"),
    ("im.zarr/0", "im.zarr/labels/../0"),
    ("plain.zarr/raw", "plain.zarr/raw"),
    ("plain.zarr/raw", "plain.zarr/raw/seg"),
    ("plain.zarr/raw", "plain.zarr"),
]


@pytest.mark.parametrize(("source", "output"), REFUSED)
def test_what_is_read_is_never_written_over_or_into(image: Path, source: str, output: str) -> None:
    with open_volume(image.parent / source) as volume:
        for sources in ((volume, None), (None, volume)):
            with pytest.raises(OutputError, match=r"the output (is|lies in) the input") as caught:
                refuse_own_input(image.parent / output, *sources)
            assert caught.value.remedy


def test_nor_is_a_level_that_is_a_link(image: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (image / "0").rename(tmp_path / "far" / "0.zarr")
    (image / "0").symlink_to(tmp_path / "far" / "0.zarr")
    for source, output in (("im.zarr/0", "im.zarr/1"), ("im.zarr", "far/0.zarr"), ("im.zarr", "far")):
        with open_volume(tmp_path / source) as volume, pytest.raises(OutputError, match="the output is the input"):
            refuse_own_input(tmp_path / output, volume)


def test_nor_what_lies_where_a_run_puts_things_for_a_while(tmp_path: Path) -> None:
    for ending in (".network", ".decoding"):
        zarr.create_array(str(tmp_path / f"out.zarr{ending}"), data=np.ones(SHAPE, np.uint8))
        with open_volume(tmp_path / f"out.zarr{ending}") as volume, pytest.raises(OutputError, match="is the input"):
            refuse_own_input(tmp_path / "out.zarr", volume)


@pytest.mark.parametrize("source", ["im.zarr", "im.zarr/0", "plain.zarr/raw"])
@pytest.mark.parametrize("output", ["im.zarr/labels/seg", "im.zarr/seg", "plain.zarr/seg", "other.zarr"])
def test_another_group_of_the_same_store_is_an_output(image: Path, source: str, output: str) -> None:
    with open_volume(image.parent / source) as volume:
        refuse_own_input(image.parent / output, volume, None)


def test_a_file_is_no_output_and_a_store_beside_it_is(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = np.ones(SHAPE, np.uint8)
    with open_volume(f"{tmp_path / 'v.h5'}:raw") as volume:
        refuse_own_input(tmp_path / "out.zarr", volume)
        for output in (tmp_path / "v.h5", tmp_path):
            with pytest.raises(OutputError, match="is the input"):
                refuse_own_input(output, volume)
