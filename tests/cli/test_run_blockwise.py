"""fgnet-run with the blockwise decoder: its segmentation, and what a kill during decoding costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fgnet.engine.run_outputs import decoding_folder
from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_array
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.reading import open_volume

COMMAND = Path(sys.executable).parent / "fgnet-run"
SHAPE = (12, 150, 300)
SECTIONS = WatershedOptions(flow="sections")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    zarr.create_array(str(store), shape=SHAPE, chunks=(8, 64, 64), dtype="u1")[:] = gray
    return store


@pytest.fixture(scope="module")
def command(volume: Path, tiny_bundle: Path) -> list[str]:
    options = ["--decoder", "blockwise", "--threshold", "0.6", "--save-affinities", "--threads", "1"]
    return [str(COMMAND), str(volume), "--model", str(tiny_bundle), "--backend", "onnxruntime", *options]


def run(command: list[str], output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    full = [*command, "-o", str(output), *options]
    result = subprocess.run(full, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out.zarr"
    result = run(command, output)
    assert result.returncode == 0, result.stderr
    return output


def read(address: object, *axes: int) -> npt.NDArray[np.generic]:
    with open_volume(str(address), ndim=axes) as opened:
        return opened.read(opened.box)


def test_the_segmentation_is_that_of_its_affinities_decoded_as_a_whole(whole: Path) -> None:
    affinities = np.asarray(read(f"{whole}/affinities", 4), np.uint8)
    (expected,) = decode_array(affinities, BlockwiseOptions((0.6,), block=SHAPE, watershed=SECTIONS))
    found = read(whole, 3)
    assert found.max() > 1
    np.testing.assert_array_equal(found, expected)
    assert not decoding_folder(whole).exists()


def test_a_kill_while_it_decodes_costs_no_affinities_and_changes_no_byte(
    command: list[str], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    for _ in range(2):
        full = [*command, "-o", str(output), "--resume"]
        process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        pieces = len(list(decoding_folder(output).rglob("*.npz")))
        while process.poll() is None and len(list(decoding_folder(output).rglob("*.npz"))) <= pieces:
            time.sleep(0.002)
        process.kill()
        process.communicate()
    assert any(decoding_folder(output).iterdir())
    result = run(command, output, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(read(output, 3), read(whole, 3))
    assert not decoding_folder(output).exists()


def test_another_threshold_after_a_kill_is_heeded(command: list[str], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    full = [*command, "-o", str(output)]
    process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(decoding_folder(output).rglob("*.npz")):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    result = run(command, output, "--resume", "--threshold", "0.3")
    assert result.returncode == 0, result.stderr
    affinities = np.asarray(read(f"{whole}/affinities", 4), np.uint8)
    (expected,) = decode_array(affinities, BlockwiseOptions((0.3,), block=SHAPE, watershed=SECTIONS))
    np.testing.assert_array_equal(read(output, 3), expected)


def test_fragments_may_follow_the_affinities(command: list[str], whole: Path, tmp_path: Path) -> None:
    result = run(command, tmp_path / "out.zarr", "--fragments", "affinity", "--scoring", "mean")
    assert result.returncode == 0, result.stderr
    affinities = np.asarray(read(f"{whole}/affinities", 4), np.uint8)
    (expected,) = decode_array(affinities, BlockwiseOptions((0.6,), block=SHAPE))
    np.testing.assert_array_equal(read(tmp_path / "out.zarr", 3), expected)


def test_without_a_threshold_for_means_one_has_to_be_given(command: list[str], tmp_path: Path) -> None:
    at = command.index("--threshold")
    result = run(command[:at] + command[at + 2 :], tmp_path / "out.zarr")
    assert result.returncode == 1
    assert "threshold" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_of_waterz_are_refused(command: list[str], tmp_path: Path) -> None:
    for option, value in (("--quantile", "75"), ("--scoring", "quantile")):
        result = run(command, tmp_path / "out.zarr", option, value)
        assert result.returncode == 2
        assert "waterz's" in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
