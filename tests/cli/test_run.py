from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from ome_zarr_models import v04, v05
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.run import app, main
from fgnet.engine.openvino_runner import computes_bf16
from fgnet.postproc.metrics import score
from fgnet.volumes import kept_memory
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


def test_the_command_keeps_the_memory_that_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(kept_memory, "keep_memory", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["fgnet-run", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert asked == [True]


def test_json_has_the_figures_of_the_run(made: tuple[Path, dict[str, Any]]) -> None:
    output, result = made
    assert result.keys() >= PER_RUN
    assert result["voxels"] == np.prod(SHAPE)
    assert result["seconds"] > 0
    assert result["voxels_per_second"] == pytest.approx(result["voxels"] / result["seconds"], rel=1e-2)
    assert {"affinities", "decode", "write"} <= result["stages"].keys()
    assert "the network" in result["bottleneck"]
    assert min(result["stages"].values()) >= 0
    assert sum(result["stages"].values()) <= result["seconds"]
    assert (result["output"], result["model"]) == (str(output), "tiny")
    assert (result["backend"], result["precision"]) == (result["runner"]["backend"], result["runner"]["precision"])
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
    assert re.search(r"tiny on (onnxruntime|openvino) \w+: the fastest installed for this CPU", result.stderr)
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


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "fp16"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")],
)
def test_a_backend_and_a_precision_that_are_asked_for_are_what_runs(
    made: tuple[Path, dict[str, Any]],
    volume: Path,
    precise_bundle: Path,
    tmp_path: Path,
    backend: str,
    precision: str,
) -> None:
    if precision == "bf16" and not computes_bf16():
        pytest.skip("this CPU computes no bfloat16")
    options = ["--model", precise_bundle, "--backend", backend, "--precision", precision, "--device", "cpu"]
    result = run_here(volume, "-o", tmp_path / "o.zarr", *options, "--threshold", 0.2, "--save-affinities", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    runner = found["runner"]
    assert (found["backend"], found["precision"]) == (runner["backend"], runner["precision"]) == (backend, precision)
    assert f"tiny on {backend} {precision}: asked for" in result.stderr
    with (
        open_volume(f"{tmp_path}/o.zarr/affinities", ndim=(4,)) as affinities,
        open_volume(f"{made[0]}/affinities", ndim=(4,)) as exact,
    ):
        differences = np.abs(affinities.read(affinities.box).astype(int) - exact.read(exact.box))
    assert differences.mean() < {"fp32": 0.1, "fp16": 1}.get(precision, 0.05 * 255)


def test_what_the_export_found_wanting_is_refused(volume: Path, precise_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(precise_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["parity"] = [{"backend": "onnxruntime", "precision": "int8", "passed": False}]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    options = ["--backend", "onnxruntime", "--precision", "int8"]
    refused = run_here(volume, "-o", tmp_path / "o.zarr", "--model", bundle, *options)
    assert refused.returncode == 1
    assert "int8 is not offered for this model" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "o.zarr").exists()


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
        segmented(source, "-o", output, "--model", tiny_bundle, "--threshold", 0.2, "--gray-range", "1000,26500")
        np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))


def test_decoder_options_take_the_place_of_the_models_advice(volume: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    common = [volume, "--model", tiny_bundle, "--roi", ":4,:64,:64", "--overwrite", "-o", tmp_path / "o.zarr"]
    advised, all_fragments = segmented(*common), segmented(*common, "--threshold", 0)
    assert advised["threshold"] == 0.5
    assert all_fragments["segments"] > advised["segments"]
    large = segmented(*common, "--threshold", 0, "--min-size", 50, "--scoring", "mean", "--decoder", "waterz")
    assert 0 < large["segments"] < all_fragments["segments"]
    ids, sizes = np.unique(labels_of(tmp_path / "o.zarr"), return_counts=True)
    assert sizes[ids > 0].min() >= 50


def test_an_output_that_exists_is_refused_and_replaced_with_its_affinities_where_that_is_allowed(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(made[0], tmp_path / "o.zarr")
    shutil.copy(f"{made[0]}.run.json", f"{output}.run.json")
    refused = run(volume, "-o", output, "--model", tiny_bundle)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))
    segmented(volume, "-o", output, "--model", tiny_bundle, "--overwrite", "--roi", ":2,:64,:64")
    assert labels_of(output).shape == (2, 64, 64)
    assert not (output / "affinities").exists()


@pytest.mark.parametrize(
    "options",
    [["--threshold", "1.5"], ["--stride", "9,9,9"], ["--gray-range", "9,1"], ["--fragments", "mine"]],
    ids=str,
)
def test_options_that_make_no_sense_cost_no_earlier_output(
    made: tuple[Path, dict[str, Any]], volume: Path, tiny_bundle: Path, tmp_path: Path, options: list[str]
) -> None:
    output = shutil.copytree(made[0], tmp_path / "o.zarr")
    assert run_here(volume, "-o", output, "--model", tiny_bundle, "--overwrite", *options).returncode == 1
    np.testing.assert_array_equal(labels_of(output), labels_of(made[0]))


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
