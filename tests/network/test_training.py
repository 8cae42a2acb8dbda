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

from fgnet.network import training_log
from fgnet.network.augment import PRESETS, AugmentOptions
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fgnet.network.config import FGNetConfig, preset
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.model import FGNet
from fgnet.network.training import Progress, Resources, TrainingOptions, train
from fgnet.volumes.errors import CheckpointError, FGNetError, OutputError, TrainingError

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


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; `test_training_log` looks at the picture."""
    monkeypatch.setattr(training_log, "save_curves", lambda *_: None)


@pytest.fixture(scope="module")
def volume(squares: LabelledVolume) -> LabelledVolume:
    return squares


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
    crops = r"squares at \d+:\d+,\d+:\d+,\d+:\d+; squares at "
    with pytest.raises(TrainingError, match=f"the {what} is (nan|inf) at step 2, from {crops}"):
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
    assert sorted(entry.name for entry in tmp_path.glob("*.p*")) == ["last.pt", "model.pt"]
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


def test_a_run_without_a_better_validation_ends_and_waits_no_longer_when_it_is_resumed(
    tmp_path: Path, volume: LabelledVolume
) -> None:
    options = dataclasses.replace(OPTIONS, validate_every=1, patience=2, save_every=100)
    ended = run(tmp_path, volume, options, validate=scripted([3.0, 1.0, 2.0, 1.0]))
    assert [p.step for p in ended] == [1, 2, 3, 4]
    assert load_checkpoint(tmp_path / "model.pt").provenance["steps"] == 2
    assert run(tmp_path, volume, options, validate=scripted([]), resume=True) == []
    patient = dataclasses.replace(options, patience=3)
    assert [p.step for p in run(tmp_path, volume, patient, validate=scripted([5.0]), resume=True)] == [5]


def test_first_weights_are_kept_unless_training_finds_better_ones(tmp_path: Path, volume: LabelledVolume) -> None:
    options = dataclasses.replace(OPTIONS, iterations=2, validate_every=1)
    started: list[dict[str, torch.Tensor]] = []

    def start(network: FGNet) -> None:
        started.append({key: value.clone() for key, value in network.state_dict().items()})

    steps = run(tmp_path, volume, options, initial=start, validate=scripted([1.0, 3.0, 2.0]), validate_first=True)
    assert [(p.step, p.score) for p in steps] == [(0, 1.0), (1, 3.0), (2, 2.0)]
    kept = load_checkpoint(tmp_path / "model.pt")
    assert kept.provenance["steps"] == 0
    assert same(kept.weights, started[0])
    better = run(
        tmp_path, volume, dataclasses.replace(options, iterations=3), validate=scripted([0.5]), validate_first=True,
        resume=True,
    )  # fmt: skip
    assert [p.step for p in better] == [3]
    assert load_checkpoint(tmp_path / "model.pt").provenance["steps"] == 3


@pytest.mark.parametrize("loaders", [1, 2])
def test_loaders_change_no_bit(tmp_path: Path, volume: LabelledVolume, loaders: int) -> None:
    options = dataclasses.replace(OPTIONS, accumulate=2, iterations=3)
    run(tmp_path / "none", volume, options)
    run(tmp_path / "some", volume, options, resources=Resources(loaders=loaders))
    one, two = (load_checkpoint(tmp_path / folder / "last.pt") for folder in ("none", "some"))
    assert same(one.weights, two.weights)
    assert same(one.training, two.training)


def test_an_error_of_a_loader_reaches_the_user(tmp_path: Path, volume: LabelledVolume) -> None:
    broken = dataclasses.replace(PRESETS["default"])
    object.__setattr__(broken, "contrast", "much")
    with pytest.raises(TypeError, match=r"DataLoader worker process 0"):
        run(tmp_path, volume, dataclasses.replace(OPTIONS, augment=broken), resources=Resources(loaders=1))


def test_passes_add_up_to_the_gradient_of_their_mean_loss(tmp_path: Path, volume: LabelledVolume) -> None:
    """Two passes over the same crop are one; batch norms, which see one crop at a time, see the same either way."""
    twice = dataclasses.replace(volume, raw=volume.raw[:2, :32, :32], labels=volume.labels[:2, :32, :32])
    still = dataclasses.replace(OPTIONS, iterations=2, augment=PRESETS["none"], ema=0.0)
    run(tmp_path / "one", twice, dataclasses.replace(still, batch=1))
    run(tmp_path / "two", twice, dataclasses.replace(still, batch=2, accumulate=2))
    one, two = (load_checkpoint(tmp_path / folder / "last.pt").training for folder in ("one", "two"))
    assert one is not None
    assert two is not None
    for key, moments in one["optimizer"]["state"].items():
        torch.testing.assert_close(moments["exp_avg"], two["optimizer"]["state"][key]["exp_avg"])


def test_half_precision_scales_its_loss_and_leaves_out_steps_that_overflow(
    tmp_path: Path, volume: LabelledVolume
) -> None:
    options = dataclasses.replace(OPTIONS, iterations=4, precision="fp16", schedule="constant", warmup=0)
    networks: list[FGNet] = []
    running = train(tmp_path, CONFIG, options, [volume], initial=networks.append)
    next(running)
    before = load_checkpoint(tmp_path / "last.pt").weights
    assert networks[0].refined is not None
    handle = networks[0].refined.head.weight.register_hook(lambda gradient: gradient * math.inf)
    next(running)
    handle.remove()
    after = load_checkpoint(tmp_path / "last.pt")
    learned = [key for key, _ in networks[0].named_parameters()]
    assert all(torch.equal(before[key], after.weights[key]) for key in learned)
    assert after.training is not None
    assert after.training["scaler"]["scale"] == 2.0**15
    running.close()
    assert [p.step for p in run(tmp_path, volume, options, resume=True)] == [3, 4]
    changed = load_checkpoint(tmp_path / "last.pt").weights
    assert any(not torch.equal(before[key], changed[key]) for key in learned)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, volume: LabelledVolume) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TrainingError, match="PyTorch finds 0 GPUs"):
        run(tmp_path, volume, resources=Resources("cuda"))
    with pytest.raises(TrainingError, match="device is 'tpu'"):
        Resources("tpu")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="loaders is -1"):
        Resources(loaders=-1)


def test_random_numbers_of_pytorch_go_on_where_they_were(tmp_path: Path, volume: LabelledVolume) -> None:
    draws: list[float] = []

    def drawing(network: FGNet) -> dict[str, Any]:
        draws.append(float(torch.rand(())))
        return {"voi": 1.0}

    options = dataclasses.replace(OPTIONS, iterations=4, validate_every=1)
    run(tmp_path / "at_once", volume, options, validate=drawing)
    stopped = train(tmp_path / "resumed", CONFIG, options, [volume], validate=drawing)
    for _ in range(2):
        next(stopped)
    stopped.close()
    torch.rand(5)
    run(tmp_path / "resumed", volume, options, validate=drawing, resume=True)
    assert draws[:4] == draws[4:]
    assert len(set(draws)) == 4


def test_deterministic_algorithms_are_asked_for_while_a_run_lasts(tmp_path: Path, volume: LabelledVolume) -> None:
    running = train(tmp_path, CONFIG, OPTIONS, [volume], resources=Resources("cpu", deterministic=True))
    next(running)
    assert torch.are_deterministic_algorithms_enabled()
    running.close()
    assert not torch.are_deterministic_algorithms_enabled()


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
        {"accumulate": 0},
        {"accumulate": 3},
        {"patience": 0},
    ],
)
def test_options_from_which_nothing_is_learned_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(FGNetError, match=next(iter(change))):
        TrainingOptions(**change)


def test_a_crop_that_the_encoder_cannot_halve_is_refused(tmp_path: Path, volume: LabelledVolume) -> None:
    with pytest.raises(TrainingError, match="multiples of 32"):
        run(tmp_path, volume, dataclasses.replace(OPTIONS, crop=(2, 40, 32)))
