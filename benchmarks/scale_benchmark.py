"""How do time and memory of fgnet-run grow with the volume? Volumes on disk, one process for each run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.machine import Machine, describe_machine
from fgnet.benchmarks.result_file import without_folders
from fgnet.engine.run_record import record_path
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.space import Space
from fgnet.volumes.writing import CHUNKS, create_image

Say = Callable[[str], None]

# A piece of synthetic neuropil that larger volumes are made of, mirrored at its borders.
_TISSUE = (64, 512, 512)
_VOXEL_NM = (10.0, 10.0, 10.0)


@dataclass(frozen=True)
class ScaleRow:
    """What was measured of one run.

    Attributes:
        factor: how many times as large as the first volume.
        shape: (z, y, x) voxels.
        processes: that shared the volume.
        voxels: of the volume.
        seconds: of the command, from its start to its end; the median of the repeats. What follows is of the run that
            took it, or of the shorter of the two in the middle.
        all_seconds: of every repeat.
        affinities_seconds: of the streaming of affinities, the start of the network included.
        voxels_per_second: of output, in `affinities_seconds`.
        blocks: that were run.
        block_voxels_per_second: voxels of a stride for each block: what fgnet-bench engine gives as voxels per second.
        peak_memory_bytes: of the process; None for several, of which the record tells the first alone.
        bottleneck: in words.
        resources: share of the time that each was busy.
    """

    factor: int
    shape: Triple
    processes: int
    voxels: int
    seconds: float
    all_seconds: tuple[float, ...]
    affinities_seconds: float
    voxels_per_second: float
    blocks: int
    block_voxels_per_second: float
    peak_memory_bytes: int | None
    bottleneck: str
    resources: dict[str, float]


@dataclass(frozen=True)
class ScaleBenchmark:
    """All runs.

    Attributes:
        model: that was run.
        backend: that ran it.
        precision: of its arithmetic.
        command: without the volume, and without folders of the machine.
        machine: that was measured.
        results: one for each size.
        exponent: b of seconds = a * voxels^b, fitted to the runs of the fewest processes; 1 is proportional. None for a
            single size.
    """

    model: str
    backend: str
    precision: str
    command: list[str]
    machine: Machine
    results: tuple[ScaleRow, ...]
    exponent: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure_scale(
    base: Triple,
    factors: Sequence[int],
    axis: int,
    options: Sequence[str],
    *,
    processes: Sequence[int] = (1,),
    repeats: int = 1,
    folder: Path,
    say: Say,
) -> ScaleBenchmark:
    """Run volumes of growing size, one after the other.

    Args:
        base: (z, y, x) of the smallest.
        factors: how many times as large the volumes are.
        axis: along which they grow.
        options: of fgnet-run, beside the volume and the output.
        processes: that share a volume; each number is a run of its own.
        repeats: of every run; all runs of a volume in turn.
        folder: for volumes and outputs, which are deleted.
        say: told how far it is.

    Raises:
        BackendError: a run failed.
    """
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    machine = describe_machine()
    say("making synthetic neuropil")
    tissue = make_neuropil(NeuropilOptions(_TISSUE, _VOXEL_NM)).raw
    rows: list[ScaleRow] = []
    network: dict[str, Any] = {}
    for factor in factors:
        z, y, x = [extent * (factor if along == axis else 1) for along, extent in enumerate(base)]
        name = f"{z} x {y} x {x}"
        runs: dict[int, list[ScaleRow]] = {number: [] for number in processes}
        with tempfile.TemporaryDirectory(dir=folder, prefix="fgnet-scale-") as place:
            volume, output = Path(place) / "gray.zarr", Path(place) / "affinities.zarr"
            write_volume(volume, (z, y, x), tissue)
            for number in [*processes] * repeats:
                say(f"{name}: running, processes: {number}")
                row, network = _run(volume, output, factor, (z, y, x), options, number)
                say(f"{name}: {row.seconds:.0f} s")
                runs[number].append(row)
        rows += [_middle(each) for each in runs.values()]
    least = [row for row in rows if row.processes == min(processes)]
    return ScaleBenchmark(
        network["model"],
        network["backend"],
        network["precision"],
        ["fgnet-run", "VOLUME", *map(without_folders, options)],
        machine,
        tuple(rows),
        fitted_exponent([row.voxels for row in least], [row.seconds for row in least]),
    )


def write_volume(path: Path, shape: Triple, tissue: npt.NDArray[np.uint8]) -> None:
    """Write gray of any size, made of a piece of tissue that is mirrored at its borders, chunk layer by chunk layer."""
    writer = create_image(path, shape=shape, dtype=np.uint8, space=Space(_VOXEL_NM))
    z, y, x = (there_and_back(extent, side) for extent, side in zip(shape, tissue.shape, strict=True))
    rows = tissue[:, y]
    for first in range(0, shape[0], CHUNKS[0]):
        layer = rows[z[first : first + CHUNKS[0]]][..., x]
        writer.write(Box((first, 0, 0), (first + len(layer), *shape[1:])), np.ascontiguousarray(layer))
    writer.finish()


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """B of seconds = a * size^b by least squares of the logarithms; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def there_and_back(extent: int, side: int) -> npt.NDArray[np.int64]:
    """Indices 0 .. side - 1 .. 0 .. and so on."""
    place = np.arange(extent) % (2 * side)
    return np.minimum(place, 2 * side - 1 - place)


def _middle(runs: Sequence[ScaleRow]) -> ScaleRow:
    """Of several runs of the same, the one in the middle with the seconds of all."""
    seconds = tuple(run.seconds for run in runs)
    middle = sorted(runs, key=lambda run: run.seconds)[(len(runs) - 1) // 2]
    return replace(middle, seconds=round(median(seconds), 2), all_seconds=seconds)


def _run(
    volume: Path, output: Path, factor: int, shape: Triple, options: Sequence[str], processes: int
) -> tuple[ScaleRow, dict[str, Any]]:
    """One run, and the identity of what it ran."""
    shared = ["--processes", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "fgnet.cli.run", str(volume), "-o", str(output), "--overwrite", *options, *shared]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise BackendError(told[-1] if told else "fgnet-run failed", where="fgnet-run")
    record: dict[str, Any] = json.loads(record_path(output).read_text(encoding="utf-8"))
    voxels, streaming = record["voxels"], record["streaming"]
    affinities = record["stages"]["affinities"]
    step = int(np.prod(record["plan"]["stride"]))
    row = ScaleRow(
        factor=factor,
        shape=shape,
        processes=processes,
        voxels=voxels,
        seconds=round(seconds, 2),
        all_seconds=(),
        affinities_seconds=affinities,
        voxels_per_second=round(voxels / affinities),
        blocks=streaming["blocks"],
        block_voxels_per_second=round(step * streaming["blocks"] / streaming["seconds"]),
        peak_memory_bytes=streaming["peak_memory_bytes"] if processes == 1 else None,
        bottleneck=streaming["bottleneck"],
        resources={name: told["busy_share"] for name, told in streaming["resources"].items()},
    )
    identity: dict[str, Any] = record["identity"]
    return row, identity
