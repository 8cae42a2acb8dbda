"""Signals that come while fgnet-run decodes: how it ends, and what the exit code tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.cli.stop_signals import Interrupted, StopSignals
from fgnet.engine.run_journal import journal_path
from fgnet.volumes.geometry import Triple

# A decoder that works until somebody interrupts it.
_ENDLESS = """
import time
from fgnet.cli import run
from fgnet.engine import run_decoding
run_decoding.{decoder} = lambda *_, **__: time.sleep(600)
run.main()
"""


@pytest.fixture(scope="module")
def arguments(noise_run: Callable[[Triple], list[str]]) -> list[str]:
    """Without decoder and output."""
    return noise_run((8, 150, 150))


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts fgnet-run from a program's text; it tells lines of JSON on stderr."""
    processes = []

    def start(program: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *options, "--log-json"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a run tells, until it ends; lines that are no JSON as texts."""
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line) if line.startswith("{") else {"event": "text", "text": line}


def wait_for_decoding(process: subprocess.Popen[str]) -> None:
    seen = []
    for event in events(process):
        seen.append(event)
        if event.get("phase") == "agglomeration":
            return
    pytest.fail(f"it ended before: {seen}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("decoder", "function"), [("blockwise", "decode_by_threads"), ("waterz", "decode_whole")])
def test_a_signal_while_threads_decode_interrupts_and_its_number_is_told(
    arguments: list[str], tmp_path: Path, started: Any, decoder: str, function: str, number: signal.Signals
) -> None:
    output = tmp_path / "out.zarr"
    options = ["-o", str(output), "--decoder", decoder, "--threshold", "0.6"]
    process = started(_ENDLESS.format(decoder=function), *arguments, *options)
    wait_for_decoding(process)
    process.send_signal(number)
    told = list(events(process))
    assert process.wait(60) == 128 + number
    assert any("interrupted" in event.get("text", "") for event in told)
    assert journal_path(output).exists()


def test_a_signal_while_workers_decode_ends_them_and_says_how_to_go_on(
    arguments: list[str], tmp_path: Path, started: Any, child_that_runs: Callable[[int, str], int]
) -> None:
    output = tmp_path / "out.zarr"
    options = ["-o", str(output), "--decoder", "blockwise", "--threshold", "0.6"]
    process = started("from fgnet.cli import run; run.main()", *arguments, *options, "--workers", "1")
    # It comes to no end before the signal.
    scheduler = child_that_runs(process.pid, "decode_scheduler")
    os.kill(scheduler, signal.SIGSTOP)
    wait_for_decoding(process)
    process.send_signal(signal.SIGTERM)
    os.kill(scheduler, signal.SIGCONT)
    told = list(events(process))
    assert process.wait(60) == 143
    assert any("the same command with --resume" in event.get("text", "") for event in told)
    assert not any(event["event"] == "error" or "block in hand" in event.get("text", "") for event in told)
    assert journal_path(output).exists()
    resumed = CliRunner().invoke(app, [*arguments, *options, "--resume"])
    assert resumed.exit_code == 0, resumed.stderr


def test_who_interrupts_is_told_where_nobody_asks_and_at_the_second_signal() -> None:
    told: list[int] = []
    signals = StopSignals(lambda: told.append(1))
    assert not signals()
    signals.handle(signal.SIGINT, None)
    assert signals()
    assert signals()
    assert (signals.number, told) == (signal.SIGINT, [1])
    with pytest.raises(Interrupted, match="SIGTERM") as second:
        signals.handle(signal.SIGTERM, None)
    assert second.value.number == signal.SIGTERM
    signals = StopSignals(lambda: None)
    signals.asked = False
    with pytest.raises(Interrupted, match="SIGTERM"):
        signals.handle(signal.SIGTERM, None)
