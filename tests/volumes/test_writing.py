import errno
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
import zarr.storage

from fgnet.volumes.errors import AddressError, GeometryError, OutputError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import Space, open_volume
from fgnet.volumes.removal import MARK
from fgnet.volumes.writing import begun_as, create_image, create_labels, reopen

SHAPE = (5, 40, 70)
SPACE = Space((40, 4, 4), (80, 12, 20))
WHOLE = Box.from_shape(SHAPE)
both_formats = pytest.mark.parametrize("zarr_format", [2, 3])
Format = Literal[2, 3]


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**60, SHAPE, np.uint64)


@both_formats
def test_labels_written_in_boxes_open_with_their_voxels_and_space(
    tmp_path: Path, labels: np.ndarray, zarr_format: Format
) -> None:
    path = tmp_path / "deep" / "er" / "out.zarr"
    with create_labels(path, shape=SHAPE, space=SPACE, chunks=(2, 16, 16), zarr_format=zarr_format) as writer:
        for z in range(0, 5, 2):
            box = Box((z, 0, 0), (min(z + 2, 5), 40, 70))
            writer.write(box, labels[box.slices])
        np.testing.assert_array_equal(writer.read(WHOLE), labels)
    volume = open_volume(path)
    assert (volume.shape, volume.dtype, volume.chunks, volume.space) == (SHAPE, labels.dtype, (2, 16, 16), SPACE)
    np.testing.assert_array_equal(volume.read(volume.box), labels)


@both_formats
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_affinities_keep_their_channels(tmp_path: Path, zarr_format: Format, dtype: type) -> None:
    data = np.random.default_rng(1).random((3, *SHAPE)).astype(dtype)
    path = tmp_path / "out.zarr"
    with create_image(
        path, shape=data.shape, dtype=dtype, space=SPACE, axes="czyx", group="affinities", zarr_format=zarr_format
    ) as writer:
        writer.write(WHOLE, data)
    volume = open_volume(f"{path}/affinities", ndim=(4,))
    assert (volume.name, volume.space, volume.chunks) == ("affinities", SPACE, (1, *SHAPE))
    np.testing.assert_array_equal(volume.read(WHOLE), data)


def test_output_that_exists_is_only_replaced_when_overwriting_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    with pytest.raises(OutputError, match="exists already"):
        create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE)
    create_image(path, shape=(2, 3, 4), dtype=np.uint8, space=SPACE, overwrite=True, zarr_format=2).finish()
    assert open_volume(path).shape == (2, 3, 4)


def test_overwriting_one_group_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    for group in ("a", "b"):
        create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE, group=group).finish()
    create_image(path, shape=(2, 3, 4), dtype=np.uint8, space=SPACE, group="b", overwrite=True).finish()
    assert (open_volume(path / "a").shape, open_volume(path / "b").shape) == (SHAPE, (2, 3, 4))


@pytest.mark.parametrize("kind", ["folder", "file", "group", "array"])
def test_what_is_no_output_is_never_deleted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.zarr"
    kept = path / "notes.txt"
    if kind == "file":
        kept = path
    elif kind == "folder":
        path.mkdir()
    else:
        group = zarr.create_group(str(path))
        group.create_group("raw") if kind == "group" else group.create_array("raw", shape=(1,), dtype="u1")
    kept.write_text("dear")
    with pytest.raises(OutputError) as caught:
        create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE, overwrite=True)
    assert caught.value.remedy
    assert kept.read_text() == "dear"


@both_formats
@pytest.mark.parametrize(
    "place", ["notes.txt", "meshes/1.ply", "volumes/labels/gt/zarr.json", "labels/mine/0.raw", "0/notes.txt", "7"]
)
def test_overwriting_never_deletes_what_no_output_holds(tmp_path: Path, zarr_format: Format, place: str) -> None:
    path = tmp_path / "seg.zarr"
    for group in (None, "labels/neurons"):
        create_labels(path, shape=SHAPE, space=SPACE, group=group, zarr_format=zarr_format).finish()
    kept = path / place
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("{}")
    top = "/".join(place.split("/")[: 2 if place.startswith(("labels", "0")) else 1])
    with pytest.raises(OutputError, match=rf"delete what else it holds: {top} \(") as caught:
        create_labels(path, shape=SHAPE, space=SPACE, overwrite=True, replaces=["labels/neurons"])
    assert caught.value.remedy
    assert kept.read_text() == "{}"


@both_formats
def test_overwriting_replaces_all_that_an_output_holds(tmp_path: Path, zarr_format: Format) -> None:
    path = tmp_path / "seg.zarr"
    for group in (None, "affinities", "thresholds/0.7", "thresholds/1", "thresholds/1e-05"):
        with create_labels(path, shape=SHAPE, space=SPACE, group=group, zarr_format=zarr_format) as writer:
            writer.write(WHOLE, np.ones(SHAPE, np.uint64))
            writer.build_pyramid(largest=20)
    # What killed processes leave: a file under its first name, and a level without its metadata.
    (path / "zarr.json.0123abcd.partial").touch()
    (path / "1" / ("zarr.json" if zarr_format == 3 else ".zarray")).unlink()
    for inner in (path / ".affinities.0123abcd.replaced", path / "thresholds" / ".0.6.0123abcd.replaced"):
        (inner / "old").mkdir(parents=True)
        (inner / MARK).touch()
    (path / ".affinities.4567cdef.replaced").mkdir()
    create_labels(
        path, shape=(2, 3, 4), space=SPACE, overwrite=True, replaces=["affinities", "thresholds/*"], zarr_format=3
    ).finish()
    assert sorted(node.name for node in path.iterdir()) == ["0", "zarr.json"]


@both_formats
@pytest.mark.parametrize("place", ["v.zarr", "plain.zarr", "image.zarr/0"])
def test_arrays_are_never_overwritten_for_no_output_is_one(tmp_path: Path, zarr_format: Format, place: str) -> None:
    """An array by itself, those of a group that declares no image, and a level of an image."""
    ones = np.ones(SHAPE, np.uint8)
    for path in ("v.zarr", "plain.zarr/0"):
        zarr.create_group(str((tmp_path / path).parent), zarr_format=zarr_format)
        zarr.create_array(str(tmp_path / path), data=ones, zarr_format=zarr_format)
    with create_image(tmp_path / "image.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE, zarr_format=zarr_format) as w:
        w.write(WHOLE, ones)
    with pytest.raises(OutputError, match="this is an array, or holds arrays of no image") as caught:
        create_labels(tmp_path / place, shape=SHAPE, space=SPACE, overwrite=True, zarr_format=zarr_format)
    assert caught.value.remedy
    for path in ("v.zarr", "plain.zarr/0", "image.zarr"):
        np.testing.assert_array_equal(open_volume(tmp_path / path).read(WHOLE), ones)


@pytest.mark.parametrize("group", ["0/inner", "../elsewhere", "plain/inner"])
def test_group_that_cannot_be_in_the_store_is_refused(tmp_path: Path, group: str) -> None:
    path = tmp_path / "out.zarr"
    create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE).finish()
    (path / "plain").mkdir()
    (path / "plain" / "file").touch()
    with pytest.raises(OutputError):
        create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE, group=group)


def test_group_of_another_zarr_version_is_refused(tmp_path: Path) -> None:
    create_image(tmp_path / "o.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE, group="a", zarr_format=2).finish()
    with pytest.raises(OutputError, match="Zarr v2, the output v3"):
        create_image(tmp_path / "o.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE, group="b", zarr_format=3)


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        create_image(tmp_path / "file" / "out.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"shape": (4, 5)}, GeometryError),
        ({"shape": (0, 5, 6)}, GeometryError),
        ({"shape": (3, 4, 5, 6)}, GeometryError),
        ({"chunks": (0, 5, 6)}, GeometryError),
        ({"chunks": (1, 1, 5, 6)}, GeometryError),
        ({"dtype": np.float32}, OutputError),
    ],
)
def test_labels_that_make_no_sense_are_refused_before_anything_is_created(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        create_labels(tmp_path / "out.zarr", **({"shape": SHAPE, "space": SPACE} | arguments))
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(
    ("box", "data", "error"),
    [
        (Box((0, 0, 0), (6, 1, 1)), np.zeros((6, 1, 1), np.uint8), GeometryError),
        (Box((-1, 0, 0), (1, 1, 1)), np.zeros((2, 1, 1), np.uint8), GeometryError),
        (Box((0, 0, 0), (2, 1, 1)), np.zeros((1, 1, 1), np.uint8), VolumeError),
        (Box((0, 0, 0), (1, 1, 1)), np.zeros((1, 1, 1), np.uint16), VolumeError),
    ],
)
def test_writing_what_does_not_fit_is_refused(
    tmp_path: Path, box: Box, data: np.ndarray, error: type[Exception]
) -> None:
    writer = create_image(tmp_path / "out.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE)
    with pytest.raises(error):
        writer.write(box, data)


@both_formats
def test_output_opens_as_a_volume_only_once_it_is_finished(tmp_path: Path, zarr_format: Format) -> None:
    path = tmp_path / "out.zarr"
    writer = create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE, zarr_format=zarr_format)

    def interrupted_run() -> None:
        with writer:
            writer.write(WHOLE, np.ones(SHAPE, np.uint8))
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted_run()
    with pytest.raises(VolumeError, match="has not finished"):
        open_volume(path)
    writer.finish()
    assert open_volume(path).read(WHOLE).all()
    with pytest.raises(OutputError, match="is finished"):
        writer.write(WHOLE, np.ones(SHAPE, np.uint8))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_failed_write_says_what_to_do_and_leaves_the_output_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, wrapped: bool
) -> None:
    path = tmp_path / "out.zarr"
    writer = create_image(path, shape=SHAPE, dtype=np.uint8, space=SPACE)

    async def fail(*_: object) -> None:
        try:
            raise OSError(number, "the device says no")
        except OSError as error:
            if wrapped:
                raise RuntimeError("codec pipeline failed") from error
            raise

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", fail)
        with pytest.raises(OutputError, match=says) as caught:
            writer.write(WHOLE, np.ones(SHAPE, np.uint8))
    assert caught.value.where == str(path)
    with pytest.raises(OutputError, match="stays unfinished"):
        writer.finish()
    with pytest.raises(VolumeError, match="has not finished"):
        open_volume(path)


def test_store_that_hits_the_file_size_limit_fails_cleanly(tmp_path: Path) -> None:
    program = f"""
import resource
import numpy as np
from fgnet.volumes.errors import OutputError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import Space
from fgnet.volumes.writing import create_image
writer = create_image({str(tmp_path / "out.zarr")!r}, shape=(64, 64, 64), dtype=np.uint8, space=Space((1, 1, 1)))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64), np.uint8)
try:
    writer.write(Box.from_shape(noise.shape), noise)
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "the file size limit is reached" in done.stdout
    with pytest.raises(VolumeError, match="has not finished"):
        open_volume(tmp_path / "out.zarr")


def test_plain_group_is_no_volume(tmp_path: Path) -> None:
    create_image(tmp_path / "out.zarr", shape=SHAPE, dtype=np.uint8, space=SPACE, group="a").finish()
    with pytest.raises(AddressError, match=r"append the path of one of its arrays: a/0"):
        open_volume(tmp_path / "out.zarr")


@both_formats
def test_an_output_in_the_making_has_a_name_that_no_other_one_gets(tmp_path: Path, zarr_format: Format) -> None:
    path, names = tmp_path / "out.zarr", set[str]()
    made: dict[str, Any] = {"shape": SHAPE, "space": SPACE, "group": "a"}
    known: dict[str, Any] = {**made, "dtype": np.uint64, "axes": "zyx", "method": "mode"}
    # Many of them get the inode of the one before.
    for _ in range(10):
        create_labels(path, overwrite=True, zarr_format=zarr_format, **made)
        names.add(begun_as(path, group="a"))
    assert len(names) == 10
    reopen(path, **known)
    assert begun_as(path, group="a") in names
    reopen(path, **known).finish()
    with pytest.raises(OutputError, match="nobody is writing"):
        begun_as(path, group="a")
    finished = (path / "a" / ("zarr.json" if zarr_format == 3 else ".zattrs")).read_text()
    assert not any(name in finished for name in names)
    reopen(path, finished=True, **known)
    assert begun_as(path, group="a") not in names
