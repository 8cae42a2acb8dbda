"""Runs that are killed, stopped or started twice, and what going on with them gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import RunJournal, journal_path
from fgnet.volumes.errors import OutputError

COMMAND = Path(sys.executable).parent / "fgnet-run"
KILLS = 10


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, (12, 270, 290), dtype=np.uint8)
    zarr.create_array(str(store), shape=gray.shape, chunks=(8, 64, 64), dtype="u1")[:] = gray
    return store


@pytest.fixture(scope="module")
def command(volume: Path, tiny_bundle: Path) -> list[str]:
    """Without its output; one thread, so that a machine with more cores has time to kill it."""
    options = ["--backend", "onnxruntime", "--threads", "1", "--save-affinities"]
    return [str(COMMAND), str(volume), "--model", str(tiny_bundle), *options]


def run(command: list[str], output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The same command in this process, where it need not import everything anew."""
    result = CliRunner().invoke(app, [*command[1:], "-o", str(output), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return subprocess.CompletedProcess([], result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts runs that may be left behind."""
    processes = []

    def start(command: list[str], output: Path, *options: str) -> subprocess.Popen[str]:
        full = [*command, "-o", str(output), *options]
        process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out.zarr"
    result = run(command, output)
    assert result.returncode == 0, result.stderr
    assert not journal_path(output).exists()
    return files(output)


@pytest.fixture(scope="module")
def interrupted(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was killed after its first chunks; not to be changed."""
    output = tmp_path_factory.mktemp("interrupted") / "out.zarr"
    process = subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.PIPE, text=True)
    wait_for_chunks(process, output, 2)
    process.kill()
    process.communicate()
    return output


@pytest.fixture
def half(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    output = tmp_path / "out.zarr"
    shutil.copytree(interrupted, output)
    shutil.copy(journal_path(interrupted), journal_path(output))
    return output


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def finished_chunks(output: Path) -> int:
    path = journal_path(output)
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.exists() else 0


def wait_for_chunks(process: subprocess.Popen[str], output: Path, count: int) -> None:
    while finished_chunks(output) < count and process.poll() is None:
        time.sleep(0.01)


def test_a_run_that_is_killed_ten_times_gives_the_bytes_of_one_that_is_not(
    command: list[str], whole: dict[str, bytes], tmp_path: Path, started: Any
) -> None:
    output, moments = tmp_path / "out.zarr", np.random.default_rng(0)
    seen = set()
    for kill in range(KILLS):
        process = started(command, output, "--resume")
        if kill % 2:
            wait_for_chunks(process, output, finished_chunks(output) + 1)
        time.sleep(moments.uniform(0, 1.5))
        process.kill()
        process.communicate()
        seen.add(finished_chunks(output))
    # Some of the kills came in the middle.
    assert seen & set(range(1, 9)), seen
    result = run(command, output, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    found = files(output)
    assert found.keys() == whole.keys()
    assert [name for name in found if found[name] != whole[name]] == []
    # The last kill may have come after the end.
    told = json.loads(result.stdout)
    assert told.get("complete") or told["resumed_chunks"] == max(seen)


def test_a_chunk_that_was_cut_short_or_not_noted_is_written_again(
    command: list[str], whole: dict[str, bytes], half: Path
) -> None:
    output = half
    noted = {tuple(json.loads(line)) for line in journal_path(output).read_text().splitlines()[1:]}
    torn = output / "affinities" / "0" / "c" / "0" / "0" / "2" / "2"
    assert (0, 2, 2) not in noted
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_bytes(b"torn")
    left_over = torn.with_suffix(".0123.partial")
    left_over.write_bytes(b"half a chunk")
    # A kill in the middle of a line of the journal.
    with journal_path(output).open("ab") as file:
        file.write(b"[0, 2")
    result = run(command, output, "--resume")
    assert result.returncode == 0, result.stderr
    assert files(output) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_block_in_hand_and_says_how_to_go_on(
    command: list[str], whole: dict[str, bytes], tmp_path: Path, started: Any, number: signal.Signals
) -> None:
    output = tmp_path / "out.zarr"
    process = started(command, output)
    wait_for_chunks(process, output, 2)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "finishing the block in hand" in told
    assert "the same command with --resume" in told
    assert "Traceback" not in told
    assert 0 < finished_chunks(output) < 9
    assert run(command, output, "--resume").returncode == 0
    assert files(output) == whole


@pytest.mark.parametrize(
    ("victim", "number"), [("first", signal.SIGKILL), ("helper", signal.SIGKILL), ("helper", signal.SIGTERM)]
)
def test_processes_that_share_a_run_give_its_bytes_and_go_on_after_one_of_them_or_the_first_is_killed(
    command: list[str],
    whole: dict[str, bytes],
    tmp_path: Path,
    started: Any,
    victim: str,
    number: signal.Signals,
    both_helpers: Callable[[subprocess.Popen[str]], list[int]],
    wait_for_end: Callable[[int], None],
) -> None:
    output = tmp_path / "out.zarr"
    shared = [*command, "--processes", "2"]
    process = started(shared, output)
    helpers = both_helpers(process)
    wait_for_chunks(process, output, 1)
    os.kill(process.pid if victim == "first" else helpers[0], number)
    _, told = process.communicate(timeout=60)
    if victim == "helper":
        assert process.returncode == 1
        assert ("killed by signal 9" if number == signal.SIGKILL else "ended with exit code 143") in told
    for helper in helpers:
        wait_for_end(helper)
    assert 0 < finished_chunks(output) < 9
    result = run(shared, output, "--resume")
    assert result.returncode == 0, result.stderr
    assert files(output) == whole


def test_another_run_of_the_same_output_is_refused(command: list[str], tmp_path: Path, started: Any) -> None:
    output = tmp_path / "out.zarr"
    process = started(command, output)
    wait_for_chunks(process, output, 1)
    for option in ("--resume", "--overwrite"):
        result = run(command, output, option)
        assert result.returncode == 1
        assert "another run is writing this output" in result.stderr
    assert process.poll() is None
    with pytest.raises(OutputError, match="another run"):
        RunJournal(output)


def test_a_run_that_differs_is_refused_naming_the_field(
    command: list[str], volume: Path, whole: dict[str, bytes], tmp_path: Path, half: Path
) -> None:
    output = half
    before = files(output)
    result = run(command, output)
    assert result.returncode == 1
    assert "--resume continues it, --overwrite starts anew" in result.stderr
    for options, told in {
        ("--stride", "2,32,48"): "stride was [2, 32, 32] and is [2, 32, 48]",
        ("--roi", ":,:,:200"): "region was",
        ("--blending", "bump"): "blending was 'gaussian' and is 'bump'",
        ("--zarr-format", "2"): "zarr format was 3 and is 2",
    }.items():
        result = run(command, output, "--resume", *options)
        assert result.returncode == 1
        assert told in result.stderr
    changed = tmp_path / "v.zarr"
    shutil.copytree(volume, changed)
    # At another place, with another gray value in a voxel that is looked at.
    zarr.open_array(str(changed))[0, 0, 0] ^= 1
    result = run([command[0], str(changed), *command[2:]], output, "--resume")
    assert "input was" in result.stderr
    assert "input sha256 was" in result.stderr
    assert files(output) == before
    # What does not change affinities may differ.
    result = run(command, output, "--resume", "--memory", "0.02", "--min-size", "5")
    assert result.returncode == 0, result.stderr


def test_what_is_complete_is_not_done_again(command: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    assert run(command, output, "--resume").returncode == 0
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    result = run(command, output, "--resume")
    assert result.returncode == 0
    assert "complete" in result.stderr
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert files(output) == whole
    result = run(command, output, "--resume", "--blending", "bump")
    assert result.returncode == 1
    assert "blending was 'gaussian' and is 'bump'" in result.stderr


def test_an_output_that_was_deleted_is_made_anew(command: list[str], whole: dict[str, bytes], half: Path) -> None:
    output = half
    shutil.rmtree(output)
    assert run(command, output, "--resume").returncode == 0
    assert files(output) == whole


def test_a_refused_run_leaves_no_journal(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    result = run(command, output)
    assert result.returncode == 1
    assert not journal_path(output).exists()


def test_damaged_metadata_costs_no_chunk(command: list[str], whole: dict[str, bytes], half: Path) -> None:
    output = half
    metadata = (output / "zarr.json").read_bytes()
    (output / "zarr.json").write_bytes(b"")
    before = files(output)
    result = run(command, output, "--resume")
    assert result.returncode == 1
    assert "metadata cannot be read" in result.stderr
    assert files(output) == before
    (output / "zarr.json").write_bytes(metadata)
    assert run(command, output, "--resume").returncode == 0
    assert files(output) == whole


def test_chunks_whose_journal_is_gone_are_not_deleted_unasked(command: list[str], half: Path) -> None:
    output = half
    journal_path(output).unlink()
    before = files(output)
    result = run(command, output, "--resume")
    assert result.returncode == 1
    assert "the journal that knows its finished chunks is not there" in result.stderr
    assert files(output) == before


def test_a_journal_that_cannot_be_read_is_replaced_only_where_that_is_asked_for(
    command: list[str], whole: dict[str, bytes], half: Path
) -> None:
    output = half
    journal_path(output).write_bytes(b"\0\0\0\n")
    result = run(command, output, "--resume")
    assert result.returncode == 1
    assert "start anew with --overwrite" in result.stderr
    assert run(command, output, "--overwrite").returncode == 0
    assert files(output) == whole


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_the_input_is_never_written_over(command: list[str], volume: Path, option: str) -> None:
    before = files(volume)
    for output in (volume, volume.parent):
        result = run(command, output, option)
        assert result.returncode == 1
        assert "the output is the input" in result.stderr
    assert files(volume) == before


def test_a_complete_output_of_other_wishes_is_refused_naming_them(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    assert run(command, output).returncode == 0
    result = run(command, output, "--resume", "--threshold", "0.7", "--min-size", "9")
    assert result.returncode == 1
    assert "threshold was 0.5 and is 0.7" in result.stderr
    assert "min_size was 0 and is 9" in result.stderr
