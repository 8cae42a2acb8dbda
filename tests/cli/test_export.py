from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgnet.cli.export import app
from fgnet.engine.bundle import MANIFEST, Decoding, load_bundle

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

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


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is exported in a moment; not to be changed."""
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    config = preset("nano", modules="without_sam2", depth=3, widths=(4, 6, 8), patch=(2, 32, 32))
    path = tmp_path_factory.mktemp("export") / "model.pt"
    save_checkpoint(path, Checkpoint(config, FGNet(config).state_dict()))
    return path


@pytest.fixture(scope="session")
def exported(model: Path) -> tuple[Path, dict[str, Any]]:
    """A bundle in its default place, and what was printed; not to be changed."""
    advice = ["--fragments", "affinity", "--scoring", "mean", "--quantile", 75, "--threshold", 0.25]
    result = run(model, "--name", "mine", "--stride", "1,16,32", *advice, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return model.with_suffix(".bundle"), json.loads(result.stdout)


def test_json_says_what_was_written_and_how_equal_it_is(exported: tuple[Path, dict[str, Any]]) -> None:
    path, result = exported
    bundle = load_bundle(path)
    assert (result["output"], result["name"]) == (str(path), "mine")
    assert result["files"] == {name: (path / name).stat().st_size for name in ("model.onnx", "model.pt")}
    assert result["parity"] == bundle.manifest.parity
    assert result["parity"]["passed"]


def test_advice_goes_into_the_manifest(exported: tuple[Path, dict[str, Any]]) -> None:
    manifest = load_bundle(exported[0]).manifest
    assert manifest.decoding == Decoding("affinity", "mean", 75, 0.25)
    assert manifest.stride == (1, 16, 32)


def test_people_read_one_line_and_real_gray_can_be_compared_on(
    model: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    volume = f"{shared_data('gala_fib_train.h5')}:raw"
    result = run_here(model, "-o", tmp_path / "b", "--no-checkpoint", "--parity-volume", volume)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'b'}: onnxruntime fp32 agrees with eager PyTorch on 2 patches")
    assert result.stdout.count("\n") == 1
    assert listing(tmp_path) == ["b", f"b/{MANIFEST}", "b/model.onnx"]


def _missing(folder: Path, model: Path) -> list[object]:
    return [folder / "none.pt"]


def _no_checkpoint(folder: Path, model: Path) -> list[object]:
    (folder / "notes.pt").write_text("mine")
    return [folder / "notes.pt"]


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


def _with(*options: object) -> Callable[[Path, Path], list[object]]:
    return lambda folder, model: [model, *options]


BAD: dict[str, tuple[Callable[[Path, Path], list[object]], int, str]] = {
    "missing": (_missing, 1, "no such file"),
    "no checkpoint": (_no_checkpoint, 1, "notes.pt"),
    "truncated": (_truncated, 1, "half.pt: the file cannot be read as a checkpoint"),
    "needs unpickling": (_pickled, 1, "it was not run"),
    "SAM2's weights": (_other_weights, 1, "not an fgnet checkpoint"),
    "folder of something else": (_foreign_folder, 1, "it was not touched"),
    "bundle that exists": (_with("-o", "{bundle}"), 1, "exists already"),
    "stride larger than the patch": (_with("--stride", "3,32,32"), 1, "stride 3 is larger than the patch 2"),
    "stride as text": (_with("--stride", "small"), 1, "'small' is not three whole numbers"),
    "fragments unknown": (_with("--fragments", "mine"), 1, "fragments"),
    "quantile that is not compiled": (_with("--quantile", 51), 1, "quantile"),
    "parity volume missing": (_with("--parity-volume", "/none.zarr"), 1, "there is no such file"),
    "threshold above 1": (_with("--threshold", 1.5), 2, "--threshold"),
    "unknown option": (_with("--nonsense"), 2, "--nonsense"),
}


# Some go through the installed command, the others through the function behind it.
INSTALLED = {"truncated", "needs unpickling", "unknown option"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line_and_writes_nothing(
    model: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path, case: str
) -> None:
    make, code, message = BAD[case]
    arguments = [exported[0] if argument == "{bundle}" else argument for argument in make(tmp_path, model)]
    before = listing(tmp_path), listing(model.parent)
    result = (run if case in INSTALLED else run_here)("-o", tmp_path / "b", *arguments, "--json")
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    if code == 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert lines == result.stderr.splitlines()[-1:]
        assert message in lines[0]
    assert (listing(tmp_path), listing(model.parent)) == before


def test_help_starts_without_heavy_imports() -> None:
    code = "import sys, fgnet.cli.export; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
