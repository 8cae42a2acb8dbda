"""What files other than OME-NGFF say of their axes and units."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.reading import Space, open_volume

SHAPE = (4, 5, 6)


def stored(folder: Path, form: str, attributes: dict[str, Any], names: list[str | None] | None = None) -> str:
    """Stores an array of zeros with attributes, and in Zarr v3 with names of its dimensions; returns its address."""
    shape = SHAPE if names is None else (2,) * (len(names) - 3) + SHAPE
    if form == "hdf5":
        with h5py.File(folder / "f.h5", "w") as file:
            file.create_dataset("a", data=np.zeros(shape, np.uint8)).attrs.update(attributes)
        return f"{folder}/f.h5:a"
    zarr.create_array(
        str(folder / "v.zarr"),
        shape=shape,
        dtype="u1",
        zarr_format=int(form[-1]),  # type: ignore[arg-type]
        attributes=attributes,
        dimension_names=names,
    )
    return str(folder / "v.zarr")


@pytest.mark.parametrize("axes", [["x", "y", "z"], ["Z", "X", "Y"], ["c", "y", "x"], ["z", "c", "y", "x"]])
@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5", "dimension_names", "_ARRAY_DIMENSIONS"])
def test_array_whose_named_axes_are_others_is_refused(tmp_path: Path, form: str, axes: list[str | None]) -> None:
    if form == "dimension_names":
        address = stored(tmp_path, "zarr3", {}, axes)
    else:
        key = form if form.startswith("_") else "axis_names"
        address = stored(tmp_path, "zarr2" if form.startswith("_") else form, {key: axes})
    with pytest.raises(VolumeError, match=r"(v\.zarr|f\.h5:a): the axes are .*must be z, y, x"):
        open_volume(address)


@pytest.mark.parametrize("axes", [["z", "y", "x"], ["Z", "Y", "X"], ["c^", "z", "y", "x"], ["dim_0", "dim_1", "x"]])
def test_axes_in_order_or_without_meaning_are_accepted(tmp_path: Path, axes: list[str]) -> None:
    for form in ("zarr2", "zarr3", "hdf5"):
        (tmp_path / form).mkdir()
        assert open_volume(stored(tmp_path / form, form, {"axis_names": axes})).shape == SHAPE
    assert open_volume(stored(tmp_path, "zarr3", {}, [None, "y", "x"])).shape == SHAPE


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (["um", "nm", "angstrom"], Space((40, 0.008, 0.0004), (1000, 2, 0.3))),
        (["s", "um", "um", "um"], Space((40, 8, 4), (1000, 2000, 3000))),
        ("um", Space((40, 8, 4), (1000, 2000, 3000))),
        (["", "", ""], Space((0.04, 0.008, 0.004), (1, 2, 3))),
        ("counts", Space((0.04, 0.008, 0.004), (1, 2, 3))),
        (["s", "nm", "nm"], Space((1, 1, 1), known=False)),
    ],
)
def test_voxel_size_and_offset_are_in_the_units_named(tmp_path: Path, form: str, units: Any, expected: Space) -> None:
    attributes = {"voxel_size": [0.04, 0.008, 0.004], "offset": [1, 2, 3], "units": units}
    space = open_volume(stored(tmp_path, form, attributes)).space
    assert space.known == expected.known
    assert space.voxel_size == pytest.approx(expected.voxel_size)
    assert space.offset == pytest.approx(expected.offset)


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "hdf5"])
@pytest.mark.parametrize(
    "attributes",
    [{"resolution": [1, 2]}, {"voxel_size": [1, 2, -3]}, {"offset": ["a", "b", "c"]}, {"offset": [0, 0, 1e999]}],
)
def test_malformed_attribute_names_the_volume(tmp_path: Path, form: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(VolumeError) as caught:
        open_volume(stored(tmp_path, form, attributes))
    assert str(caught.value.where).startswith(str(tmp_path))


@pytest.mark.parametrize("ome", [True, False])
def test_channels_of_a_tiff_are_not_taken_for_sections(tmp_path: Path, ome: bool) -> None:
    name = "v.ome.tif" if ome else "v.tif"
    tifffile.imwrite(
        tmp_path / name, np.zeros(SHAPE, np.uint8), imagej=not ome, photometric="minisblack", metadata={"axes": "CYX"}
    )
    with pytest.raises(VolumeError, match="channels in place of sections"):
        open_volume(tmp_path / name)


@pytest.mark.parametrize("axis", "ZTQ")
def test_sections_by_other_names_are_accepted(tmp_path: Path, axis: str) -> None:
    data = np.zeros(SHAPE, np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", data, photometric="minisblack", metadata={"axes": f"{axis}YX"})
    assert open_volume(tmp_path / "v.tif").shape == SHAPE
