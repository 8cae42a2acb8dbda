"""A run that is asked to stop saves the step in hand, and goes on as if it had not been asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgnet.network.checkpoint import load_checkpoint
from fgnet.network.data import LabelledVolume
from fgnet.network.experiment_cells import EXPERIMENTS
from fgnet.network.experiment_results import RESULT
from fgnet.network.experiments import Setting, run_experiment
from fgnet.network.training import Resources, TrainingStoppedError, train
from fgnet.network.validation import Validation, hold_out

pytestmark = pytest.mark.usefixtures("one_torch_thread", "no_picture")


def asked(times: int) -> Callable[[], bool]:
    """Says no so often, and then yes."""
    remaining = iter([False] * times)
    return lambda: next(remaining, True)


def state(path: Path) -> dict[str, Any]:
    training = load_checkpoint(path).training
    assert training is not None
    return training


@pytest.mark.parametrize("loaders", [0, 1])
@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_was_stopped_between_two_checkpoints_ends_with_the_same_bits(
    short: Any, tmp_path: Path, squares: LabelledVolume, validated: bool, loaders: int
) -> None:
    options = dataclasses.replace(short.options, save_every=100, validate_every=2)
    more: dict[str, Any] = {"resources": Resources("cpu", loaders, deterministic=True)}

    def validate() -> dict[str, Any]:
        return (
            {"validate": lambda network: {"voi": float(network.refined.head.weight.detach().sum())}}
            if validated
            else {}
        )

    short.run(tmp_path / "whole", squares, options, **more, **validate())
    running = train(tmp_path / "stopped", short.config, options, [squares], **more, **validate(), stop=asked(3))
    assert [next(running).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(TrainingStoppedError, match="go on with --resume"):
        next(running)
    assert state(tmp_path / "stopped" / "last.pt")["step"] == 3
    rest = short.run(tmp_path / "stopped", squares, options, resume=True, **more, **validate())
    assert [progress.step for progress in rest] == [4, 5, 6]
    for name in ("last.pt", "model.pt"):
        whole, stopped = (load_checkpoint(tmp_path / folder / name) for folder in ("whole", "stopped"))
        assert short.same(whole.weights, stopped.weights)
        assert short.same(whole.training, stopped.training)
        assert whole.provenance["steps"] == stopped.provenance["steps"]
    for name in ("steps.csv", "validations.csv"):
        steps = [
            [line.split(",")[0] for line in (tmp_path / folder / name).read_text().splitlines()]
            for folder in ("whole", "stopped")
        ]
        assert steps[0] == steps[1]


def test_a_run_that_is_stopped_before_its_first_step_saves_nothing(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    with pytest.raises(TrainingStoppedError):
        short.run(tmp_path, squares, stop=asked(0))
    assert not list(tmp_path.glob("*.pt"))


def test_a_run_that_was_asked_in_its_last_step_is_complete(short: Any, tmp_path: Path, squares: LabelledVolume) -> None:
    assert len(short.run(tmp_path, squares, stop=asked(6))) == 6


@pytest.mark.parametrize("steps", [1, 2])
def test_a_grid_stops_in_a_run_or_before_it_is_scored_and_goes_on(
    tmp_path: Path, short: Any, squares: LabelledVolume, steps: int
) -> None:
    kept, cut = hold_out(squares, 0.3)
    options = dataclasses.replace(short.options, iterations=2, batch=1, save_every=100, validate_every=2)
    validation = Validation(cut, thresholds=(0.5,), min_size=10)
    setting = Setting({"encoder": "nano", "patch": (2, 32, 32)}, options, (0,), [kept], validation)
    with pytest.raises(TrainingStoppedError):
        list(run_experiment(tmp_path, EXPERIMENTS["adaptation"], setting, stop=asked(steps)))
    assert state(tmp_path / "frozen-seed0" / "last.pt")["step"] == steps
    assert not (tmp_path / "frozen-seed0" / RESULT).exists()
    rest = list(run_experiment(tmp_path, EXPERIMENTS["adaptation"], setting))
    trained = [(progress.cell.name, progress.now.step) for progress in rest if progress.now is not None]
    assert trained == [("frozen", 2)] * (2 - steps) + [("fine_tuned", 1), ("fine_tuned", 2)]
