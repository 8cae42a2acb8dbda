"""How a command speaks: results on stdout, everything else on stderr, errors in one line and as an exit code."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

from fgnet.cli.stop_signals import Interrupted
from fgnet.volumes.errors import FGNetError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
# Where stderr is a file or a pipe, a line this often takes the place of the moving bar.
_SECONDS_BETWEEN_LINES = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def stderr() -> Console:
    """The console for progress and messages."""
    from rich.console import Console

    # An address may hold what rich takes for an emoji: mask.h5:m:
    return Console(stderr=True, emoji=False)


def say(text: str, style: str | None = None) -> None:
    """Prints one line on stderr, as it is: paths are neither wrapped nor coloured."""
    stderr().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(result: dict[str, Any]) -> None:
    """Prints the command's result, one JSON object, on stdout; at once, so that a closed pipe shows here."""
    print(json.dumps(result, allow_nan=False), flush=True)


def print_renderable(renderable: Any) -> None:
    """What rich renders, such as a table, on stdout."""
    from rich.console import Console

    # A file or a pipe has no width of its own; 80 columns would break tables.
    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width, emoji=False).print(renderable)


def print_text(text: str) -> None:
    """Prints the command's result for people on stdout; at once, as `print_json`."""
    print(text, flush=True)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turns what a user or a machine can cause into a red line on stderr and an exit code: 1, or 130 for an interrupt.

    An interrupt that knows its signal ends with 128 + its number, 143 for SIGTERM. A reader of stdout that went away
    (`fgnet-eval ... | head`) ends the command without a word.
    """

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FGNetError as error:
            _fail("; ".join([str(error), *getattr(error, "__notes__", [])]))
        except KeyboardInterrupt as interrupt:
            say("interrupted", "red")
            raise typer.Exit(128 + interrupt.number if isinstance(interrupt, Interrupted) else INTERRUPTED) from None
        except BrokenPipeError:
            _abandon_stdout()
            raise typer.Exit(1) from None
        except MemoryError as error:
            _fail(f"the machine's memory is full: {error}" if str(error) else "the machine's memory is full")
        except OSError as error:
            _abandon_stdout()
            _fail(_explained(error))

    return command


def _fail(text: str) -> NoReturn:
    say(f"error: {text}", "red")
    raise typer.Exit(1) from None


def _explained(error: OSError) -> str:
    where = "" if error.filename is None else f"{error.filename}: "
    if error.errno in _FULL:
        return f"{where}the disk is full (free space, or write somewhere else)"
    return f"{where}{error.strerror or error}"


def _abandon_stdout() -> None:
    """Lets what is still buffered for stdout go nowhere; the interpreter would fail on it once more while it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file here, so nothing is flushed to one
        return


@contextmanager
def optional_packages(extra: str) -> Iterator[None]:
    """Around imports that need an extra of fgnet: says which one is missing.

    Args:
        extra: "train", "cpu" or "gpu".

    Raises:
        FGNetError: a package, named in the message, is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fgnet"):
            raise
        raise FGNetError(
            f"the package {package!r} is not installed, and this needs it", remedy=f"pip install 'fgnet[{extra}]'"
        ) from error


def format_rate(voxels_per_second: float) -> str:
    """Voxels per second with three digits, for example "3.21 Mvoxel/s"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if voxels_per_second >= size:
            return f"{voxels_per_second / size:.3g} {unit}voxel/s"
    return f"{voxels_per_second:.3g} voxel/s"


def format_duration(seconds: float) -> str:
    """Seconds as "0:07" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class VoxelProgress:
    """How far some work over voxels has come, on stderr: a bar with voxels/s and time left, or lines in a log.

    Args:
        title: what is being done.
        voxels: all of them.
        done: those of an earlier run, which say nothing about this run's speed.
    """

    def __init__(self, title: str, voxels: int, done: int = 0) -> None:
        self._title, self._voxels, self._first = title, max(voxels, 1), done
        self._started = self._spoken = time.perf_counter()
        self._bar: Progress | None = None

    def __enter__(self) -> VoxelProgress:
        self._started = self._spoken = time.perf_counter()
        console = stderr()
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._bar.add_task(self._title, total=self._voxels, completed=self._first, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, voxels: int) -> None:
        """Counts voxels as those of an earlier run, too."""
        self._first += voxels

    def update(self, done: int, note: str = "") -> None:
        """Shows how many voxels are done, and a note after them."""
        now = time.perf_counter()
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = format_duration((self._voxels - done) / rate) if rate > 0 else "?"
        text = "  ".join(part for part in (note, format_rate(rate), f"{left} left") if part)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=text)
        elif now - self._spoken >= _SECONDS_BETWEEN_LINES or done >= self._voxels:
            self._spoken = now
            say(f"{self._title} {done / self._voxels:4.0%}  {text}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def voxel_progress(title: str, voxels: int, done: int = 0) -> VoxelProgress:
    """Progress over voxels for a `with` statement, whose target's `update` is told how many are done.

    Args:
        title: what is being done.
        voxels: all of them.
        done: those of an earlier run.
    """
    return VoxelProgress(title, voxels, done)


def run_app(app: typer.Typer) -> None:
    """Runs a command, whose functions are `guarded`; `--version` and `-h` are the same for all of them."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from importlib.metadata import version

        print_text(f"{Path(sys.argv[0]).name} {version('fgnet')}")
        return
    if arguments and arguments[-1] == "-h" and "--" not in arguments:
        sys.argv[-1] = "--help"
    app()
