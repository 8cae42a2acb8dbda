"""run.json: what a run was, what it did and how long each stage took, beside its output."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.engine.device import Stage
from fgnet.engine.process_memory import peak_memory
from fgnet.engine.streaming import StreamState
from fgnet.volumes.output_store import explained

_PACKAGES = ("fgnet", "numpy", "numba", "zarr", "waterz")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")

RESOURCES: dict[str, tuple[Stage, ...]] = {
    "reading": ("read",),
    "copying": ("upload",),
    "the network": ("encode", "decode"),
    "blending": ("blend", "normalise", "download"),
    "writing": ("write",),
}
"""What works beside each other, and the stages that each of them does in turn."""

# From here on, more of a resource would have made the run faster.
_BUSY = 0.8


def record_path(output: Path) -> Path:
    """Where the record of an output lies."""
    return output.with_name(output.name + ".run.json")


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write a record, all of it or nothing.

    Raises:
        OutputError: the disk does not take it.
    """
    path = record_path(output)
    with explained(path):
        write_atomically(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_record(output: Path) -> dict[str, Any] | None:
    """The record of an output; None where there is none that can be read."""
    try:
        record = json.loads(record_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def surroundings() -> dict[str, Any]:
    """The machine and the versions of what a run's speed and result depend on."""
    versions = {}
    for package in _PACKAGES + _RUNTIMES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"system": platform.platform(), "cores": len(os.sched_getaffinity(0))},
    }


def streaming_figures(state: StreamState) -> dict[str, Any]:
    """Times, queues and memory of the streaming of affinities, as plain data."""
    wall = max(state.seconds, 1e-9)
    return {
        "blocks": state.blocks,
        "blocks_without_tissue": state.skipped,
        "seconds": round(state.seconds, 3),
        "stages": {
            stage: {"busy_seconds": round(busy, 3), "busy_share": round(busy / wall, 4)}
            for stage, busy in state.busy.items()
        },
        "resources": {
            name: {"busy_share": round(share, 4), "waiting_seconds": round(wall * (1 - min(share, 1)), 3)}
            for name, share in utilisation(state).items()
        },
        "queues": {
            name: {"mean": round(total / max(times, 1), 2), "most": longest}
            for name, (total, times, longest) in state.queues.items()
        },
        "bottleneck": bottleneck(state),
        "peak_memory_bytes": peak_memory(),
    }


def utilisation(state: StreamState) -> dict[str, float]:
    """Share of the time that each resource worked, 0 to 1."""
    wall = max(state.seconds, 1e-9)
    return {name: sum(state.busy.get(stage, 0.0) for stage in stages) / wall for name, stages in RESOURCES.items()}


def bottleneck(state: StreamState) -> str:
    """What held the run up, in one sentence."""
    shares = utilisation(state)
    first, *others = sorted(shares, key=lambda name: -shares[name])
    rest = ", ".join(f"{name} {shares[name]:.0%}" for name in others)
    if shares[first] >= _BUSY:
        return f"{first} was the bottleneck, busy {shares[first]:.0%} of the time ({rest})"
    return f"nothing was busy all the time: {first} {shares[first]:.0%}, {rest}"
