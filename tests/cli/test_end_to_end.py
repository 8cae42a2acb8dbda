"""The installed commands one after another: train, export, run, eval."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgnet.engine.bundle import load_bundle
from fgnet.volumes.reading import open_volume

torch = pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")

FAST = ["--batch", 1, "--crop", "4,64,64", "--iterations", 3, "--learning-rate", "1e-3"]


def command(name: str, *arguments: object) -> dict[str, Any]:
    """What an installed command prints with --json."""
    program = Path(sys.executable).parent / f"fgnet-{name}"
    result = subprocess.run(
        [program, *map(str, arguments), "--json"], capture_output=True, text=True, check=False, timeout=500
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def from_training_to_scores(folder: Path, raw: str, labels: str, region: str, start: Path) -> dict[str, Any]:
    """Trains on a volume and segments a region of it; the scores of that region.

    The first weights are those of `start`, whose configuration is small enough for a test.
    """
    trained = command("train", folder / "run", "--raw", raw, "--labels", labels, "--from", start, *FAST)
    assert trained["steps"] == 3
    exported = command("export", trained["model"], "-o", folder / "model.bundle", "--parity-volume", raw)
    judged = [report["passed"] for report in exported["parity"] if report["precision"] == "fp32"]
    assert judged
    assert all(judged)
    manifest = load_bundle(Path(exported["output"])).manifest
    assert manifest.decoding.threshold == trained["validation"]["threshold"]
    # Three steps teach nothing: without agglomeration there are at least fragments to score.
    run = command("run", raw, "--model", exported["output"], "-o", folder / "s.zarr", "--roi", region, "--threshold", 0)
    assert run["segments"] > 1
    scores = command("eval", run["output"], labels, "--crop", region)
    assert scores["segments"] > 1
    assert scores["voi"] == pytest.approx(scores["voi_split"] + scores["voi_merge"])
    assert 0 < scores["voi"] < 20
    assert 0 < scores["arand"] <= 1
    return scores


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """First weights of a network that is exported in a moment."""
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    config = preset("nano", modules="without_sam2", depth=3, widths=(4, 6, 8), patch=(4, 64, 64))
    save_checkpoint(tmp_path / "small.pt", Checkpoint(config, FGNet(config).state_dict()))
    return tmp_path / "small.pt"


def test_a_synthetic_volume_goes_from_training_to_scores(tmp_path: Path, small: Path) -> None:
    sample = command("sample", tmp_path / "sample.zarr", "--shape", "8,72,80", "--seed", 5)
    folder = tmp_path / "work"
    scores = from_training_to_scores(folder, sample["output"], sample["labels"], "2:8,:,8:", small)
    assert scores["crop"] == "2:8,0:72,8:80"
    with open_volume(folder / "s.zarr") as found:
        assert (found.shape, found.space.offset) == ((6, 72, 72), (20.0, 0.0, 80.0))


def test_real_tissue_goes_from_training_to_scores(
    tmp_path: Path, shared_data: Callable[[str], Path], tiny_checkpoint: Path
) -> None:
    file = shared_data("gala_fib_train.h5")
    scores = from_training_to_scores(tmp_path, f"{file}:raw", f"{file}:labels", "10:18,:72,:72", tiny_checkpoint)
    assert scores["objects"] > 5
    assert scores["voxels"] > 8 * 72 * 72 // 2
