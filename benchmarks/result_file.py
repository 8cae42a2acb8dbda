"""What a result file of fgnet-bench holds, of whichever subcommand and version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Any, Literal, get_args

from fgnet.volumes.errors import FGNetError

Kind = Literal["engine", "pipeline", "decode", "scale"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Samples:
    """A figure that was measured several times.

    Attributes:
        values: every one that was recorded; of older files the least, the median and the most.
    """

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def least(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest."""
        return max(self.values)

    @property
    def spread(self) -> float | None:
        """Half of the range, as a share of the median; None for a single value, which tells none."""
        return None if len(self.values) < 2 else (self.most - self.least) / 2 / self.middle


@dataclass(frozen=True)
class Result:
    """A benchmark as it was recorded.

    Attributes:
        name: of the file, or of the benchmark where there is no file.
        kind: which subcommand wrote it.
        data: all of it.
    """

    name: str
    kind: Kind
    data: dict[str, Any]

    @property
    def machine(self) -> dict[str, Any]:
        """That was measured."""
        machine: dict[str, Any] = self.data["machine"]
        return machine

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was measured."""
        rows: list[dict[str, Any]] = self.data["results"]
        return rows


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        FGNetError: no JSON, or none that fgnet-bench wrote.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FGNetError(f"it cannot be read ({error})", where=path, remedy="give a result of fgnet-bench") from error
    return as_result(data, path.name, path)


def as_result(data: Any, name: str, where: Path | None = None) -> Result:
    """A result from its plain data.

    Args:
        data: as `fgnet-bench --json` gives it.
        name: to call it by.
        where: its file, for errors.

    Raises:
        FGNetError: fgnet-bench gives no such data.
    """
    kind = _kind(data) if isinstance(data, dict) else None
    rows = data.get("results") if kind is not None else None
    if kind is None or not isinstance(rows, list) or not rows or not isinstance(data.get("machine"), dict):
        raise FGNetError("it is no result of fgnet-bench", where=where or name, remedy="give a file of its -o")
    if kind == "decode":
        # Earlier files give ratios to the first row of a volume, whatever its fragments.
        data = data | {"results": [row | {"ratio": times_waterz(rows, row)} for row in rows]}
    return Result(name, kind, data)


def waterz_row(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """What a row of a decoder is held to: waterz on 8-bit values, of the same volume and fragments, if it was run."""
    same = ("shape", "fragments")
    alike = (other for other in rows if all(other[name] == row[name] for name in same))
    return next((other for other in alike if (other["decoder"], other["values"]) == ("waterz", "uint8")), None)


def times_waterz(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float | None:
    """How many times as fast as waterz a row of a decoder is; None where waterz was not run."""
    reference = waterz_row(rows, row)
    return None if reference is None else round(reference["seconds"] / row["seconds"], 3)


def speeds(kind: Kind, row: dict[str, Any]) -> Samples:
    """Voxels per second of a row, every time that it was measured; of commands that are timed as a whole, all of it."""
    if "all_voxels_per_second" in row:
        return Samples(tuple(row["all_voxels_per_second"]))
    if kind == "engine":
        known = (row["slowest"], row["voxels_per_second"], row["fastest"])
        return Samples(known if row["windows"] > 1 else known[1:2])
    seconds = seconds_of(row).values
    if kind == "scale":
        # The row's own voxels per second are of the affinities alone, without start, decoding and pyramid.
        return Samples(tuple(row["voxels"] / each for each in seconds))
    return Samples(tuple(row["voxels_per_second"] * row["seconds"] / each for each in seconds))


def reference_of(result: Result, row: dict[str, Any]) -> dict[str, Any] | None:
    """The row that a row's ratio is to, which is somebody else's way; None where there is none."""
    if result.kind == "scale" or row.get("ratio") is None:
        return None
    if result.kind == "decode":
        return waterz_row(result.rows, row)
    return next((other for other in result.rows if other.get("ratio") == 1), None)


def ratios(row: dict[str, Any]) -> Samples:
    """How many times as fast as the reference of its file, in every round; of a row that has one."""
    return Samples(tuple(row.get("all_ratios") or [row["ratio"]]))


def seconds_of(row: dict[str, Any]) -> Samples:
    """Seconds of a row that is timed as a whole."""
    return Samples(tuple(row.get("all_seconds") or [row["seconds"]]))


def label_of(kind: Kind, row: dict[str, Any]) -> str:
    """What tells a row from the others of its file."""
    if kind == "scale":
        workers = f", {row['processes']} processes" if row.get("processes", 1) > 1 else ""
        return f"{size_text(row['shape'])}{workers}"
    if kind == "decode":
        return f"{row['name']}, {size_text(row['shape'])}"
    return str(row["name"])


def size_text(shape: Sequence[int]) -> str:
    """Extents in words, such as "64 x 512 x 512"."""
    return " x ".join(map(str, shape))


def without_folders(argument: str) -> str:
    """An argument that tells no folder of this machine: of an absolute path, what it names stays."""
    if argument.startswith("-") and " " in argument.partition("=")[0]:
        # Options of another command.
        return " ".join(map(without_folders, argument.split(" ")))
    option, sign, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    if not value.startswith(("/", "~")):
        return argument
    parts = PurePath(value).parts
    # Of an array in a store, the store and what lies in it.
    first = next((index for index, part in enumerate(parts) if "." in part.lstrip(".")), len(parts) - 1)
    return f"{option}{sign}{'/'.join(parts[first:])}"


def _kind(data: dict[str, Any]) -> Kind | None:
    """Which subcommand wrote it; those of before they said so are told by what only they hold."""
    told = data.get("benchmark")
    if told is not None:
        return next((kind for kind in KINDS if kind == told), None)
    if "patch" in data and "gray" in data:
        return "engine"
    if "threshold" in data and "affinities" in data:
        return "decode"
    if "exponent" in data:
        return "scale"
    rows = data.get("results")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "stages" in rows[0]:
        return "pipeline"
    return None
