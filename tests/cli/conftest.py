"""For the tests of fgnet-export: a small network, and what the command made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is exported in a moment; not to be changed."""
    torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
    pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    config = preset("nano", modules="without_sam2", depth=3, widths=(4, 6, 8), patch=(2, 32, 32))
    path = tmp_path_factory.mktemp("export") / "model.pt"
    save_checkpoint(path, Checkpoint(config, FGNet(config).state_dict()))
    return path


@pytest.fixture(scope="session")
def exported(model: Path) -> tuple[Path, dict[str, Any], str]:
    """A bundle in its default place, and what was printed on stdout and stderr; not to be changed."""
    advice = ["--fragments", "affinity", "--scoring", "mean", "--quantile", 75, "--threshold", 0.25]
    graphs = ["--precision", "fp16,fp32", "--backend", "onnxruntime", "--sections", 2, "--single"]
    command = [Path(sys.executable).parent / "fgnet-export", model, "--name", "mine", "--stride", "1,16,32"]
    result = subprocess.run(
        [*map(str, (*command, *advice, *graphs, "--json"))], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return model.with_suffix(".bundle"), json.loads(result.stdout), result.stderr
