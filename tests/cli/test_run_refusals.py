"""What fgnet-run refuses: one clear line, an exit code, and nothing left behind that opens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.gpu_driver import gpu_present
from fgnet.volumes.errors import AddressError, VolumeError
from fgnet.volumes.reading import open_volume

COMMAND = Path(sys.executable).parent / "fgnet-run"

Result = subprocess.CompletedProcess[str]


def run(*arguments: object) -> Result:
    result = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in result.stderr
    return result


def run_here(*arguments: object) -> Result:
    """The same command in this process, where it need not import everything anew."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return Result([], result.exit_code, result.stdout, result.stderr)


def opens(path: Path | str) -> bool:
    """Whether a path opens as an image, by itself or as the affinities inside."""
    for address in (str(path), f"{path}/affinities"):
        try:
            open_volume(address, ndim=(3, 4)).close()
        except (AddressError, VolumeError):
            continue
        return True
    return False


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise; not to be changed."""
    path = tmp_path_factory.mktemp("refused") / "noise.zarr"
    zarr.create_array(str(path), data=np.random.default_rng(0).integers(0, 256, (6, 80, 96), dtype=np.uint8))
    return path


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
        return [folder / "v.zarr", "--gray-range", "0,1"]

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
    content = bytearray((bundle / "encoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "encoder.onnx").write_bytes(content)
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
    "tampered bundle": (_tampered, 1, "encoder.onnx: the file is not the one that was exported"),
    "no bundle": (_with("--model", "/none"), 1, "no bundle here"),
    "stride 0": (_with("--stride", "0,32,32"), 1, "stride"),
    "stride larger than the patch": (_with("--stride", "2,32,65"), 1, "stride 65 is larger than the patch 64"),
    "stride as text": (_with("--stride", "small"), 1, "'small' is not three whole numbers"),
    "stride of two": (_with("--stride", "2,32"), 1, "'2,32' is not three whole numbers"),
    "region outside": (_with("--roi", "0:7,:,:"), 1, "7 lies outside the volume"),
    "region of an empty variable": (_with("--roi", ""), 1, "a region needs three ranges"),
    "stride of an empty variable": (_with("--stride", ""), 1, "'' is not three whole numbers"),
    "region as text": (_with("--roi", "all"), 1, "a region needs three ranges"),
    "region without voxels": (_with("--roi", "3:3,:,:"), 1, "holds no voxel"),
    "threshold above 1": (_with("--threshold", "1.5"), 1, "threshold: it is 1.5"),
    "threshold below 0": (_with("--threshold", "-0.1"), 1, "threshold: it is -0.1"),
    "threshold NaN": (_with("--threshold", "nan"), 1, "threshold: it is nan"),
    "quantile that is not compiled": (_with("--quantile", "51"), 1, "quantile"),
    "fragments unknown": (_with("--fragments", "mine"), 1, "fragments"),
    "range that falls": (_with("--gray-range", "9,1"), 1, "cannot rescale the range"),
    "output below a file": (_with("-o", f"{__file__}/out.zarr"), 1, "is a file, not a folder"),
    "threshold as text": (_with("--threshold", "high"), 2, "--threshold"),
    "range as text": (_with("--gray-range", "dark"), 2, "is not LOW,HIGH"),
    "int8 that the bundle lacks": (_with("--precision", "int8"), 1, "no graphs of precision int8, only fp32"),
    "fp16 that the bundle lacks": (
        _with("--backend", "openvino", "--precision", "fp16"),
        1,
        "no graphs of precision fp16, only fp32",
    ),
    "int8 in PyTorch": (_with("--backend", "torch", "--precision", "int8"), 1, "PyTorch runs no int8 network here"),
    "OpenVINO on a GPU": (_with("--backend", "openvino", "--device", "cuda"), 1, "OpenVINO runs on no NVIDIA GPU"),
    "TensorRT on a CPU": (_with("--backend", "tensorrt", "--device", "cpu"), 1, "tensorrt runs on NVIDIA GPUs only"),
    "unknown backend": (_with("--backend", "abacus"), 2, "'abacus' is not one of auto, tensorrt, tensorrt-rtx"),
    "unknown precision": (_with("--precision", "fp8"), 2, "'fp8' is not one of fp32, fp16, bf16, int8"),
    "unknown device": (_with("--device", "tpu"), 2, "'tpu' is not one of cpu, cuda"),
    "threads 0": (_with("--threads", "0"), 2, "--threads"),
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


NEEDS_GPU = [
    ["--device", "cuda"],
    ["--backend", "onnxruntime", "--device", "cuda"],
    ["--backend", "torch", "--device", "cuda"],
    ["--backend", "tensorrt"],
    ["--backend", "tensorrt-rtx"],
    ["--backend", "onnxruntime-tensorrt"],
]


@pytest.mark.parametrize("options", NEEDS_GPU, ids=" ".join)
def test_a_machine_without_gpu_says_so_in_one_line(
    volume: Path, tiny_bundle: Path, tmp_path: Path, options: list[str]
) -> None:
    if gpu_present():
        pytest.skip("there is a GPU")
    result = run_here(volume, "-o", tmp_path / "out.zarr", "--model", tiny_bundle, "--json", *options)
    assert (result.returncode, result.stdout) == (1, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == result.stderr.splitlines()[-1:]
    assert any(told in errors[0] for told in ("GPU", "CUDA", "is not installed", "ExecutionProvider"))
    assert not (tmp_path / "out.zarr").exists()
