from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgnet.cli.export import app
from fgnet.engine.bundle import MANIFEST, Decoding, load_bundle

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

Exported = tuple[Path, dict[str, Any], str]
COMMAND = Path(sys.executable).parent / "fgnet-export"


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=300)
    assert "Traceback" not in result.stderr
    return result


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same command in this process, where it need not import everything anew."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return subprocess.CompletedProcess([], result.exit_code, result.stdout, result.stderr)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


GRAPHS = ["decoder.fp16.onnx", "decoder.onnx"]


def test_json_says_what_was_written_and_how_equal_it_is(exported: Exported) -> None:
    path, result, _ = exported
    bundle = load_bundle(path)
    assert result.keys() == {"output", "name", "files", "parity"}
    assert (result["output"], result["name"]) == (str(path), "mine")
    assert result["files"] == {name: (path / name).stat().st_size for name in (*GRAPHS, "model.onnx", "model.pt")}
    assert result["parity"] == list(bundle.manifest.parity)
    assert [(r["backend"], r["precision"], r["passed"]) for r in result["parity"]] == [
        ("onnxruntime", "fp16", True),
        ("onnxruntime", "fp32", True),
    ]


def test_the_steps_are_told_on_stderr(exported: Exported) -> None:
    path, _, stderr = exported
    assert stderr.splitlines()[0] == f"exporting {path.with_suffix('.pt')}"
    for line in ("tracing the encoder and the decoder", "comparing onnxruntime fp16", "comparing onnxruntime fp32"):
        assert line in stderr.splitlines()


def test_advice_goes_into_the_manifest(exported: Exported) -> None:
    manifest = load_bundle(exported[0]).manifest
    assert manifest.decoding == Decoding("affinity", "mean", 75, 0.25)
    assert manifest.stride == (1, 16, 32)
    assert manifest.sections == 2
    assert [graphs.precision for graphs in manifest.graphs] == ["fp16", "fp32"]
    assert manifest.single == "model.onnx"


def test_people_read_a_table_and_real_gray_is_compared_on_against_its_labels(
    model: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    file = shared_data("gala_fib_train.h5")
    real = ["--parity-volume", f"{file}:raw", "--parity-labels", f"{file}:labels", "--parity-roi", "10:13,:32,:48"]
    triton = ["--triton", tmp_path / "r"]
    result = run_here(model, "-o", tmp_path / "b", "--no-checkpoint", "--backend", "onnxruntime", *real, *triton)
    assert result.returncode == 0, result.stderr
    (report,) = load_bundle(tmp_path / "b").manifest.parity
    # Blocks of 2 x 32 x 32 in 3 x 32 x 48, half of them overlapping.
    assert (report["against"], report["blocks"]) == ("labels", 4)
    lines = result.stdout.splitlines()
    (row,) = [line for line in lines if "onnxruntime" in line]
    assert "fp32" in row
    assert "equal" in row
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'b'))}: 0\.\d MB, fp32", lines[-2])
    assert lines[-1] == f"{tmp_path / 'r'}: 3 files; its README.md says how a client feeds it"
    assert listing(tmp_path / "b") == ["decoder.onnx", MANIFEST]
    assert (tmp_path / "r" / "model_decoder" / "1" / "model.onnx").is_file()


def test_an_export_with_a_model_repository_still_prints_one_object(model: Path, tmp_path: Path) -> None:
    options = ["-o", tmp_path / "b", "--backend", "onnxruntime", "--triton", tmp_path / "r", "--json"]
    result = run_here(model, *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["output"], found["triton"]) == (str(tmp_path / "b"), str(tmp_path / "r"))
    assert listing(tmp_path / "r")[0] == "README.md"


def test_what_a_backend_gives_otherwise_is_refused_and_written_by_force_only(model: Path, tmp_path: Path) -> None:
    from fgnet.network.checkpoint import load_checkpoint, save_checkpoint

    # Affinities as moderate as before, but what the decoder holds in between is too large for fp16; no weight is.
    checkpoint = load_checkpoint(model)
    coarse, fine = (checkpoint.weights[f"refined.narrows.{i}.weight"] for i in (1, 0))
    scaled = {
        "refined.narrows.1.weight": coarse * 6e4 / coarse.abs().max(),
        "refined.narrows.1.bias": torch.full((len(coarse),), 6e4),
        "refined.narrows.0.weight": fine / 6e4,
    }
    save_checkpoint(tmp_path / "m.pt", replace(checkpoint, weights=checkpoint.weights | scaled))
    arguments = [tmp_path / "m.pt", "--precision", "fp16", "--backend", "onnxruntime"]
    result = run_here(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert "numbers are not finite" in result.stderr.splitlines()[-1]
    assert "--force" in result.stderr.splitlines()[-1]
    assert listing(tmp_path) == ["m.pt"]
    result = run_here(*arguments, "--force")
    assert result.returncode == 0, result.stderr
    assert "FAILED" in result.stdout
    assert [report["passed"] for report in load_bundle(tmp_path / "m.bundle").manifest.parity] == [False]


def test_int8_is_calibrated_on_a_volume(model: Path, tmp_path: Path) -> None:
    import numpy as np
    import zarr

    gray = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    zarr.create_array(str(tmp_path / "v.zarr"), data=gray)
    # An untrained network's segmentations say nothing about int8.
    options = ["--precision", "int8", "--backend", "onnxruntime", "--force", "--json"]
    result = run_here(model, "-o", tmp_path / "b", "--calibration", tmp_path / "v.zarr", *options)
    assert result.returncode == 0, result.stderr
    (report,) = json.loads(result.stdout)["parity"]
    assert (report["precision"], report["not_finite"]) == ("int8", 0)
    assert 0 < report["mean"] < 0.05


def _missing(folder: Path, model: Path) -> list[object]:
    return [folder / "none.pt"]


def _no_checkpoint(folder: Path, model: Path) -> list[object]:
    (folder / "notes.pt").write_text("mine")
    return [folder / "notes.pt"]


def _state_of_a_run(folder: Path, model: Path) -> list[object]:
    from fgnet.network.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(folder / "last.pt", replace(load_checkpoint(model), training={"step": 1}))
    return [folder / "last.pt", "-o", folder / "b"]


def _truncated(folder: Path, model: Path) -> list[object]:
    (folder / "half.pt").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    return [folder / "half.pt"]


def _pickled(folder: Path, model: Path) -> list[object]:
    torch.save({"format": "fgnet-checkpoint", "network": torch.nn.Linear(2, 2)}, folder / "module.pt")
    return [folder / "module.pt"]


def _other_weights(folder: Path, model: Path) -> list[object]:
    torch.save({"model": {"trunk.weight": torch.zeros(3)}}, folder / "sam2.pt")
    return [folder / "sam2.pt"]


def _foreign_folder(folder: Path, model: Path) -> list[object]:
    (folder / "out").mkdir()
    (folder / "out" / MANIFEST).write_text('{"name": "a web page"}')
    return [model, "-o", folder / "out", "--overwrite"]


def _other_shape(folder: Path, model: Path) -> list[object]:
    import numpy as np
    import zarr

    zarr.create_array(str(folder / "gray.zarr"), data=np.zeros((2, 32, 32), np.uint8))
    zarr.create_array(str(folder / "labels.zarr"), data=np.zeros((2, 32, 33), np.uint64))
    return [model, "--parity-volume", folder / "gray.zarr", "--parity-labels", folder / "labels.zarr"]


def _of_another_network(folder: Path, model: Path) -> list[object]:
    from fgnet.network.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(model)
    wider = replace(checkpoint, config=replace(checkpoint.config, widths=(4, 6, 10)))
    save_checkpoint(folder / "other.pt", wider)
    return [folder / "other.pt"]


def _with(*options: object) -> Callable[[Path, Path], list[object]]:
    return lambda folder, model: [model, *options]


BAD: dict[str, tuple[Callable[[Path, Path], list[object]], int, str]] = {
    "missing": (_missing, 1, "no such file"),
    "no checkpoint": (_no_checkpoint, 1, "notes.pt"),
    "state of a run": (_state_of_a_run, 1, "give the model.pt beside it"),
    "truncated": (_truncated, 1, "half.pt: the file cannot be read as a checkpoint"),
    "needs unpickling": (_pickled, 1, "it was not run"),
    "SAM2's weights": (_other_weights, 1, "not an fgnet checkpoint"),
    "another network": (_of_another_network, 1, "other.pt: the weights do not fit the network"),
    "folder of something else": (_foreign_folder, 1, "it was not touched"),
    "bundle that exists": (_with("-o", "{bundle}"), 1, "exists already"),
    "stride larger than the patch": (_with("--stride", "3,32,32"), 1, "stride 3 is larger than the patch 2"),
    "stride as text": (_with("--stride", "small"), 1, "'small' is not three whole numbers"),
    "fragments unknown": (_with("--fragments", "mine"), 1, "fragments"),
    "quantile that is not compiled": (_with("--quantile", 51), 1, "quantile"),
    "parity volume missing": (_with("--parity-volume", "/none.zarr"), 1, "there is no such file"),
    "int8 without calibration": (_with("--precision", "int8"), 1, "int8 takes its scales from real tissue"),
    "calibration missing": (_with("--precision", "int8", "--calibration", "/none.zarr"), 1, "there is no such file"),
    "no checkpoint given": (lambda folder, model: [], 2, "give a checkpoint, or --verify, --inspect"),
    "triton without bundle": (lambda folder, model: ["--triton", folder / "r"], 2, "--triton with --bundle"),
    "triton of a precision that is not held": (
        lambda folder, model: ["--triton", folder / "r", "--bundle", "{bundle}", "--precision", "bf16"],
        1,
        "no graphs of precision bf16, only fp16, fp32",
    ),
    "triton of plans for another GPU": (
        lambda folder, model: [
            *("--triton", folder / "r", "--bundle", "{bundle}", "--backend", "tensorrt", "--architecture", "sm75")
        ],
        1,
        "for sm75",
    ),
    "triton of several GPUs": (
        lambda folder, model: ["--triton", folder / "r", "--bundle", "{bundle}", "--architecture", "sm80,sm90"],
        2,
        "one kind of GPU",
    ),
    "triton of no plans": (
        lambda folder, model: ["--triton", folder / "r", "--bundle", "{bundle}", "--backend", "tensorrt"],
        1,
        "the bundle holds no TensorRT plans",
    ),
    "name of what is verified": (lambda folder, model: ["--verify", "{bundle}", "--name", "x"], 2, "--verify does not"),
    "precision of what is verified": (
        lambda folder, model: ["--verify", "{bundle}", "--precision", "fp32"],
        2,
        "--precision: --verify does not read that",
    ),
    "threshold of what is verified": (
        lambda folder, model: ["--verify", "{bundle}", "--threshold", "0.5"],
        2,
        "--threshold: --verify does not read that",
    ),
    "verifying and inspecting": (
        lambda folder, model: ["--inspect", "{bundle}", "--verify", "{bundle}"],
        2,
        "--inspect: --verify does not read that",
    ),
    "inspecting a checkpoint": (
        lambda folder, model: [model, "--inspect", "{bundle}"],
        2,
        "MODEL: --inspect does not read that",
    ),
    "inspecting without a checkpoint kept": (
        lambda folder, model: ["--inspect", "{bundle}", "--no-checkpoint"],
        2,
        "--no-checkpoint: --inspect does not read that",
    ),
    "triton of a bundle with a stride": (
        lambda folder, model: ["--triton", folder / "r", "--bundle", "{bundle}", "--parity-roi", "0:2,:,:"],
        2,
        "--parity-roi: --triton with --bundle does not read that",
    ),
    "triton of two": (
        lambda folder, model: [model, "--triton", folder / "r", "--bundle", "{bundle}"],
        2,
        "of MODEL a bundle is made",
    ),
    "inspecting no bundle": (lambda folder, model: ["--inspect", folder], 1, "no bundle here"),
    "unknown backend": (_with("--backend", "onnxruntime,cudnn"), 2, "'cudnn' is not one of"),
    "unknown precision": (_with("--precision", "fp8"), 2, "'fp8' is not one of"),
    "empty precision": (_with("--precision", ""), 2, "'' is not one of"),
    "no sections": (_with("--sections", 0), 2, "--sections"),
    "labels without gray": (_with("--parity-labels", "v.zarr"), 2, "they belong to --parity-volume"),
    "region without gray": (_with("--parity-roi", "0:2,:,:"), 2, "they belong to --parity-volume"),
    "labels of another shape": (_other_shape, 2, "shape (2, 32, 33), the gray's is (2, 32, 32)"),
    "threshold above 1": (_with("--threshold", 1.5), 2, "--threshold"),
    "unknown option": (_with("--nonsense"), 2, "--nonsense"),
}


def exported_to(folder: Path, arguments: Sequence[object]) -> list[object]:
    """The options that name where a bundle is written, for arguments that make one."""
    return [] if {"--verify", "--inspect", "--bundle"}.intersection(map(str, arguments)) else ["-o", folder]


# Some go through the installed command, the others through the function behind it.
INSTALLED = {"truncated", "needs unpickling", "unknown option"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line_and_writes_nothing(
    model: Path, exported: Exported, tmp_path: Path, case: str
) -> None:
    make, code, message = BAD[case]
    arguments = [exported[0] if argument == "{bundle}" else argument for argument in make(tmp_path, model)]
    before = listing(tmp_path), listing(model.parent)
    result = (run if case in INSTALLED else run_here)(*exported_to(tmp_path / "b", arguments), *arguments, "--json")
    assert (result.returncode, result.stdout) == (code, "")
    # The box that usage errors stand in breaks lines.
    assert message in (result.stderr if code == 1 else " ".join(re.sub("[│\\n]", " ", result.stderr).split()))
    if code == 1:
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.stderr.splitlines()[-1] == line
        assert message in line
    assert (listing(tmp_path), listing(model.parent)) == before


def test_help_starts_without_heavy_imports() -> None:
    code = "import sys, fgnet.cli.export; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Imports of the package fail as if it had never been installed.
HIDING = (
    "import sys; sys.modules['{package}'] = None; sys.argv = {arguments}; from fgnet.cli.export import main; main()"
)


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("torch", ["{model}"], "the package 'torch' is not installed, and this needs it (pip install 'fgnet[train]')"),
        ("onnx", ["{model}"], "the package 'onnx' is not installed, and this needs it (pip install 'fgnet[train]')"),
        ("torch", ["--verify", "{bundle}"], "the package 'torch' is not installed"),
        ("onnx", ["--inspect", "{bundle}"], "the package onnx is not installed"),
        ("onnx", ["--triton", "{output}", "--bundle", "{bundle}"], "the package onnx is not installed"),
        ("onnxruntime", ["--verify", "{bundle}", "--backend", "onnxruntime"], "onnxruntime is not installed"),
    ],
    ids=str,
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    model: Path,
    exported: Exported,
    tmp_path: Path,
    package: str,
    arguments: list[str],
    message: str,
) -> None:
    values = {"model": model, "bundle": exported[0], "output": tmp_path / "r"}
    output = map(str, exported_to(tmp_path / "b", arguments))
    filled = ["fgnet-export", *output, *(argument.format(**values) for argument in arguments)]
    code = HIDING.format(package=package, arguments=filled)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert "pip install" in result.stderr
    assert listing(tmp_path) == []
