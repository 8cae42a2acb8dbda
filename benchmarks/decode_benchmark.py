"""How fast are affinities decoded, from disk to disk? waterz next to the blockwise decoder, a process for each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.benchmarks.machine import Machine, describe_machine
from fgnet.benchmarks.result_file import times_waterz
from fgnet.benchmarks.scale_benchmark import there_and_back
from fgnet.volumes.errors import BackendError, DecodingError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.writing import CHUNKS

Say = Callable[[str], None]
Fragments = Literal["affinity", "sections"]


@dataclass(frozen=True)
class DecodeRow:
    """One decoder on one volume.

    Attributes:
        name: of the row.
        decoder: "waterz" or "blockwise".
        fragments: "affinity" or "sections".
        values: "uint8", or "float32": the same, each moved by a random part of a level.
        workers: blocks that are decoded at a time; 1 for waterz.
        shape: (z, y, x) voxels.
        seconds: from the affinities' first byte read to the last label written; the median of the repeats.
        all_seconds: of every repeat.
        voxels_per_second: from `seconds`.
        ratio: how many times as fast as waterz on uint8, of the same volume and fragments; None where that was not run.
        peak_memory_bytes: of the process, all of its workers together.
        segments: that were found.
    """

    name: str
    decoder: str
    fragments: Fragments
    values: str
    workers: int
    shape: Triple
    seconds: float
    all_seconds: tuple[float, ...]
    voxels_per_second: float
    ratio: float | None
    peak_memory_bytes: int | None
    segments: int


@dataclass(frozen=True)
class DecodeBenchmark:
    """All rows.

    Attributes:
        affinities: what was decoded, in words.
        threshold: of the agglomeration.
        machine: that was measured.
        results: by volume, in the order of `rows_for`.
        ratio: of the fastest blockwise row over waterz on uint8 with the same kind of fragments, of the largest volume
            that both decoded; by fragments.
    """

    affinities: str
    threshold: float
    machine: Machine
    results: tuple[DecodeRow, ...]
    ratio: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class DecodeOptions:
    """What is measured.

    Attributes:
        shapes: (z, y, x) of the volumes.
        fragments: kinds to make.
        workers: numbers of workers of the blockwise decoder.
        threshold: of the agglomeration, 0 to 1.
        repeats: of every row.
        waterz: most voxels of a volume that waterz is run on; it needs some 50 bytes of memory for each.
    """

    shapes: Sequence[Triple]
    fragments: Sequence[Fragments] = ("affinity", "sections")
    workers: Sequence[int] = (1, 2)
    threshold: float = 0.8
    repeats: int = 3
    waterz: int = 2**27

    def __post_init__(self) -> None:
        if not self.shapes or min(min(shape) for shape in self.shapes) < 1:
            raise DecodingError(f"they are {self.shapes}", where="--shapes", remedy="give volumes of 1 voxel or more")
        if not self.workers or min(self.workers) < 1:
            raise DecodingError(f"they are {self.workers}", where="--workers", remedy="give at least 1")
        if not 0 <= self.threshold <= 1:
            raise DecodingError(f"it is {self.threshold}", where="--threshold", remedy="give a score from 0 to 1")


@dataclass
class _Order:
    """One row to be measured, and what was."""

    decoder: str
    fragments: Fragments
    values: str
    workers: int
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    segments: int = 0

    @property
    def name(self) -> str:
        if self.decoder == "waterz":
            return f"waterz, {self.fragments}, {self.values}"
        return f"blockwise, {self.fragments}, {self.workers} worker{'s' * (self.workers > 1)}"


def rows_for(options: DecodeOptions, shape: Triple) -> list[tuple[str, Fragments, str, int]]:
    """Decoder, fragments, values and workers of each row of a volume; the reference, waterz on uint8, comes first."""
    rows: list[tuple[str, Fragments, str, int]] = []
    for fragments in options.fragments:
        if int(np.prod(shape)) <= options.waterz:
            rows += [("waterz", fragments, values, 1) for values in ("uint8", "float32")]
        rows += [("blockwise", fragments, "uint8", workers) for workers in options.workers]
    return rows


def measure_decoders(
    tissue: npt.NDArray[np.uint8], options: DecodeOptions, *, source: str, folder: Path, say: Say
) -> DecodeBenchmark:
    """Decode volumes that are made of a piece of affinities, mirrored at its borders.

    Each row is run in turn, then all of them again: what slows the machine for a while slows all.

    Args:
        tissue: (3, z, y, x) uint8.
        options: what to measure.
        source: where the affinities are from, in words.
        folder: for volumes and outputs, which are deleted.
        say: told how far it is.

    Raises:
        BackendError: a decoder failed.
    """
    machine = describe_machine()
    results: list[DecodeRow] = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(dir=folder, prefix="fgnet-decode-") as place:
            results += _measure_volume(tissue, options, shape, Path(place), say)
    return DecodeBenchmark(source, options.threshold, machine, tuple(results), _ratios(results))


def write_affinities(path: Path, shape: Triple, tissue: npt.NDArray[np.uint8], values: str) -> None:
    """Write affinities of any size, made of a piece that is mirrored, one layer of chunks after the other.

    Mirrored, a face would lie on the other side of its voxel; for how long decoding takes that does not matter.
    """
    chunks = tuple(min(pair) for pair in zip(CHUNKS, shape, strict=True))
    dtype = "uint8" if values == "uint8" else "float32"
    array = zarr.create_array(str(path), shape=(3, *shape), chunks=(3, *chunks), dtype=dtype)
    rng = np.random.default_rng(0)
    z, y, x = (there_and_back(extent, side) for extent, side in zip(shape, tissue.shape[1:], strict=True))
    for first in range(0, shape[0], CHUNKS[0]):
        layer = tissue[:, z[first : first + CHUNKS[0]]][:, :, y][..., x]
        if values == "float32":
            moved = layer + rng.uniform(-0.5, 0.5, layer.shape).astype(np.float32)
            layer = np.clip(moved / np.float32(255), 0, 1)
        array[:, first : first + layer.shape[1]] = layer


def _measure_volume(
    tissue: npt.NDArray[np.uint8], options: DecodeOptions, shape: Triple, place: Path, say: Say
) -> list[DecodeRow]:
    name = " x ".join(map(str, shape))
    orders = [_Order(*row) for row in rows_for(options, shape)]
    for values in {order.values for order in orders}:
        say(f"{name}: writing {values} affinities")
        write_affinities(place / values, shape, tissue, values)
    for repeat in range(options.repeats):
        for order in orders:
            _run(order, options, place)
            say(f"{name}: {order.name}: {order.seconds[-1]:.1f} s ({repeat + 1} of {options.repeats})")
    voxels = int(np.prod(shape))
    median = [float(np.median(order.seconds)) for order in orders]
    rows = [
        DecodeRow(
            name=order.name,
            decoder=order.decoder,
            fragments=order.fragments,
            values=order.values,
            workers=order.workers,
            shape=shape,
            seconds=round(seconds, 3),
            all_seconds=tuple(order.seconds),
            voxels_per_second=round(voxels / seconds),
            ratio=None,
            peak_memory_bytes=order.peak,
            segments=order.segments,
        )
        for order, seconds in zip(orders, median, strict=True)
    ]
    plain = [asdict(row) for row in rows]
    return [replace(row, ratio=times_waterz(plain, data)) for row, data in zip(rows, plain, strict=True)]


def _run(order: _Order, options: DecodeOptions, place: Path) -> None:
    content = {
        "decoder": order.decoder,
        "fragments": order.fragments,
        "affinities": str(place / order.values),
        "output": str(place / "labels"),
        "threshold": options.threshold,
        "workers": order.workers,
    }
    done = subprocess.run(
        [sys.executable, "-m", "fgnet.benchmarks.decode_worker"],
        input=json.dumps(content),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise BackendError(told[-1] if told else f"exit code {done.returncode}", where=order.name)
    shutil.rmtree(place / "labels")
    told = json.loads(done.stdout)
    order.seconds.append(round(told["seconds"], 3))
    order.peak = max(order.peak or 0, told["peak_memory_bytes"] or 0) or None
    order.segments = told["segments"]


def _ratios(results: Sequence[DecodeRow]) -> dict[str, float]:
    """By fragments: waterz on uint8 over the fastest blockwise row of the largest volume that waterz decoded."""
    ratios: dict[str, float] = {}
    for fragments in dict.fromkeys(row.fragments for row in results):
        rows = [row for row in results if row.fragments == fragments]
        theirs = [row for row in rows if row.decoder == "waterz" and row.values == "uint8"]
        if theirs:
            reference = max(theirs, key=lambda row: Box.from_shape(row.shape).size)
            ours = [row.seconds for row in rows if row.decoder == "blockwise" and row.shape == reference.shape]
            ratios[fragments] = round(reference.seconds / min(ours), 3)
    return ratios
