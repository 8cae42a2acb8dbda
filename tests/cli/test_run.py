from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from ome_zarr_models import v04, v05
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.postproc.metrics import score
from fgnet.volumes.errors import AddressError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil
from fgnet.volumes.reading import open_volume, read_gray, read_labels
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image

COMMAND = Path(sys.executable).parent / "fgnet-run"
SHAPE = (6, 80, 96)
SPACE = Space((40.0, 4.0, 4.0), (400.0, 12.0, 20.0))
PER_RUN = {"voxels", "seconds", "voxels_per_second", "stages", "backend", "output", "segments"}

Result = subprocess.CompletedProcess[str]


def run(*arguments: object, folder: Path | None = None) -> Result:
    result = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder, timeout=300
    )
    assert "Traceback" not in result.stderr
    return result


def run_here(*arguments: object) -> Result:
    """The same command in this process, where it need not import everything anew."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return Result([], result.exit_code, result.stdout, result.stderr)


def segmented(*arguments: object) -> dict[str, Any]:
    """What a run that succeeds prints: one JSON object, alone on stdout."""
    result = run(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def labels_of(path: Path | str) -> npt.NDArray[np.uint64]:
    with open_volume(path) as volume:
        return read_labels(volume, volume.box)


def opens(path: Path | str) -> bool:
    """Whether a path opens as an image, by itself or as the affinities inside."""
    for address in (str(path), f"{path}/affinities"):
        try:
            open_volume(address, ndim=(3, 4)).close()
        except (AddressError, VolumeError):
            continue
        return True
    return False


def write(path: Path, gray: npt.NDArray[Any], *, zarr_format: Any = 3) -> Path:
    writer = create_image(path, shape=gray.shape, dtype=gray.dtype, space=SPACE, zarr_format=zarr_format)
    writer.write(Box.from_shape(gray.shape), gray)
    writer.finish()
    return path


@pytest.fixture(scope="session")
def gray() -> npt.NDArray[np.uint8]:
    return make_neuropil(NeuropilOptions(SHAPE, (10.0, 10.0, 10.0), 1)).raw


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory, gray: npt.NDArray[np.uint8]) -> Path:
    """Not to be changed."""
    return write(tmp_path_factory.mktemp("run") / "tissue.zarr", gray)


@pytest.fixture(scope="session")
def made(volume: Path, tiny_bundle: Path) -> tuple[Path, dict[str, Any]]:
    """An output with everything that can be in it, and what was printed; not to be changed."""
    output = volume.parent / "made.zarr"
    options = ["--save-affinities", "--preview", output.with_suffix(".png"), "--threshold", 0.2]
    return output, segmented(volume, "-o", output, "--model", tiny_bundle, *options)


def test_json_has_the_figures_of_the_run(made: tuple[Path, dict[str, Any]]) -> None:
    output, result = made
    assert result.keys() >= PER_RUN
    assert result["voxels"] == np.prod(SHAPE)
    assert result["seconds"] > 0
    assert result["voxels_per_second"] == pytest.approx(result["voxels"] / result["seconds"], rel=1e-2)
    assert {"read", "infer", "blend", "decode", "write"} <= result["stages"].keys()
    assert min(result["stages"].values()) >= 0
    assert sum(result["stages"].values()) <= result["seconds"]
    assert (result["backend"], result["output"], result["model"]) == ("onnxruntime", str(output), "tiny")
    assert result["threshold"] == 0.2


def test_the_output_holds_the_segments_that_were_counted_at_the_place_of_the_volume(
    made: tuple[Path, dict[str, Any]],
) -> None:
    output, result = made
    with open_volume(output) as found:
        assert (found.shape, found.dtype, found.space) == (SHAPE, np.uint64, SPACE)
    ids = np.unique(labels_of(output))
    assert result["segments"] > 10
    np.testing.assert_array_equal(ids[ids > 0], np.arange(1, result["segments"] + 1))


def test_affinities_are_kept_inside_the_output(made: tuple[Path, dict[str, Any]]) -> None:
    with open_volume(f"{made[0]}/affinities", ndim=(4,)) as affinities:
        assert (affinities.shape, affinities.dtype, affinities.space) == ((3, *SHAPE), np.uint8, SPACE)
        values = affinities.read(affinities.box)
    assert all(np.ptp(channel) > 50 for channel in values)


def test_the_segmentation_is_that_of_its_affinities(made: tuple[Path, dict[str, Any]]) -> None:
    from fgnet.postproc.waterz_decoder import compact_ids, decode_waterz

    with open_volume(f"{made[0]}/affinities", ndim=(4,)) as affinities:
        (expected,) = decode_waterz(affinities.read(affinities.box), [0.2])
    np.testing.assert_array_equal(labels_of(made[0]), compact_ids(expected))


def test_the_preview_is_a_picture(made: tuple[Path, dict[str, Any]]) -> None:
    with Image.open(made[0].with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 3 * SHAPE[2]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_outputs_are_valid_ome_ngff_in_both_versions(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path, zarr_format: int
) -> None:
    output, models = made[0], v05
    if zarr_format == 2:
        output, models = tmp_path / "o.zarr", v04  # type: ignore[assignment]
        segmented(volume, "-o", output, "--model", tiny_bundle, "--zarr-format", 2, "--save-affinities")
    group = zarr.open_group(str(output), mode="r")
    assert group.metadata.zarr_format == zarr_format
    models.ImageLabel.from_zarr(group)  # type: ignore[arg-type]
    models.Image.from_zarr(group["affinities"])  # type: ignore[arg-type]


def test_a_region_is_the_same_part_of_the_affinities_and_says_where_it_lies(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    region = ["--roi", "1:4,16:,:40", "--save-affinities"]
    result = segmented(volume, "-o", output, "--model", tiny_bundle, *region)
    assert result["voxels"] == 3 * 64 * 40
    with open_volume(output) as found:
        assert (found.shape, found.space) == ((3, 64, 40), SPACE.shifted((1, 16, 0)))
    with (
        open_volume(f"{output}/affinities", ndim=(4,)) as part,
        open_volume(f"{made[0]}/affinities", ndim=(4,)) as whole,
    ):
        assert part.space == SPACE.shifted((1, 16, 0))
        expected = whole.read(Box((1, 16, 0), (4, 80, 40)))
        np.testing.assert_array_equal(part.read(part.box), expected)


def test_people_read_one_line(volume: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    # The name of the output is the volume's, in the folder where the command runs.
    result = run(volume, "--model", tiny_bundle, "--roi", ":2,:64,:64", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("tissue.segmentation.zarr: ")
    assert "tiny on onnxruntime" in result.stderr
    assert opens(tmp_path / "tissue.segmentation.zarr")


def test_pytorch_gives_the_segmentation_of_onnxruntime(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = ["--model", tiny_bundle, "--threshold", 0.2, "--backend", "torch", "--threads", 1]
    result = segmented(volume, "-o", tmp_path / "o.zarr", *options)
    assert (result["backend"], result["runner"]["backend"], result["runner"]["threads"]) == ("torch", "torch", 1)
    scores = score(labels_of(tmp_path / "o.zarr"), labels_of(made[0]))
    assert scores.voi < 0.02
    assert scores.objects > 10


def test_other_dtypes_need_a_range_and_are_then_segmented_alike(
    made: tuple[Path, dict[str, Any]],
    gray: npt.NDArray[np.uint8],
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    for name, wide in (("u16", gray.astype(np.uint16) * 100 + 1000), ("f32", gray.astype(np.float32) * 100 + 1000)):
        source, output = write(tmp_path / f"{name}.zarr", wide), tmp_path / f"{name}-out.zarr"
        refused = run(source, "-o", output, "--model", tiny_bundle)
        assert refused.returncode == 1
        assert f"gray values are {wide.dtype}, expected uint8" in refused.stderr
        assert not output.exists()
        segmented(source, "-o", output, "--model", tiny_bundle, "--threshold", 0.2, "--rescale", "1000,26500")
        np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))


def test_decoder_options_take_the_place_of_the_models_advice(volume: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    common = [volume, "--model", tiny_bundle, "--roi", ":4,:64,:64", "--overwrite", "-o", tmp_path / "o.zarr"]
    advised, all_fragments = segmented(*common), segmented(*common, "--threshold", 0)
    assert advised["threshold"] == 0.5
    assert all_fragments["segments"] > advised["segments"]
    large = segmented(*common, "--threshold", 0, "--min-size", 50, "--scoring", "mean", "--quantile", 75)
    assert 0 < large["segments"] < all_fragments["segments"]
    ids, sizes = np.unique(labels_of(tmp_path / "o.zarr"), return_counts=True)
    assert sizes[ids > 0].min() >= 50


def test_an_output_that_exists_is_refused_and_replaced_with_its_affinities_where_that_is_allowed(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(made[0], tmp_path / "o.zarr")
    refused = run(volume, "-o", output, "--model", tiny_bundle)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))
    segmented(volume, "-o", output, "--model", tiny_bundle, "--overwrite", "--roi", ":2,:64,:64")
    assert labels_of(output).shape == (2, 64, 64)
    assert not (output / "affinities").exists()


def _missing(folder: Path, volume: Path) -> list[object]:
    return [folder / "none.zarr"]


def _text_file(folder: Path, volume: Path) -> list[object]:
    (folder / "notes.txt").write_text("mine")
    return [folder / "notes.txt"]


def _text_named_zarr(folder: Path, volume: Path) -> list[object]:
    (folder / "notes.zarr").write_text("mine")
    return [folder / "notes.zarr"]


def _rank_2(folder: Path, volume: Path) -> list[object]:
    zarr.create_array(str(folder / "v.zarr"), data=np.zeros((64, 64), np.uint8))
    return [folder / "v.zarr"]


def _rank_4(folder: Path, volume: Path) -> list[object]:
    zarr.create_array(str(folder / "v.zarr"), data=np.zeros((3, 4, 64, 64), np.uint8))
    return [folder / "v.zarr"]


def _empty(folder: Path, volume: Path) -> list[object]:
    with h5py.File(folder / "v.h5", "w") as file:
        file["raw"] = np.zeros((4, 0, 64), np.uint8)
    return [f"{folder / 'v.h5'}:raw"]


def _uint16(folder: Path, volume: Path) -> list[object]:
    zarr.create_array(str(folder / "v.zarr"), data=np.zeros((4, 64, 64), np.uint16))
    return [folder / "v.zarr"]


def _float(value: float) -> Callable[[Path, Path], list[object]]:
    def arguments(folder: Path, volume: Path) -> list[object]:
        values = np.zeros((4, 64, 64), np.float32)
        values[2, 10, 20] = value
        zarr.create_array(str(folder / "v.zarr"), data=values)
        return [folder / "v.zarr", "--rescale", "0,1"]

    return arguments


def _unreadable_chunk(folder: Path, volume: Path) -> list[object]:
    array = zarr.create_array(str(folder / "v.zarr"), shape=(4, 64, 128), chunks=(4, 64, 64), dtype="u1")
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, dtype=np.uint8)
    chunk = folder / "v.zarr" / "c" / "0" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    return [folder / "v.zarr"]


def _existing_output(folder: Path, volume: Path) -> list[object]:
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr" / "notes.txt").write_text("dear")
    return [volume, "--overwrite"]


def _with(*options: object) -> Callable[[Path, Path], list[object]]:
    return lambda folder, volume: [volume, *options]


def _tampered(folder: Path, volume: Path) -> list[object]:
    bundle = shutil.copytree(volume.parent / "bundle", folder / "bundle")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    return [volume, "--model", bundle]


BAD: dict[str, tuple[Callable[[Path, Path], list[object]], int, str]] = {
    "missing path": (_missing, 1, "there is no such file"),
    "text file": (_text_file, 1, "of no kind known here"),
    "text file named zarr": (_text_named_zarr, 1, "notes.zarr"),
    "rank 2": (_rank_2, 1, "expected (z, y, x)"),
    "rank 4": (_rank_4, 1, "expected (z, y, x)"),
    "empty": (_empty, 1, "the volume is empty"),
    "uint16": (_uint16, 1, "gray values are uint16, expected uint8"),
    "NaN": (_float(np.nan), 1, "nan at voxel (z, y, x) = (2, 10, 20)"),
    "infinite": (_float(np.inf), 1, "inf at voxel (z, y, x) = (2, 10, 20)"),
    "unreadable chunk": (_unreadable_chunk, 1, "cannot be read"),
    "foreign folder as output": (_existing_output, 1, "never overwritten"),
    "tampered bundle": (_tampered, 1, "model.onnx: the file is not the one that was exported"),
    "no bundle": (_with("--model", "/none"), 1, "no bundle here"),
    "stride 0": (_with("--stride", "0,32,32"), 1, "stride"),
    "stride larger than the patch": (_with("--stride", "2,32,65"), 1, "stride 65 is larger than the patch 64"),
    "stride as text": (_with("--stride", "small"), 1, "'small' is not three whole numbers"),
    "stride of two": (_with("--stride", "2,32"), 1, "'2,32' is not three whole numbers"),
    "region outside": (_with("--roi", "0:7,:,:"), 1, "7 lies outside the volume"),
    "region as text": (_with("--roi", "all"), 1, "a region needs three ranges"),
    "region without voxels": (_with("--roi", "3:3,:,:"), 1, "holds no voxel"),
    "threshold above 1": (_with("--threshold", "1.5"), 1, "threshold: it is 1.5"),
    "threshold below 0": (_with("--threshold", "-0.1"), 1, "threshold: it is -0.1"),
    "threshold NaN": (_with("--threshold", "nan"), 1, "threshold: it is nan"),
    "quantile that is not compiled": (_with("--quantile", "51"), 1, "quantile"),
    "fragments unknown": (_with("--fragments", "mine"), 1, "fragments"),
    "range that falls": (_with("--rescale", "9,1"), 1, "cannot rescale the range"),
    "output below a file": (_with("-o", f"{__file__}/out.zarr"), 1, "is a file, not a folder"),
    "threshold as text": (_with("--threshold", "high"), 2, "--threshold"),
    "range as text": (_with("--rescale", "dark"), 2, "is not LOW,HIGH"),
    "unknown backend": (_with("--backend", "abacus"), 2, "'abacus' is not one of auto, onnxruntime, torch"),
    "unknown decoder": (_with("--decoder", "oracle"), 2, "'oracle' is not one of waterz"),
    "unknown blending": (_with("--blending", "fog"), 2, "'fog' is not one of"),
    "unknown option": (_with("--nonsense"), 2, "--nonsense"),
    "Zarr version 4": (_with("--zarr-format", "4"), 2, "--zarr-format"),
}


# One of each stage goes through the installed command, the others through the function behind it.
INSTALLED = {"missing path", "rank 2", "NaN", "unreadable chunk", "tampered bundle", "stride 0", "unknown backend"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line_and_leaves_nothing_that_opens(
    volume: Path, tiny_bundle: Path, tmp_path: Path, case: str
) -> None:
    arguments, code, message = BAD[case]
    if not (volume.parent / "bundle").exists():
        (volume.parent / "bundle").symlink_to(tiny_bundle)
    output = tmp_path / "out.zarr"
    command = run if case in INSTALLED else run_here
    result = command("--model", tiny_bundle, "-o", output, *arguments(tmp_path, volume), "--json")
    assert (result.returncode, result.stdout) == (code, "")
    assert not opens(output)
    if code == 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert lines == result.stderr.splitlines()[-1:]
        assert message in lines[0]
    else:
        # Wrong usage is framed, and wrapped to the terminal's width.
        assert message.split()[0] in result.stderr
    for kept in tmp_path.rglob("notes.*"):
        assert kept.read_text() in ("mine", "dear")


@pytest.mark.parametrize(
    "options", [["--threshold", "1.5"], ["--stride", "9,9,9"], ["--rescale", "9,1"], ["--fragments", "mine"]], ids=str
)
def test_options_that_make_no_sense_cost_no_earlier_output(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path, options: list[str]
) -> None:
    output = shutil.copytree(made[0], tmp_path / "o.zarr")
    assert run_here(volume, "-o", output, "--model", tiny_bundle, "--overwrite", *options).returncode == 1
    np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from fgnet.cli.run import main
main()
"""


@pytest.mark.parametrize("keep", [[], ["--save-affinities"]], ids=["segmentation", "affinities"])
def test_a_full_disk_ends_in_one_clear_line_and_leaves_nothing_that_opens(
    volume: Path, tiny_bundle: Path, tmp_path: Path, keep: list[str]
) -> None:
    # More than any metadata, less than a chunk of either.
    arguments = [volume, "-o", tmp_path / "o.zarr", "--model", tiny_bundle, "--threshold", 0, "--json", *keep]
    command = [sys.executable, "-c", LIMITED, "4096", *map(str, arguments)]
    # Compiled kernels are read from where the tests before left them, and not written.
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=300)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "the file size limit is reached" in result.stderr
    assert not opens(tmp_path / "o.zarr")


def test_gray_of_real_tissue_is_segmented_from_its_hdf5(
    shared_data: Callable[[str], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    file = shared_data("fib25_t2.h5")
    result = segmented(
        f"{file}:raw", "-o", tmp_path / "o.zarr", "--model", tiny_bundle, "--roi", "200:204,90:154,90:154"
    )
    assert result["voxels"] == 4 * 64 * 64
    with open_volume(f"{file}:raw") as source, open_volume(tmp_path / "o.zarr") as found:
        assert found.space == source.space.shifted((200, 90, 90))
        assert read_gray(source, Box((200, 90, 90), (204, 154, 154))).std() > 10


def test_help_starts_without_heavy_imports() -> None:
    code = "import sys, fgnet.cli.run; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'zarr', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
