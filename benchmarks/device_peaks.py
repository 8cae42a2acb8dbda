"""The most that a device does: operations a second of a matrix product, and bytes a second of a copy, both measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fgnet.benchmarks.machine import usable_cores
from fgnet.engine.bundle import Precision
from fgnet.engine.torch_runner import Device
from fgnet.volumes.errors import BackendError

# Of the libraries that a matrix product may come from.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class DevicePeaks:
    """What was measured.

    Attributes:
        device: "cpu" or "cuda".
        threads: that were used; None on a GPU.
        flops_per_second: of a product of square matrices, by precision; two operations for each multiply-add.
        bytes_per_second: of a copy within the device's memory, read and written.
        missing: why a precision has no figure.
    """

    device: Device
    threads: int | None
    flops_per_second: dict[str, float]
    bytes_per_second: float
    missing: dict[str, str]

    def or_better(self, again: DevicePeaks) -> DevicePeaks:
        """The most of this and of another measurement of the same device: what else it does only lowers a peak."""
        flops = {name: max(peak, again.flops_per_second.get(name, 0)) for name, peak in self.flops_per_second.items()}
        moved = max(self.bytes_per_second, again.bytes_per_second)
        return replace(self, flops_per_second=flops, bytes_per_second=moved)


def measure_peaks(device: Device, precisions: Sequence[Precision], threads: int | None = None) -> DevicePeaks:
    """Measure a device, for about half a second each precision.

    Args:
        device: which.
        precisions: of the products.
        threads: on the CPU; as many as there are cores by default.

    Raises:
        BackendError: the device could not be measured.
    """
    used = threads or usable_cores()
    done = subprocess.run(
        [sys.executable, "-m", "fgnet.benchmarks.peak_worker"],
        input=json.dumps({"device": device, "precisions": list(precisions), "threads": used}),
        env={**os.environ, **dict.fromkeys(_THREADS, str(used))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise BackendError(told[-1] if told else f"exit code {done.returncode}", where="peaks of the device")
    found = json.loads(done.stdout)
    return DevicePeaks(device, used if device == "cpu" else None, found["operations"], found["bytes"], found["missing"])
