"""One way from volume to segmentation, gone once, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fgnet.benchmarks.pipeline_ways import Way
from fgnet.benchmarks.row_process import how_it_ended
from fgnet.engine.bundle import Bundle
from fgnet.engine.run_record import record_path
from fgnet.engine.torch_runner import Device
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.errors import BackendError

START = "start"
"""The stage of all that no other one is: interpreter and imports, opening the network, ending the process."""


@dataclass(frozen=True)
class Decoding:
    """How PyTorch's ways decode by waterz.

    Attributes:
        threshold: of the agglomeration, 0 to 1.
        options: how fragments are made and contacts scored.
        min_size: voxels below which a segment becomes background.
    """

    threshold: float
    options: WaterzOptions
    min_size: int = 0

    @classmethod
    def advised(cls, bundle: Bundle) -> Decoding:
        """What the bundle recommends."""
        held = bundle.manifest.decoding
        options = WaterzOptions(fragments=held.fragments, scoring=held.scoring, quantile=held.quantile)  # type: ignore[arg-type]
        return cls(held.threshold, options)

    @classmethod
    def of_run(cls, told: dict[str, Any], bundle: Bundle) -> Decoding:
        """What a run of fgnet-run did, if it decoded by waterz; else what the bundle recommends.

        Args:
            told: "decoding" of its record.
            bundle: the model.
        """
        if told["decoder"] != "waterz":
            return cls.advised(bundle)
        options = {option.name: told[option.name] for option in fields(WaterzOptions)}
        return cls(told["threshold"], WaterzOptions(**options), told["min_size"])


@dataclass(frozen=True)
class Task:
    """What every way is given.

    Attributes:
        bundle: the model.
        volume: address of gray.
        device: that PyTorch runs on.
        decoding: of PyTorch's ways.
        device_asked: whether fgnet-run is told the device too; else it chooses.
        threads: of one call on the CPU; each way's own choice by default.
    """

    bundle: Bundle
    volume: str
    device: Device
    decoding: Decoding
    device_asked: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Measured:
    """What going a way once took, and what it gave.

    Attributes:
        seconds: from the start of its process to its end.
        stages: seconds of each, one after the other; they add up to `seconds`.
        busy: seconds that each part of an overlapping stage worked; they overlap and add up to nothing.
        peak_memory_bytes: of the process; None where the system does not tell.
        segments: that were found.
        runner: backend, precision, device and threads.
        decoding: as fgnet-run records it; empty for PyTorch's ways, which are told.
    """

    seconds: float
    stages: dict[str, float]
    busy: dict[str, float]
    peak_memory_bytes: int | None
    segments: int
    runner: dict[str, Any]
    decoding: dict[str, Any] = field(default_factory=dict)


def run_way(way: Way, task: Task, output: Path) -> Measured:
    """Go a way from the volume to a segmentation, which takes the place of an earlier one.

    Args:
        way: to be gone.
        task: what is given.
        output: zarr store to make, in a folder of this benchmark.

    Raises:
        BackendError: it failed.
    """
    if output.exists():
        shutil.rmtree(output)
    return _fgnet_run(way, task, output) if way.kind == "fgnet-run" else _pytorch(way, task, output)


def _pytorch(way: Way, task: Task, output: Path) -> Measured:
    figures = output.with_name(output.name + ".figures.json")
    order = {
        "kind": way.kind,
        "keeps_memory": way.keeps_memory,
        "bundle": str(task.bundle.path),
        "volume": task.volume,
        "output": str(output),
        "figures": str(figures),
        "device": task.device,
        "threads": task.threads,
        "threshold": task.decoding.threshold,
        "waterz": asdict(task.decoding.options),
        "min_size": task.decoding.min_size,
    }
    seconds = _timed(way, [sys.executable, "-m", "fgnet.benchmarks.pipeline_worker"], json.dumps(order))
    told = json.loads(figures.read_text(encoding="utf-8"))
    runner = {key: told[key] for key in ("backend", "precision", "device", "threads")}
    stages = _stages(seconds, told["stages"])
    return Measured(seconds, stages, {}, told["peak_memory_bytes"], told["segments"], runner)


def _fgnet_run(way: Way, task: Task, output: Path) -> Measured:
    command = [sys.executable, "-m", "fgnet.cli.run", task.volume, "-o", str(output)]
    command += ["--model", str(task.bundle.path), *way.options]
    if task.device_asked:
        command += ["--device", task.device]
    if task.threads is not None:
        command += ["--threads", str(task.threads)]
    seconds = _timed(way, command, "")
    record: dict[str, Any] = json.loads(record_path(output).read_text(encoding="utf-8"))
    streaming, runner = record["streaming"], record["runner"]
    return Measured(
        seconds=seconds,
        stages=_stages(seconds, record["stages"]),
        busy={name: told["busy_seconds"] for name, told in streaming["stages"].items()},
        peak_memory_bytes=streaming["peak_memory_bytes"],
        segments=record["segments"],
        runner={key: runner.get(key) for key in ("backend", "precision", "device", "threads")},
        decoding=record["decoding"],
    )


def _timed(way: Way, command: Sequence[str], order: str) -> float:
    """Seconds of a process from its start to its end."""
    # What is told to the allocator from outside would be told to every row.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    began = time.perf_counter()
    done = subprocess.run(command, input=order, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        told = done.stderr.strip().rpartition("\n")[2]
        refused = told.removeprefix("error: ") if told.startswith("error: ") else None
        raise BackendError(refused or how_it_ended(done.returncode, done.stderr), where=way.name)
    return seconds


def _stages(seconds: float, told: dict[str, float]) -> dict[str, float]:
    """What a process told of its stages, with the rest of its seconds before them."""
    return {START: max(0.0, seconds - sum(told.values())), **told}
