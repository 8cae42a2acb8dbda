"""Whatever ends a run: what it had saved is whole, and the reason is told."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgnet.network.augment import PRESETS
from fgnet.network.checkpoint import load_checkpoint
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.model import FGNet
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


def test_a_full_disk_stops_the_run_and_keeps_its_last_checkpoint(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    running = train(tmp_path, short.config, short.options, [squares])
    next(running)
    before = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt.partial").symlink_to("/dev/full")
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
