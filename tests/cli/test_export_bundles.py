"""What fgnet-export does with a bundle that is there: verify it, inspect it, write it as a model repository."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgnet.cli.export import app
from fgnet.engine.bundle import MANIFEST

Exported = tuple[Path, dict[str, Any], str]


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same command in this process, where it need not import everything anew."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return subprocess.CompletedProcess([], result.exit_code, result.stdout, result.stderr)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_bundle_is_verified_where_it_was_copied_to(exported: Exported, tmp_path: Path) -> None:
    copied = shutil.copytree(exported[0], tmp_path / "b")
    result = run_here("--verify", copied, "--backend", "onnxruntime", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["bundle"] == str(copied)
    assert [(r["precision"], r["passed"]) for r in found["parity"]] == [("fp16", True), ("fp32", True)]
    for again, before in zip(found["parity"], exported[1]["parity"], strict=True):
        assert again["largest"] == pytest.approx(before["largest"], abs=1e-3)
    result = run_here("--verify", copied, "--backend", "onnxruntime")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal") == 2


def test_verifying_tells_a_backend_that_is_not_equal_and_fails(exported: Exported, tmp_path: Path) -> None:
    from fgnet.engine.bundle import BundleManifest, sha256
    from fgnet.network.checkpoint import load_checkpoint, save_checkpoint

    copied = shutil.copytree(exported[0], tmp_path / "b")
    checkpoint = load_checkpoint(copied / "model.pt")
    weights = {key: -value if key == "refined.head.weight" else value for key, value in checkpoint.weights.items()}
    save_checkpoint(copied / "model.pt", replace(checkpoint, weights=weights))
    manifest = BundleManifest.from_json((copied / MANIFEST).read_text(), copied / MANIFEST)
    files = manifest.files | {"model.pt": sha256(copied / "model.pt")}
    (copied / MANIFEST).write_text(replace(manifest, files=files).to_json())
    result = run_here("--verify", copied, "--backend", "onnxruntime", "--json")
    assert result.returncode == 1
    assert [r["passed"] for r in json.loads(result.stdout)["parity"]] == [False, False]
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {copied}: not equal to eager PyTorch: onnxruntime fp16: largest difference")
    assert "nothing was written" not in last
    before = listing(copied)
    result = run_here("--verify", copied, "--backend", "onnxruntime")
    assert (result.returncode, result.stdout.count("FAILED")) == (1, 2)
    assert listing(copied) == before


def test_verifying_requires_the_precisions_of_the_graphs_and_tells_openvinos_own_beside_them(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgnet.export import verification
    from fgnet.export.parity import Parity

    equal = [Parity.from_dict(report) for report in exported[1]["parity"]]
    cast = replace(equal[1], backend="openvino", precision="bf16", voi=equal[1].voi_eager + 1, passed=False)
    monkeypatch.setattr(verification, "verify", lambda *_: [*equal, cast])
    result = run_here("--verify", exported[0])
    assert result.returncode == 0, result.stderr
    assert (result.stdout.count("equal"), result.stdout.count("FAILED")) == (2, 1)
    monkeypatch.setattr(verification, "verify", lambda *_: [*equal, replace(cast, precision="fp16")])
    assert run_here("--verify", exported[0]).returncode == 1


def test_verifying_with_nothing_to_compare_is_no_success(exported: Exported) -> None:
    result = run_here("--verify", exported[0], "--backend", "torch")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(f"error: {exported[0]}: nothing was compared")


def _altered(folder: Path) -> str:
    with (folder / "decoder.onnx").open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-100, 2)
        file.write(bytes([byte[0] ^ 1]))
    return "decoder.onnx: the file is not the one that was exported"


def _missing_graph(folder: Path) -> str:
    (folder / "decoder.fp16.onnx").unlink()
    return "decoder.fp16.onnx: the file is missing"


def _no_manifest(folder: Path) -> str:
    (folder / MANIFEST).unlink()
    return "no bundle here"


def _without_checkpoint(folder: Path) -> str:
    data = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(data | {"checkpoint": None}))
    return "the bundle holds no checkpoint"


@pytest.mark.parametrize("damage", [_altered, _missing_graph, _no_manifest, _without_checkpoint])
def test_a_damaged_bundle_is_not_verified(exported: Exported, tmp_path: Path, damage: Callable[[Path], str]) -> None:
    copied = shutil.copytree(exported[0], tmp_path / "b")
    message = damage(copied)
    result = run_here("--verify", copied, "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr.splitlines()[-1]


def test_a_bundle_is_inspected_as_tables_and_as_json(exported: Exported) -> None:
    result = run_here("--inspect", exported[0], "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [entry["precision"] for entry in found["precisions"]] == ["fp16", "fp32"]
    assert found["single"]["file"] == "model.onnx"
    assert found["precisions"][0]["encoder"] is None
    assert found["precisions"][0]["decoder"]["flops"] > 0
    result = run_here("--inspect", exported[0])
    assert result.returncode == 0, result.stderr
    for word in ("Conv", "affinities", "fp16"):
        assert word in result.stdout


@pytest.mark.parametrize(("options", "precision"), [([], "fp16"), (["--precision", "fp32"], "fp32")])
def test_a_model_repository_is_written_of_the_bundles_first_precision_or_the_one_asked_for(
    exported: Exported, tmp_path: Path, options: list[str], precision: str
) -> None:
    arguments = ["--triton", tmp_path / "r", "--bundle", exported[0], *options]
    result = run_here(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["triton"] == str(tmp_path / "r")
    names = ["README.md", *(f"{name}/{file}" for name in ("mine", "mine_decoder") for file in FILES)]
    assert found["files"] == sorted(str(tmp_path / "r" / name) for name in names)
    half = "fp16." if precision == "fp16" else ""
    served = (tmp_path / "r" / "mine_decoder" / "1" / "model.onnx").read_bytes()
    assert served == (exported[0] / f"decoder.{half}onnx").read_bytes()
    refused = run_here(*arguments)
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    again = run_here(*arguments, "--overwrite")
    assert again.stdout == f"{tmp_path / 'r'}: 5 files; its README.md says how a client feeds it\n"


FILES = ["1/model.onnx", "config.pbtxt"]
