"""Signals that come while fgnet-train trains: what is saved, what is said, and what the exit code tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgnet.cli.train import app

pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SMALL = ["--modules", "without_sam2", "--depth", 3, "--batch", 2, "--crop", "2,32,32", "--device", "cpu"]

# Signals come in while the crops of a step are drawn, the first being 0: STEP,NUMBER[,NUMBER], then fgnet-train's
# arguments. In a process of its own, as the command runs: the tests' own process died once and again of such a signal.
_SIGNALLED = """
import os, sys
from fgnet.cli import train
from fgnet.network.data import CropSampler
wanted, *numbers = map(int, sys.argv.pop(1).split(","))
draw = CropSampler.sample
def sample(self, step, index):
    while step == wanted and numbers:
        os.kill(os.getpid(), numbers.pop(0))
    return draw(self, step, index)
CropSampler.sample = sample
sys.argv[0] = "fgnet-train"
train.main()
"""

# Rank 1 alone is told, while it draws the crops of its third step.
_TOLD_ALONE = """
import os, signal, sys
from fgnet.cli import train
from fgnet.network.data import CropSampler
draw = CropSampler.sample
def sample(self, step, index):
    if (os.environ["RANK"], step) == ("1", 2):
        os.kill(os.getpid(), signal.SIGTERM)
    return draw(self, step, index)
CropSampler.sample = sample
try:
    train.main()
except SystemExit as ended:
    open(f"{sys.argv[1]}.rank{os.environ['RANK']}", "w").write(str(ended.code))
    raise
"""


@pytest.fixture
def addresses(tissue: Path) -> list[str]:
    return ["--raw", f"{tissue}:raw", "--labels", f"{tissue}:labels"]


def signalled(step: int, *numbers: signal.Signals, arguments: Sequence[object]) -> tuple[int, str, str]:
    """What `run` gives, of a run that gets signals while the crops of that step are drawn, the first being 0."""
    told = ",".join(str(int(number)) for number in (step, *numbers))
    result = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, told, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def steps(path: Path) -> int:
    from fgnet.network.checkpoint import load_checkpoint

    return int(load_checkpoint(path).provenance["steps"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_what_was_trained_and_says_how_to_go_on(
    addresses: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    options = [tmp_path / "run", *addresses, *SMALL, "--iterations", 5]
    code, stdout, stderr = signalled(3, number, arguments=[*options, "--json"])
    assert (code, stdout) == (128 + number, "")
    assert "saving, then stopping" in stderr
    assert re.search(r"stopped at step 3, which is saved; go on with\n  fgnet-train .*--resume\n$", stderr)
    assert steps(tmp_path / "run" / "last.pt") == 3
    code, _, stderr = run(*options, "--resume")
    assert code == 0, stderr
    assert steps(tmp_path / "run" / "model.pt") == 5


def test_a_second_signal_interrupts_at_once_and_what_is_said_to_do_then_can_be_done(
    addresses: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The model that a fine-tuning starts from is kept before there is anything to go on from."""
    folder = tmp_path / "run"
    options = [*addresses, "--from", tiny_checkpoint, "--iterations", 3, "--batch", 1, "--device", "cpu"]
    code, _, stderr = signalled(1, signal.SIGTERM, signal.SIGINT, arguments=[folder, *options])
    assert code == 143
    assert re.search(r"interrupted at step 1, before anything was saved; start again with\n.* --overwrite\n$", stderr)
    assert {path.name for path in folder.glob("*.pt")} == {"model.pt"}
    for more, message in (
        (["--resume"], "there is no run to resume (--overwrite replaces it)"),
        ([], "holds model.pt already (--overwrite replaces it; or choose another folder)"),
    ):
        code, _, stderr = run(folder, *options, *more)
        assert code == 1
        assert message in stderr
    code, _, stderr = run(folder, *options, "--overwrite")
    assert code == 0, stderr


@pytest.mark.parametrize("grid", [False, True])
def test_overwriting_removes_nothing_of_a_run_that_is_under_way(
    addresses: list[str], tmp_path: Path, grid: bool
) -> None:
    from fgnet.network.run_folder import locked

    held_out = ["--val-raw", addresses[1], "--val-labels", addresses[3], "--val-roi", "8:12,:,:", "--roi", "0:8,:,:"]
    run_folder = tmp_path / "frozen-seed0" if grid else tmp_path
    run_folder.mkdir(exist_ok=True)
    (run_folder / "last.pt").touch()
    more = ["--experiment", "adaptation", *held_out] if grid else SMALL[:4]
    with locked(tmp_path):
        code, _, stderr = run(tmp_path, *addresses, *more, *SMALL[4:], "--iterations", 1, "--overwrite")
    assert code == 1
    assert "another run is writing in this folder" in stderr
    assert (run_folder / "last.pt").exists()


def test_a_grid_stops_at_a_signal_and_the_same_command_goes_on(addresses: list[str], tmp_path: Path) -> None:
    held_out = ["--val-raw", addresses[1], "--val-labels", addresses[3], "--val-roi", "8:12,:,:", "--roi", "0:8,:,:"]
    options = [*addresses, *held_out, "--experiment", "adaptation", "--iterations", 2, *SMALL[4:]]
    code, stdout, stderr = signalled(1, signal.SIGTERM, arguments=[tmp_path / "grid", *options])
    assert (code, stdout) == (143, "")
    assert "stopped; the same command without --overwrite goes on" in stderr
    assert steps(tmp_path / "grid" / "frozen-seed0" / "last.pt") == 1
    code, stdout, stderr = run(tmp_path / "grid", *options)
    assert code == 0, stderr
    assert "| frozen |" in stdout


def test_a_signal_to_one_process_of_torchrun_stops_all_of_them_at_the_same_step(
    addresses: list[str], tmp_path: Path
) -> None:
    program, folder = tmp_path / "told_alone.py", tmp_path / "run"
    program.write_text(_TOLD_ALONE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(
        [*launcher, *map(str, (folder, *addresses, *SMALL, "--iterations", 9, "--save-every", 50))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode != 0
    assert steps(folder / "last.pt") == 2
    assert "stopped at step 2, which is saved" in result.stderr
    codes = [(tmp_path / f"run.rank{rank}") for rank in range(2)]
    assert [path.read_text() for path in codes] == ["130", "143"]
