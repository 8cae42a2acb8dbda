"""One run at a time writes in a folder, whatever the others are, and a run that was killed keeps nobody out."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgnet.network.checkpoint import load_checkpoint, save_checkpoint
from fgnet.network.data import LabelledVolume
from fgnet.network.experiment_cells import EXPERIMENTS
from fgnet.network.experiments import Setting, run_experiment
from fgnet.network.run_folder import LOCK, locked
from fgnet.network.training import train
from fgnet.network.validation import Validation, hold_out
from fgnet.volumes.errors import OutputError

pytestmark = pytest.mark.usefixtures("one_torch_thread", "no_picture")

REFUSED = r"another run is writing in this folder \(wait for it"

_HOLDS = """
import sys, time
from pathlib import Path
from fgnet.network.run_folder import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(600)
"""


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    short: Any, tmp_path: Path, squares: LabelledVolume, resume: bool
) -> None:
    running = train(tmp_path, short.config, short.options, [squares])
    for _ in range(2):
        next(running)
    before = files(tmp_path)
    with pytest.raises(OutputError, match=REFUSED):
        short.run(tmp_path, squares, resume=resume)
    assert files(tmp_path) == before
    assert [progress.step for progress in running] == [3, 4, 5, 6]
    longer = dataclasses.replace(short.options, iterations=7)
    assert [progress.step for progress in short.run(tmp_path, squares, longer, resume=True)] == [7]


def test_a_second_grid_in_a_folder_is_refused_and_so_is_a_run_in_a_cell_of_it(
    short: Any, tmp_path: Path, squares: LabelledVolume
) -> None:
    kept, cut = hold_out(squares, 0.3)
    options = dataclasses.replace(short.options, batch=1)
    validation = Validation(cut, thresholds=(0.5,), min_size=10)
    setting = Setting({"encoder": "nano", "patch": (2, 32, 32)}, options, (0,), [kept], validation)
    running = run_experiment(tmp_path, EXPERIMENTS["adaptation"], setting)
    next(running)
    other = dataclasses.replace(setting, seeds=(1,))
    with pytest.raises(OutputError, match=REFUSED):
        next(run_experiment(tmp_path, EXPERIMENTS["adaptation"], other))
    with pytest.raises(OutputError, match=rf"frozen-seed0: {REFUSED}"):
        short.run(tmp_path / "frozen-seed0", squares, resume=True)
    running.close()


def test_the_lock_of_a_killed_process_ends_with_it_and_what_it_had_half_written_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    torn = tmp_path / ".last.pt.there-1-2.part"
    torn.touch()
    try:
        with pytest.raises(OutputError, match=REFUSED), locked(tmp_path):
            pass
        assert torn.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_between_opening_and_locking_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def removed(file: Any, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed)
    with locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(OutputError, match=REFUSED), locked(tmp_path):
            pass


def test_a_file_system_without_locks_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unable)
    with locked(tmp_path / "new"), locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_two_writers_of_a_checkpoint_have_files_of_their_own(
    short: Any, tmp_path: Path, squares: LabelledVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no lock, the file is still one of theirs."""
    short.run(tmp_path, squares, dataclasses.replace(short.options, iterations=1))
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    names: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (names.append(self.name), replace(self, target))[1])
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert len({*names}) == 2
