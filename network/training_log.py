"""The log of a training run: tables in CSV, events for TensorBoard and a picture of the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.network.training_curves import save_curves
from fgnet.volumes.errors import OutputError

STEPS, VALIDATIONS, EVENTS, CURVES = "steps.csv", "validations.csv", "tensorboard", "curves.png"

_STEP_COLUMNS = ("step", "loss", "rate", "seconds", "voxels_per_second")
_VALIDATION_COLUMNS = ("step", "voi", "voi_split", "voi_merge", "arand", "threshold")


class TrainingLog:
    """Rows as they come, and once each: what a killed run had logged beyond its last checkpoint is taken back.

    TensorBoard's events and the picture need optional packages; where one is missing, it is said once and left out.

    Args:
        folder: of the run.
        first: steps done by the run that goes on; 0 for a new one, whose log starts empty.
        say: tells the user.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, first: int, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._steps = _Table(folder / STEPS, _STEP_COLUMNS, first)
        self._validations = _Table(folder / VALIDATIONS, _VALIDATION_COLUMNS, first)
        self._writer = _event_writer(folder / EVENTS, first, say)
        self._draws = True

    def step(self, step: int, loss: float, rate: float, seconds: float, voxels_per_second: float) -> None:
        """Note a step; seconds of training so far, and the speed since this process began."""
        figures = {
            "loss": loss,
            "rate": rate,
            "seconds": round(seconds, 3),
            "voxels_per_second": round(voxels_per_second),
        }
        self._steps.add({"step": step, **figures})
        self._event(step, {f"training/{name}": figures[name] for name in ("loss", "rate", "voxels_per_second")})

    def validation(self, step: int, figures: dict[str, Any]) -> None:
        """Note a validation."""
        self._validations.add({"step": step, **figures})
        self._event(step, {f"validation/{name}": figures[name] for name in _VALIDATION_COLUMNS[1:] if name in figures})

    def _event(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:  # of the writer's thread, which may have met it before
            raise _unwritable(self._folder / EVENTS, error) from error

    def draw(self) -> None:
        """Draw the curves anew."""
        if not self._draws:
            return
        try:
            save_curves(self._folder / CURVES, self._steps.read(), self._validations.read())
        except ModuleNotFoundError as error:
            self._draws = False
            self._say(f"no {CURVES}: the package {error.name!r} is not installed (pip install 'fgnet[train]')")
        except OSError as error:
            raise _unwritable(self._folder / CURVES, error) from error

    def close(self) -> None:
        """Write what is still held."""
        self._steps.close()
        self._validations.close()
        if self._writer is not None:
            self._writer.close()


class _Table:
    """A CSV file that rows are added to, those of steps that are to be repeated removed."""

    def __init__(self, path: Path, columns: tuple[str, ...], first: int) -> None:
        self._path, self._columns = path, columns
        kept = [row for row in _rows(path, columns) if int(row["step"]) <= first] if first else []
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(kept)
        try:
            write_atomically(path, text.getvalue().encode())
            self._file = path.open("a", newline="")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._table = csv.DictWriter(self._file, columns, extrasaction="ignore", lineterminator="\n")

    def add(self, row: dict[str, Any]) -> None:
        try:
            self._table.writerow(row)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def read(self) -> list[dict[str, float]]:
        return [{key: float(value) for key, value in row.items() if value} for row in _rows(self._path, self._columns)]

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self._path, error) from error


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The whole rows of a table; none of a file that is missing or another one's, nor one that a kill cut short."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    whole = text[: text.rfind("\n") + 1]
    table = csv.DictReader(io.StringIO(whole))
    if tuple(table.fieldnames or ()) != columns:
        return []
    return [row for row in table if str(row["step"]).isdigit() and None not in row.values()]


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the log cannot be written ({error.strerror})", where=path, remedy="free space or choose another folder"
    )


def _event_writer(folder: Path, first: int, say: Callable[[str], None]) -> Any:
    """TensorBoard's writer, or None where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no log for TensorBoard: the package 'tensorboard' is not installed (pip install 'fgnet[train]')")
        return None
    if not first:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
    # Events of steps that are repeated are hidden.
    return SummaryWriter(str(folder), purge_step=first + 1 if first else None)
