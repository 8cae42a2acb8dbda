"""Training: it learns, it resumes exactly, and it never leaves a damaged checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgnet.network.augment import AugmentOptions
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fgnet.network.config import FGNetConfig, preset
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.model import FGNet
from fgnet.network.training import Progress, TrainingOptions, train
from fgnet.volumes.errors import CheckpointError, FGNetError, OutputError, TrainingError
from fgnet.volumes.space import Space

CONFIG = preset("nano", widths=(4, 6, 8, 8), patch=(2, 32, 32))
OPTIONS = TrainingOptions(
    iterations=6, batch=2, crop=(2, 32, 32), learning_rate=1e-3, schedule="cosine", warmup=2, ema=0.5, save_every=1
)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def volume() -> LabelledVolume:
    """Bright square neurites with dark membranes."""
    cells = np.arange(1, 37, dtype=np.uint32).reshape(6, 6).repeat(8, 0).repeat(8, 1)
    labels = np.repeat(cells[None], 6, axis=0)
    edge = (np.arange(48) % 8 == 0) | (np.arange(48) % 8 == 7)
    raw = np.where(edge[:, None] | edge[None, :], 60, 190).astype(np.uint8)
    return LabelledVolume("squares", np.repeat(raw[None], 6, axis=0), labels, Space((30.0, 6.0, 6.0)))


def run(
    folder: Path, volume: LabelledVolume, options: TrainingOptions = OPTIONS, config: FGNetConfig = CONFIG, **more: Any
) -> list[Progress]:
    return list(train(folder, config, options, [volume], **more))


def same(first: Any, second: Any) -> bool:
    """Whether nested plain data and tensors are equal, bit by bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def scripted(scores: list[float]) -> Callable[[FGNet], dict[str, Any]]:
    """A validation that gives these figures in turn."""
    remaining = iter(scores)

    def validate(network: FGNet) -> dict[str, Any]:
        assert not network.training
        return {"voi": next(remaining)}

    return validate


def test_training_lowers_the_loss(tmp_path: Path, volume: LabelledVolume) -> None:
    options = dataclasses.replace(
        OPTIONS, iterations=40, learning_rate=1e-2, schedule="constant", warmup=0, save_every=40
    )
    losses = [progress.loss for progress in run(tmp_path, volume, options)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_three_steps_and_three_more_equal_six_at_once(tmp_path: Path, volume: LabelledVolume) -> None:
    at_once = run(tmp_path / "at_once", volume)
    stopped = train(tmp_path / "resumed", CONFIG, OPTIONS, [volume])
    first = [next(stopped) for _ in range(3)]
    stopped.close()
    rest = run(tmp_path / "resumed", volume, resume=True)
    assert [p.step for p in first + rest] == [1, 2, 3, 4, 5, 6]
    assert [(p.loss, p.rate) for p in first + rest] == [(p.loss, p.rate) for p in at_once]
    for name in ("last.pt", "model.pt"):
        one, two = (load_checkpoint(tmp_path / folder / name) for folder in ("at_once", "resumed"))
        assert same(one.weights, two.weights)
        assert same(one.training, two.training)
    last = load_checkpoint(tmp_path / "resumed" / "last.pt").training
    assert last is not None
    assert {"average", "optimizer"} < last.keys()


def test_a_resumed_run_knows_its_best_score(tmp_path: Path, volume: LabelledVolume) -> None:
    options = dataclasses.replace(OPTIONS, validate_every=1)
    stopped = train(tmp_path, CONFIG, options, [volume], validate=scripted([3.0, 1.0, 2.0]))
    assert [next(stopped).score for _ in range(3)] == [3.0, 1.0, 2.0]
    stopped.close()
    run(tmp_path, volume, options, validate=scripted([1.5, 1.2, 1.1]), resume=True)
    provenance = load_checkpoint(tmp_path / "model.pt").provenance
    assert (provenance["steps"], provenance["validation"]) == (2, {"voi": 1.0})


def test_a_run_can_be_made_longer(tmp_path: Path, volume: LabelledVolume) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=2))
    longer = run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=3), resume=True)
    assert [progress.step for progress in longer] == [3]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"learning_rate": 1e-4}, r"learning_rate was 0\.001, is 0\.0001"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"augment": AugmentOptions(noise=1.0)}, "augment was .*'noise': 12.0.* is .*'noise': 1.0"),
    ],
)
def test_other_options_are_refused_naming_them(
    tmp_path: Path, volume: LabelledVolume, change: dict[str, Any], text: str
) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=1))
    with pytest.raises(TrainingError, match=text):
        run(tmp_path, volume, dataclasses.replace(OPTIONS, **change), resume=True)


def test_another_configuration_is_refused_naming_the_field(tmp_path: Path, volume: LabelledVolume) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=1))
    with pytest.raises(TrainingError, match="guidance was 'fga', is 'se'"):
        run(tmp_path, volume, config=dataclasses.replace(CONFIG, guidance="se"), resume=True)


def test_a_run_of_a_version_with_fewer_options_can_be_resumed(tmp_path: Path, volume: LabelledVolume) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=1))
    old = load_checkpoint(tmp_path / "last.pt")
    assert old.training is not None
    del old.training["options"]["precision"], old.training["options"]["augment"]["blur"], old.provenance["seconds"]
    save_checkpoint(tmp_path / "last.pt", old)
    assert [p.step for p in run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=2), resume=True)] == [2]


@pytest.mark.parametrize("lacking", ["options", "step", "average", "optimizer"])
def test_an_incomplete_last_checkpoint_is_refused(tmp_path: Path, volume: LabelledVolume, lacking: str) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=1))
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.training is not None
    del last.training[lacking]
    save_checkpoint(tmp_path / "last.pt", last)
    with pytest.raises(CheckpointError, match=f"incomplete.*{lacking}"):
        run(tmp_path, volume, resume=True)


def test_there_must_be_something_to_resume_from(tmp_path: Path, volume: LabelledVolume) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt: no such file"):
        run(tmp_path, volume, resume=True)
    save_checkpoint(tmp_path / "last.pt", Checkpoint(CONFIG, FGNet(CONFIG).state_dict()))
    with pytest.raises(CheckpointError, match="weights only"):
        run(tmp_path, volume, resume=True)


def spoil_weight(network: FGNet) -> None:
    assert network.refined is not None
    with torch.no_grad():
        network.refined.head.weight.fill_(math.inf)


def spoil_gradient(network: FGNet) -> None:
    assert network.refined is not None
    network.refined.head.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(("spoil", "what"), [(spoil_weight, "loss"), (spoil_gradient, "gradient")])
def test_a_run_that_diverges_stops_and_keeps_its_last_checkpoint(
    tmp_path: Path, volume: LabelledVolume, spoil: Callable[[FGNet], None], what: str
) -> None:
    networks: list[FGNet] = []
    running = train(tmp_path, CONFIG, OPTIONS, [volume], initial=networks.append)
    for _ in range(2):
        next(running)
    before = {name: (tmp_path / name).read_bytes() for name in ("last.pt", "model.pt")}
    spoil(networks[0])
    with pytest.raises(TrainingError, match=f"the {what} is (nan|inf) at step 2"):
        next(running)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert [p.step for p in run(tmp_path, volume, resume=True)] == [3, 4, 5, 6]


def test_an_interrupt_leaves_the_last_checkpoint(
    tmp_path: Path, volume: LabelledVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = CropSampler.sample

    def interrupted(self: CropSampler, step: int, index: int) -> Any:
        if (step, index) == (3, 1):
            raise KeyboardInterrupt
        return draw(self, step, index)

    monkeypatch.setattr(CropSampler, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, volume, dataclasses.replace(OPTIONS, save_every=2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.pt", "model.pt"]
    state = load_checkpoint(tmp_path / "last.pt").training
    assert state is not None
    assert state["step"] == 2


def test_a_full_disk_stops_the_run_and_keeps_its_last_checkpoint(tmp_path: Path, volume: LabelledVolume) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    running = train(tmp_path, CONFIG, OPTIONS, [volume])
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


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), json.dumps(CONFIG.to_dict())], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    load_checkpoint(path).build()


def test_provenance_says_what_was_done_and_for_how_long(tmp_path: Path, volume: LabelledVolume) -> None:
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=2), provenance={"note": "test"})
    first = load_checkpoint(tmp_path / "model.pt").provenance
    assert (first["note"], first["steps"], first["volumes"]) == ("test", 2, ["squares"])
    assert first["voxel_sizes"] == [[30.0, 6.0, 6.0]]
    assert first["options"] == dataclasses.replace(OPTIONS, iterations=2).to_dict()
    last = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(tmp_path / "last.pt", dataclasses.replace(last, provenance=last.provenance | {"seconds": 1000.0}))
    run(tmp_path, volume, dataclasses.replace(OPTIONS, iterations=3), resume=True)
    assert 0 < first["seconds"] < 1000 < load_checkpoint(tmp_path / "model.pt").provenance["seconds"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_encoder_is_not_changed(tmp_path: Path, volume: LabelledVolume, precision: Any) -> None:
    options = dataclasses.replace(OPTIONS, iterations=2, precision=precision)
    networks: list[FGNet] = []
    before: dict[str, torch.Tensor] = {}

    def remember(network: FGNet) -> None:
        networks.append(network)
        before.update({key: value.clone() for key, value in network.state_dict().items()})

    run(tmp_path, volume, options, dataclasses.replace(CONFIG, adaptation="frozen"), initial=remember)
    for name in ("last.pt", "model.pt"):
        after = load_checkpoint(tmp_path / name).weights
        changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == {"fine", "refined", "coarse"}
    assert networks[0].encoder is not None
    assert not networks[0].encoder.training


def test_weights_are_averaged_with_a_memory_that_grows_up_to_the_decay(tmp_path: Path, volume: LabelledVolume) -> None:
    key, live, averages = "refined.head.weight", [], []
    for _ in train(tmp_path, CONFIG, dataclasses.replace(OPTIONS, warmup=0, ema=0.2), [volume]):
        live.append(load_checkpoint(tmp_path / "last.pt").weights[key])
        averages.append(load_checkpoint(tmp_path / "model.pt").weights[key])
    assert torch.equal(averages[0], live[0])
    for step, share in enumerate([9 / 11, 0.8, 0.8, 0.8, 0.8], start=1):
        torch.testing.assert_close(averages[step], (1 - share) * averages[step - 1] + share * live[step])


def test_rates_rise_in_the_warmup_and_fall_to_a_hundredth() -> None:
    options = TrainingOptions(iterations=100, learning_rate=1e-3, schedule="cosine", warmup=10)
    rates = [options.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert options.rate(100) == pytest.approx(1e-5)
    assert TrainingOptions(learning_rate=1e-3).rate(9_999) == 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 0},
        {"batch": 0},
        {"save_every": 0},
        {"validate_every": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"ema": 1.0},
        {"warmup": -1},
        {"crop": (0, 32, 32)},
        {"crop": (32, 32)},
        {"schedule": "linear"},
        {"precision": "fp8"},
    ],
)
def test_options_from_which_nothing_is_learned_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(FGNetError, match=next(iter(change))):
        TrainingOptions(**change)


def test_a_crop_that_the_encoder_cannot_halve_is_refused(tmp_path: Path, volume: LabelledVolume) -> None:
    with pytest.raises(TrainingError, match="multiples of 32"):
        run(tmp_path, volume, dataclasses.replace(OPTIONS, crop=(2, 40, 32)))
