"""Whatever ends a run: what it had saved is whole, and the reason is told."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from fgnet.network.augment import PRESETS
from fgnet.network.checkpoint import load_checkpoint
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.memory_errors import memory_explained
from fgnet.network.model import FGNet
from fgnet.network.optimisation import Optimisation
from fgnet.network.training import Resources, train
from fgnet.volumes.errors import OutputError, TrainingError

pytestmark = pytest.mark.usefixtures("one_torch_thread", "no_picture")


def spoil_weight(network: FGNet) -> None:
    assert network.refined is not None
    with torch.no_grad():
        network.refined.head.weight.fill_(math.inf)


def spoil_gradient(network: FGNet) -> None:
    assert network.refined is not None
    network.refined.head.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(("spoil", "what"), [(spoil_weight, "loss"), (spoil_gradient, "gradient")])
def test_a_run_that_diverges_stops_and_keeps_its_last_checkpoint(
    short: Any, tmp_path: Path, squares: LabelledVolume, spoil: Callable[[FGNet], None], what: str
) -> None:
    networks: list[FGNet] = []
    running = train(tmp_path, short.config, short.options, [squares], initial=networks.append)
    for _ in range(2):
        next(running)
    before = {name: (tmp_path / name).read_bytes() for name in ("last.pt", "model.pt")}
    spoil(networks[0])
    crops = r"squares at \d+:\d+,\d+:\d+,\d+:\d+; squares at "
    with pytest.raises(TrainingError, match=f"the {what} is (nan|inf) at step 2, from {crops}.*by --resume with"):
        next(running)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert [p.step for p in short.run(tmp_path, squares, resume=True)] == [3, 4, 5, 6]


def test_an_interrupt_leaves_the_last_checkpoint(
    short: Any, tmp_path: Path, squares: LabelledVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = CropSampler.sample

    def interrupted(self: CropSampler, step: int, index: int) -> Any:
        if (step, index) == (3, 1):
            raise KeyboardInterrupt
        return draw(self, step, index)

    monkeypatch.setattr(CropSampler, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        short.run(tmp_path, squares, dataclasses.replace(short.options, save_every=2))
    assert sorted(entry.name for entry in tmp_path.glob("*.p*")) == ["last.pt", "model.pt"]
    state = load_checkpoint(tmp_path / "last.pt").training
    assert state is not None
    assert state["step"] == 2


CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 16384 bytes."


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."),
        RuntimeError(CPU_IS_FULL),
        MemoryError("Unable to allocate 2.00 GiB for an array"),
    ],
)
def test_memory_that_is_short_in_a_step_is_said_with_the_step_and_what_to_do(
    short: Any, tmp_path: Path, squares: LabelledVolume, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    step = Optimisation.step

    def full(self: Optimisation, number: int, batches: Any) -> float:
        if number == 2:
            raise error
        return step(self, number, batches)

    monkeypatch.setattr(Optimisation, "step", full)
    with pytest.raises(TrainingError) as told:
        short.run(tmp_path, squares)
    monkeypatch.setattr(Optimisation, "step", step)
    assert f"memory was short after step 2: {str(error).splitlines()[0]} (a larger --accumulate" in str(told.value)
    less = dataclasses.replace(short.options, accumulate=2, crop=(1, 32, 32))
    assert [progress.step for progress in short.run(tmp_path, squares, less, resume=True)] == [3, 4, 5, 6]
    changes = load_checkpoint(tmp_path / "model.pt").provenance["changes"]
    assert changes == [{"step": 2, "accumulate": [1, 2], "crop": [[2, 32, 32], [1, 32, 32]]}]


def test_an_error_that_is_not_of_memory_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_explained("now", "do"):
        raise RuntimeError("shapes do not fit")


def test_a_loader_that_the_system_ends_loses_no_step(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    options = dataclasses.replace(short.options, save_every=100, iterations=50)
    running = train(tmp_path, short.config, options, [squares], resources=Resources("cpu", loaders=1))
    next(running)
    server = forkserver._forkserver._forkserver_pid
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    reason = r"memory was short after step \d+: (DataLoader worker \(pid|a loader has ended).*fewer --loaders"
    done: list[int] = [1]
    with pytest.raises(TrainingError, match=reason):
        done.extend(progress.step for progress in running)
    state = load_checkpoint(tmp_path / "last.pt").training
    assert state is not None
    assert state["step"] == done[-1] < 50


def test_a_full_disk_stops_the_run_and_keeps_its_last_checkpoint(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    running = train(tmp_path, short.config, short.options, [squares])
    next(running)
    before = (tmp_path / "last.pt").read_bytes()
    part = f".last.pt.{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.part"
    (tmp_path / part).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="cannot be written"):
        next(running)
    assert (tmp_path / "last.pt").read_bytes() == before


KILLED = """
import sys
from pathlib import Path
import torch
from fgnet.network.checkpoint import Checkpoint, save_checkpoint
from fgnet.network.config import FGNetConfig
from fgnet.network.model import FGNet
config = FGNetConfig.from_dict(__import__("json").loads(sys.argv[2]))
weights = FGNet(config).state_dict()
for steps in range(1_000_000):
    save_checkpoint(Path(sys.argv[1]), Checkpoint(config, weights, {"steps": steps}))
"""


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(short: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), json.dumps(short.config.to_dict())], cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    load_checkpoint(path).build()


def test_an_error_of_a_loader_reaches_the_user(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    broken = dataclasses.replace(PRESETS["default"])
    object.__setattr__(broken, "contrast", "much")
    with pytest.raises(TypeError, match=r"DataLoader worker process 0"):
        short.run(tmp_path, squares, dataclasses.replace(short.options, augment=broken), resources=Resources(loaders=1))
