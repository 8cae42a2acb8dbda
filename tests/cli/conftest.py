"""For the tests of fgnet-export: what the command made of a small network. For runs that are killed: their helpers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from fgnet.volumes.geometry import Triple


@pytest.fixture(scope="module")
def noise_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path
) -> Callable[[tuple[int, int, int]], list[str]]:
    """(shape) -> fgnet-run's arguments for noise of that shape, without decoder and output."""

    def arguments(shape: Triple) -> list[str]:
        store = tmp_path_factory.mktemp("gray") / "v.zarr"
        gray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        zarr.create_array(str(store), shape=shape, chunks=(8, 64, 64), dtype="u1")[:] = gray
        return [str(store), "--model", str(tiny_bundle), "--backend", "onnxruntime", "--threads", "1"]

    return arguments


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright square neurites with dark membranes, 12 x 64 x 96 voxels of 10 nm."""
    path = tmp_path_factory.mktemp("tissue") / "tissue.h5"
    cells = np.arange(1, 97, dtype=np.uint32).reshape(8, 12).repeat(8, 0).repeat(8, 1)
    edge = np.isin(np.arange(96) % 8, (0, 7))
    raw = np.where(edge[:64, None] | edge[None], 60, 190).astype(np.uint8)
    with h5py.File(path, "w") as file:
        for name, section in (("raw", raw), ("labels", cells)):
            file[name] = np.repeat(section[None], 12, axis=0)
            file[name].attrs["resolution"] = (10.0, 10.0, 10.0)
    return path


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


@pytest.fixture
def both_helpers() -> Callable[[subprocess.Popen[str]], list[int]]:
    """Waits until both helpers of `--processes 2` are there."""
    return _both_helpers


@pytest.fixture
def child_that_runs() -> Callable[[int, str], int]:
    """Waits until a process has a child in whose command line a word is; the child's process id."""
    return _child_that_runs


@pytest.fixture
def wait_for_end() -> Callable[[int], None]:
    """Waits until a process that is not a child of this one has ended."""
    return _wait_for_end


def _both_helpers(process: subprocess.Popen[str]) -> list[int]:
    """Their process ids; none works before both are there, for one alone may have done everything by then.

    Only a child that runs the helpers' program is stopped: one before its exec holds up the process that forks it.
    """
    until, stopped = time.monotonic() + 60, set[int]()
    while len(stopped) < 2:
        assert time.monotonic() < until, f"only these are there: {stopped}"
        for helper in set(_children(process.pid)) - stopped:
            if "fgnet.cli.run_worker" in _command_line(helper):
                os.kill(helper, signal.SIGSTOP)
                stopped.add(helper)
        time.sleep(0.005)
    for helper in stopped:
        os.kill(helper, signal.SIGCONT)
    return sorted(stopped)


def _child_that_runs(pid: int, word: str) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in _children(pid):
            if word in _command_line(child):
                return child
        time.sleep(0.005)
    raise AssertionError(f"process {pid} has no child that runs {word}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command_line(pid: int) -> str:
    """Empty of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _wait_for_end(pid: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} outlives the one that started it")
