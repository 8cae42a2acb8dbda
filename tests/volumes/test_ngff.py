from pathlib import Path
from typing import Any, Literal

import numpy as np
import ome_zarr_models.v04 as ngff04
import ome_zarr_models.v05 as ngff05
import pytest
import zarr

from fgnet.volumes.errors import VolumeError
from fgnet.volumes.reading import Space, open_volume
from fgnet.volumes.writing import create_image, create_labels

SHAPE = (5, 40, 70)
SPACE = Space((40, 4, 4), (80, 12, 20))
MODELS: dict[int, Any] = {2: ngff04, 3: ngff05}
both_formats = pytest.mark.parametrize("zarr_format", [2, 3])
Format = Literal[2, 3]


@both_formats
@pytest.mark.parametrize("known", [True, False])
def test_metadata_validates_as_ome_ngff_at_every_level(tmp_path: Path, zarr_format: Format, known: bool) -> None:
    path = tmp_path / "out.zarr"
    space = SPACE if known else Space((1, 1, 1), known=False)
    for group, make in ((None, create_image), ("labels/neurons", create_labels), ("affinities", create_image)):
        channels = (3,) if group == "affinities" else ()
        with make(  # type: ignore[operator]
            path,
            shape=(*channels, *SHAPE),
            dtype=np.uint8,
            space=space,
            group=group,
            zarr_format=zarr_format,
            name="specimen",
            **({"axes": "czyx"} if channels else {}),
        ) as writer:
            writer.build_pyramid(largest=20)
        node = zarr.open_group(str(path), mode="r", path=group or "")
        model = MODELS[zarr_format].ImageLabel if make is create_labels else MODELS[zarr_format].Image
        attributes = model.from_zarr(node).attributes
        multiscale = (attributes if zarr_format == 2 else attributes.ome).multiscales[0]
        assert [axis.name for axis in multiscale.axes] == (["c"] if channels else []) + ["z", "y", "x"]
        assert [axis.unit for axis in multiscale.axes[-3:]] == ["nanometer" if known else None] * 3
        assert [dataset.path for dataset in multiscale.datasets] == ["0", "1", "2"]
        assert multiscale.name == "specimen"
    assert open_volume(path).space == space
    listed = zarr.open_group(str(path), mode="r", path="labels").attrs.asdict()
    assert (listed if zarr_format == 2 else listed["ome"])["labels"] == ["neurons"]  # type: ignore[index,call-overload]


@both_formats
def test_other_units_and_transformations_of_the_whole_image_are_converted_to_nm(
    tmp_path: Path, zarr_format: Format
) -> None:
    path = tmp_path / "out.zarr"
    with create_image(path, shape=SHAPE, dtype=np.uint8, space=Space((0.04, 4, 40)), zarr_format=zarr_format) as writer:
        pass
    group = zarr.open_group(str(path), mode="r+")
    attributes: Any = group.attrs.asdict()
    multiscale = (attributes if zarr_format == 2 else attributes["ome"])["multiscales"][0]
    for axis, unit in zip(multiscale["axes"], ("micrometer", "nanometer", "angstrom"), strict=True):
        axis["unit"] = unit
    multiscale["datasets"][0]["coordinateTransformations"][1]["translation"] = [1, 1, 1]
    multiscale["coordinateTransformations"] = [
        {"type": "scale", "scale": [1, 1, 2]},
        {"type": "translation", "translation": [0, 5, 0]},
    ]
    group.attrs.put(attributes)
    space = open_volume(path).space
    assert space.voxel_size == pytest.approx((40, 4, 8))
    assert space.offset == pytest.approx((1000, 6, 0.2))
    assert writer.finished


def test_time_and_channel_axes_of_one_voxel_are_dropped_from_an_ngff_image(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "v.zarr"), zarr_format=2)
    group.create_array("s0", shape=(1, 1, 4, 5, 6), dtype="u1")
    scale = {"type": "scale", "scale": [1, 1, 0.03, 0.006, 0.006]}
    axes = [{"name": n} for n in "tc"] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    datasets = [{"path": "s0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.shape == (4, 5, 6)
    assert volume.space.voxel_size == pytest.approx((30, 6, 6))


def test_image_whose_last_axes_are_not_z_y_x_is_refused(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "v.zarr"))
    group.create_array("0", shape=(4, 5, 6), dtype="u1")
    axes = [{"name": n, "type": "space"} for n in "xyz"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    with pytest.raises(VolumeError, match="must be z, y, x"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize(
    "damage",
    [
        {"datasets": []},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale"}]}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, -1, 1]}]}]},
        {"datasets": [{"path": "0", "coordinateTransformations": ["scale"]}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine", "affine": [[1, 0, 0, 0]] * 3}]}]},
        {"coordinateTransformations": [{"type": "sequence", "transformations": []}]},
    ],
)
def test_malformed_metadata_is_a_volume_error_that_names_the_image(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "v.zarr"
    create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    group = zarr.open_group(str(path), mode="r+")
    attributes: Any = group.attrs.asdict()
    attributes["ome"]["multiscales"][0] |= damage
    group.attrs.put(attributes)
    with pytest.raises(VolumeError, match=r"v\.zarr"):
        open_volume(path)


def test_identity_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    group = zarr.open_group(str(path), mode="r+")
    attributes: Any = group.attrs.asdict()
    attributes["ome"]["multiscales"][0]["coordinateTransformations"] = [{"type": "identity"}]
    group.attrs.put(attributes)
    assert open_volume(path).space == SPACE


@both_formats
def test_coarser_level_of_an_image_of_unknown_voxel_size_is_of_none_either(tmp_path: Path, zarr_format: Format) -> None:
    path = tmp_path / "v.zarr"
    space = Space((1, 1, 1), (2, 4, 8), known=False)
    with create_image(path, shape=SHAPE, dtype=np.uint8, space=space, zarr_format=zarr_format) as writer:
        writer.build_pyramid(largest=20)
    for level in ("0", "1", "2"):
        found = open_volume(path / level).space
        assert (found.known, found.voxel_size) == (False, (1, 1, 1))
    assert open_volume(path / "0").space == space
    known = tmp_path / "known.zarr"
    with create_image(known, shape=SHAPE, dtype=np.uint8, space=Space((4, 4, 4)), zarr_format=zarr_format) as writer:
        writer.build_pyramid(largest=20)
    assert open_volume(known / "1").space.known


def test_unit_that_is_no_length_leaves_the_space_unknown(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    group = zarr.open_group(str(path), mode="r+")
    attributes: Any = group.attrs.asdict()
    attributes["ome"]["multiscales"][0]["axes"][0]["unit"] = "second"
    group.attrs.put(attributes)
    assert not open_volume(path).space.known
