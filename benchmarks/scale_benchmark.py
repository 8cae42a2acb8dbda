"""How do time and memory of fgnet-run grow with the volume? Volumes on disk, one process for each run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.machine import Machine, describe_machine
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
        voxels: of the volume.
        seconds: of the command, from its start to its end.
        affinities_seconds: of the streaming of affinities, the start of the network included.
        voxels_per_second: of output, in `affinities_seconds`.
        blocks: that were run.
        block_voxels_per_second: voxels of a stride for each block: what fgnet-bench engine gives as voxels per second.
        peak_memory_bytes: of the process.
        bottleneck: in words.
        resources: share of the time that each was busy.
    """

    factor: int
    shape: Triple
    voxels: int
    seconds: float
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
        command: without the volume.
        machine: that was measured.
        results: one for each size.
        exponent: b of seconds = a * voxels^b, fitted; 1 is proportional. None for a single size.
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
    base: Triple, factors: Sequence[int], axis: int, options: Sequence[str], *, folder: Path, say: Say
) -> ScaleBenchmark:
    """Run volumes of growing size, one after the other.

    Args:
        base: (z, y, x) of the smallest.
        factors: how many times as large the volumes are.
        axis: along which they grow.
        options: of fgnet-run, beside the volume and the output.
        folder: for volumes and outputs, which are deleted.
        say: told how far it is.

    Raises:
        BackendError: a run failed.
    """
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    machine = describe_machine()
    say("making synthetic neuropil")
    tissue = make_neuropil(NeuropilOptions(_TISSUE, _VOXEL_NM)).raw
    rows, records = [], []
    for factor in factors:
        shape = (*base[:axis], base[axis] * factor, *base[axis + 1 :])
        with tempfile.TemporaryDirectory(dir=folder, prefix="fgnet-scale-") as place:
            volume, output = Path(place) / "gray.zarr", Path(place) / "affinities.zarr"
            write_volume(volume, (shape[0], shape[1], shape[2]), tissue)
            say(f"{' x '.join(map(str, shape))}: running")
            row, record = _run(volume, output, factor, (shape[0], shape[1], shape[2]), options)
        say(f"{' x '.join(map(str, shape))}: {row.seconds:.0f} s")
        rows.append(row)
        records.append(record)
    network = records[0]["identity"]
    return ScaleBenchmark(
        network["model"],
        network["backend"],
        network["precision"],
        ["fgnet-run", "VOLUME", *options],
        machine,
        tuple(rows),
        fitted_exponent([row.voxels for row in rows], [row.seconds for row in rows]),
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


def _run(
    volume: Path, output: Path, factor: int, shape: Triple, options: Sequence[str]
) -> tuple[ScaleRow, dict[str, Any]]:
    command = [sys.executable, "-m", "fgnet.cli.run", str(volume), "-o", str(output), *options]
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
        voxels=voxels,
        seconds=round(seconds, 2),
        affinities_seconds=affinities,
        voxels_per_second=round(voxels / affinities),
        blocks=streaming["blocks"],
        block_voxels_per_second=round(step * streaming["blocks"] / streaming["seconds"]),
        peak_memory_bytes=streaming["peak_memory_bytes"],
        bottleneck=streaming["bottleneck"],
        resources={name: told["busy_share"] for name, told in streaming["resources"].items()},
    )
    return row, record
