from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import typer

from fgnet.cli import console
from fgnet.cli.console import format_duration, format_rate, guarded, optional_packages, print_json, voxel_progress
from fgnet.volumes.errors import FGNetError, VolumeError


def _raising(error: BaseException) -> Callable[[], None]:
    @guarded
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (VolumeError("is empty", where="v.zarr", remedy="give another"), 1, "error: v.zarr: is empty (give another)"),
        (OSError(errno.ENOSPC, "No space left on device", "out.zarr"), 1, "out.zarr: the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "out.zarr"), 1, "error: out.zarr: Permission denied"),
        (OSError("odd"), 1, "error: odd"),
        (MemoryError(), 1, "memory is full"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_or_machine_causes_becomes_a_line_and_an_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_abandon_stdout", lambda: None)
    with pytest.raises(typer.Exit) as ended:
        _raising(error)()
    out, err = capsys.readouterr()
    assert ended.value.exit_code == code
    assert (out, "Traceback" in err) == ("", False)
    assert text in err


def test_addresses_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with voxel_progress("work", 10) as progress:
        progress.say("mask.h5:m: [bold]")
    console.say("mask.h5:m: [bold]")
    console.print_renderable("mask.h5:m: there")
    out, err = capsys.readouterr()
    assert (out, err) == ("mask.h5:m: there\n", "mask.h5:m: [bold]\n" * 2)


def test_errors_of_our_own_making_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _raising(ZeroDivisionError())()


_PRINTING = """
import typer
from fgnet.cli.console import guarded, print_json, run_app
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
@app.command()
@guarded
def command() -> None:
    print_json({"text": "x" * 1_000_000})
run_app(app)
"""


def test_a_reader_that_went_away_ends_a_command_without_a_word() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_below_stdout_is_named_once() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - no path of ours
        result = subprocess.run(
            [sys.executable, "-c", _PRINTING], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the disk is full")
    assert result.stderr.count("\n") == 1


def test_a_missing_optional_package_names_the_extra() -> None:
    with pytest.raises(FGNetError, match=r"'nonesuch' is not installed.*pip install 'fgnet\[train\]'"), _extra():
        import nonesuch.inner  # type: ignore[import-not-found] # noqa: F401


def test_a_missing_module_of_fgnet_itself_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError), _extra():
        import fgnet.nonesuch  # type: ignore[import-not-found] # noqa: F401


def _extra() -> AbstractContextManager[None]:
    return optional_packages("train")


def test_json_is_one_line_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"voi": 1.5})
    out = capsys.readouterr().out
    assert json.loads(out) == {"voi": 1.5}
    assert out.count("\n") == 1
    with pytest.raises(ValueError, match="JSON"):
        print_json({"voi": float("nan")})


def test_progress_in_a_log_ends_with_a_line_of_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with voxel_progress("predicting", 1000) as bar:
        for done in (200, 600, 1000):
            bar.update(done, "block")
        bar.say("between [lines]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("predicting 100%  block  ")
    assert "voxel/s  0:00 left" in err
    assert err.splitlines()[1] == "between [lines]"


def test_progress_on_a_terminal_shows_a_bar_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with voxel_progress("predicting", 1000) as bar:
        bar.update(500, "[half]")
        bar.say("a [line]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "predicting" in err
    assert "a [line]" in err


@pytest.mark.parametrize("known", [900_000, 0])
def test_voxels_of_an_earlier_run_do_not_count_as_speed(
    known: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(clock))
    with voxel_progress("training", 1_000_000, done=known) as bar:
        # What is found out on the way.
        bar.skip(900_000 - known)
        bar.update(950_000)
    assert capsys.readouterr().err == "training  95%  5 kvoxel/s  0:10 left\n"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0 voxel/s"), (12.0, "12 voxel/s"), (3214.0, "3.21 kvoxel/s"), (7e6, "7 Mvoxel/s"), (1.5e9, "1.5 Gvoxel/s")],
)
def test_rates_have_three_digits(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (7, "0:07"), (65, "1:05"), (3723, "1:02:03")])
def test_durations_read_as_clocks(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
