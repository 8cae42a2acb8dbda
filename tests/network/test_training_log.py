"""The log of a run holds every step once, whatever happened in between, and never stops a run for a missing package."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgnet.network.training_log import CURVES, EVENTS, STEPS, VALIDATIONS, TrainingLog
from fgnet.volumes.errors import OutputError

FIGURES = {"voi": 1.5, "voi_split": 1.0, "voi_merge": 0.5, "arand": 0.25, "threshold": 0.5}


def write(folder: Path, first: int, last: int, loss: float = 1.0) -> list[str]:
    said: list[str] = []
    log = TrainingLog(folder, first, said.append)
    for step in range(first + 1, last + 1):
        log.step(step, loss / step, 1e-3, step * 2.0, 5e5)
        if step % 2 == 0:
            log.validation(step, FIGURES)
    log.draw()
    log.close()
    return said


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_steps_and_validations_are_rows(tmp_path: Path) -> None:
    assert write(tmp_path, 0, 4) == []
    steps = rows(tmp_path / STEPS)
    assert [row["step"] for row in steps] == ["1", "2", "3", "4"]
    assert steps[1] == {"step": "2", "loss": "0.5", "rate": "0.001", "seconds": "4.0", "voxels_per_second": "500000"}
    assert [row["voi"] for row in rows(tmp_path / VALIDATIONS)] == ["1.5", "1.5"]


def test_a_run_that_goes_on_takes_back_what_it_repeats(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    with (tmp_path / STEPS).open("a") as file:
        file.write("6,0.1")  # a row that a kill cut short
    write(tmp_path, 3, 6, loss=9.0)
    steps = rows(tmp_path / STEPS)
    assert [row["step"] for row in steps] == ["1", "2", "3", "4", "5", "6"]
    assert steps[3]["loss"] == "2.25"
    assert [row["step"] for row in rows(tmp_path / VALIDATIONS)] == ["2", "4", "6"]


def test_a_new_run_begins_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    write(tmp_path, 0, 1)
    assert [row["step"] for row in rows(tmp_path / STEPS)] == ["1"]
    assert len(list((tmp_path / EVENTS).glob("events.*"))) == 1


def test_tensorboard_reads_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 0, 5)
    write(tmp_path, 3, 6, loss=9.0)
    events = EventAccumulator(str(tmp_path / EVENTS)).Reload()
    assert {"training/loss", "training/rate", "validation/voi"} <= set(events.Tags()["scalars"])
    losses = [(event.step, event.value) for event in events.Scalars("training/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 2.25), (5, pytest.approx(1.8)), (6, 1.5)]


def test_curves_are_drawn(tmp_path: Path) -> None:
    write(tmp_path, 0, 60)
    with Image.open(tmp_path / CURVES) as drawn:
        picture = np.asarray(drawn.convert("RGB")).astype(int)
    assert picture.shape[1] > 2 * picture.shape[0]
    colours = {(76, 120, 168): 0.2, (228, 87, 86): 0.6, (34, 34, 34): 0.6}
    for colour, left in colours.items():
        columns = np.flatnonzero((abs(picture - colour).sum(-1) < 30).any(0))
        assert columns.size > 20, colour
        assert columns.max() > left * picture.shape[1]


def test_a_missing_package_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    said: list[str] = []
    log = TrainingLog(tmp_path, 0, said.append)
    log.step(1, 1.0, 1e-3, 1.0, 1.0)
    log.draw()
    log.draw()
    log.close()
    assert len(said) == 2
    assert "tensorboard" in said[0]
    assert CURVES in said[1]
    assert [row["step"] for row in rows(tmp_path / STEPS)] == ["1"]


def test_a_log_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / STEPS).mkdir()
    with pytest.raises(OutputError, match="the log cannot be written"):
        TrainingLog(tmp_path, 0, print)
