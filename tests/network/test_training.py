"""Training: it learns, and does what its options say."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgnet.network.augment import PRESETS
from fgnet.network.checkpoint import load_checkpoint, save_checkpoint
from fgnet.network.data import LabelledVolume
from fgnet.network.model import FGNet
from fgnet.network.training import Resources, TrainingOptions, train
from fgnet.volumes.errors import FGNetError, TrainingError

pytestmark = pytest.mark.usefixtures("one_torch_thread", "no_picture")


def test_training_lowers_the_loss(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    options = dataclasses.replace(
        short.options, iterations=40, learning_rate=1e-2, schedule="constant", warmup=0, save_every=40
    )
    losses = [progress.loss for progress in short.run(tmp_path, squares, options)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_provenance_says_what_was_done_and_for_how_long(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=2), provenance={"note": "test"})
    first = load_checkpoint(tmp_path / "model.pt").provenance
    assert (first["note"], first["steps"], first["volumes"]) == ("test", 2, ["squares"])
    assert first["voxel_sizes"] == [[30.0, 6.0, 6.0]]
    assert first["options"] == dataclasses.replace(short.options, iterations=2).to_dict()
    last = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(tmp_path / "last.pt", dataclasses.replace(last, provenance=last.provenance | {"seconds": 1000.0}))
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=3), resume=True)
    assert 0 < first["seconds"] < 1000 < load_checkpoint(tmp_path / "model.pt").provenance["seconds"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_encoder_is_not_changed(short: Any, tmp_path: Path, squares: LabelledVolume, precision: Any) -> None:
    options = dataclasses.replace(short.options, iterations=2, precision=precision)
    networks: list[FGNet] = []
    before: dict[str, torch.Tensor] = {}

    def remember(network: FGNet) -> None:
        networks.append(network)
        before.update({key: value.clone() for key, value in network.state_dict().items()})

    short.run(tmp_path, squares, options, dataclasses.replace(short.config, adaptation="frozen"), initial=remember)
    for name in ("last.pt", "model.pt"):
        after = load_checkpoint(tmp_path / name).weights
        changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == {"fine", "refined", "coarse"}
    assert networks[0].encoder is not None
    assert not networks[0].encoder.training


def test_weights_are_averaged_with_a_memory_that_grows_up_to_the_decay(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    key, live, averages = "refined.head.weight", [], []
    for _ in train(tmp_path, short.config, dataclasses.replace(short.options, warmup=0, ema=0.2), [squares]):
        live.append(load_checkpoint(tmp_path / "last.pt").weights[key])
        averages.append(load_checkpoint(tmp_path / "model.pt").weights[key])
    assert torch.equal(averages[0], live[0])
    for step, share in enumerate([9 / 11, 0.8, 0.8, 0.8, 0.8], start=1):
        torch.testing.assert_close(averages[step], (1 - share) * averages[step - 1] + share * live[step])


def test_first_weights_are_kept_unless_training_finds_better_ones(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    options = dataclasses.replace(short.options, iterations=2, validate_every=1)
    started: list[dict[str, torch.Tensor]] = []

    def start(network: FGNet) -> None:
        started.append({key: value.clone() for key, value in network.state_dict().items()})

    steps = short.run(
        tmp_path, squares, options, initial=start, validate=short.scripted([1.0, 3.0, 2.0]), validate_first=True
    )
    assert [(p.step, p.score) for p in steps] == [(0, 1.0), (1, 3.0), (2, 2.0)]
    kept = load_checkpoint(tmp_path / "model.pt")
    assert kept.provenance["steps"] == 0
    assert short.same(kept.weights, started[0])
    longer = dataclasses.replace(options, iterations=3)
    better = short.run(tmp_path, squares, longer, validate=short.scripted([0.5]), validate_first=True, resume=True)
    assert [p.step for p in better] == [3]
    assert load_checkpoint(tmp_path / "model.pt").provenance["steps"] == 3


@pytest.mark.parametrize("loaders", [1, 2])
def test_loaders_change_no_bit(short: Any, tmp_path: Path, squares: LabelledVolume, loaders: int) -> None:
    options = dataclasses.replace(short.options, accumulate=2, iterations=3)
    short.run(tmp_path / "none", squares, options)
    short.run(tmp_path / "some", squares, options, resources=Resources(loaders=loaders))
    one, two = (load_checkpoint(tmp_path / folder / "last.pt") for folder in ("none", "some"))
    assert short.same(one.weights, two.weights)
    assert short.same(one.training, two.training)


def test_passes_add_up_to_the_gradient_of_their_mean_loss(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    """Two passes over the same crop are one; batch norms, which see one crop at a time, see the same either way."""
    twice = dataclasses.replace(squares, raw=squares.raw[:2, :32, :32], labels=squares.labels[:2, :32, :32])
    still = dataclasses.replace(short.options, iterations=2, augment=PRESETS["none"], ema=0.0)
    short.run(tmp_path / "one", twice, dataclasses.replace(still, batch=1))
    short.run(tmp_path / "two", twice, dataclasses.replace(still, batch=2, accumulate=2))
    one, two = (load_checkpoint(tmp_path / folder / "last.pt").training for folder in ("one", "two"))
    assert one is not None
    assert two is not None
    for key, moments in one["optimizer"]["state"].items():
        torch.testing.assert_close(moments["exp_avg"], two["optimizer"]["state"][key]["exp_avg"])


def test_half_precision_scales_its_loss_and_leaves_out_steps_that_overflow(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    options = dataclasses.replace(short.options, iterations=4, precision="fp16", schedule="constant", warmup=0)
    networks: list[FGNet] = []
    running = train(tmp_path, short.config, options, [squares], initial=networks.append)
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
    assert [p.step for p in short.run(tmp_path, squares, options, resume=True)] == [3, 4]
    changed = load_checkpoint(tmp_path / "last.pt").weights
    assert any(not torch.equal(before[key], changed[key]) for key in learned)


def test_a_device_that_is_not_there_is_refused(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TrainingError, match="PyTorch finds 0 GPUs"):
        short.run(tmp_path, squares, resources=Resources("cuda"))
    with pytest.raises(TrainingError, match="device is 'tpu'"):
        Resources("tpu")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="loaders is -1"):
        Resources(loaders=-1)


def test_deterministic_algorithms_are_asked_for_while_a_run_lasts(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    running = train(tmp_path, short.config, short.options, [squares], resources=Resources("cpu", deterministic=True))
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


def test_a_crop_that_the_encoder_cannot_halve_is_refused(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    with pytest.raises(TrainingError, match="multiples of 32"):
        short.run(tmp_path, squares, dataclasses.replace(short.options, crop=(2, 40, 32)))
