"""The process that one row runs in: opens its backend, warms up, then times a window of blocks whenever it is told to.

Orders come as lines of JSON on stdin, replies go as lines of JSON to stdout. Between orders it waits for stdin. The end
of stdin ends it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.benchmarks.energy import EnergyCounter, energy_counter
from fgnet.benchmarks.rows import Row
from fgnet.benchmarks.tissue import sections_at
from fgnet.engine.backends import Choice, open_runner
from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest
from fgnet.engine.columns import Column
from fgnet.engine.process_memory import peak_memory
from fgnet.engine.runner import Runner
from fgnet.engine.torch_runner import Device, EagerNetwork, TorchRunner
from fgnet.volumes.errors import BackendError, FGNetError
from fgnet.volumes.kept_memory import keep_memory

Step = Callable[[int], npt.NDArray[Any]]
"""First section of a call's first block -> affinities of its blocks, in host memory when it returns."""

# The ring has no end; a column has one.
_SECTIONS = 2**40

# The first block of a column encodes all of its sections, the next ones only what is new. On a GPU a call is recorded
# when it is seen for the second time, and replayed after that.
_WARM_UP: dict[Device, int] = {"cpu": 3, "cuda": 8}

_WAKE_SECONDS = 0.2
_WINDOW_SECONDS = 0.5


def main() -> None:
    """Serve orders until stdin ends."""
    # Libraries print what they like on stdout: from here on it is stderr, and replies go where stdout was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        for reply in _serve(sys.stdin):
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def _serve(orders: Iterable[str]) -> Iterable[dict[str, Any]]:
    window: Callable[[int], dict[str, Any]] | None = None
    for line in orders:
        order = json.loads(line)
        try:
            if window is None:
                window, reply = _open(order)
            else:
                reply = window(order["blocks"])
        except FGNetError as error:
            reply = {"error": str(error)}
        except Exception as error:  # a backend raises whatever it likes; the benchmark goes on without this row
            told = str(error).strip().splitlines()
            reply = {"error": f"{type(error).__name__}: {told[0] if told else 'no message'}"}
        yield {**reply, "peak_memory_bytes": peak_memory()}


def _open(order: dict[str, Any]) -> tuple[Callable[[int], dict[str, Any]], dict[str, Any]]:
    """Make ready what an order names, and run its first blocks.

    Returns:
        What times the next blocks, and what to tell of the runner.
    """
    row = Row(**order["row"])
    if not row.whole:
        # As fgnet-run does, where the C library can be told to.
        keep_memory()
    elif row.keeps_memory and not keep_memory():
        raise BackendError("this system's C library cannot be told to keep memory", where="mallopt")
    gray: npt.NDArray[np.uint8] = np.load(order["gray"])
    path = Path(order["bundle"])
    # Who gave the order has checked the files against their hashes.
    bundle = Bundle(path, BundleManifest.from_json((path / MANIFEST).read_text(encoding="utf-8"), path))
    began = time.perf_counter()
    runner, step = _open_step(row, bundle, gray, order["threads"])
    opened = time.perf_counter()
    counter = energy_counter(row.device)
    ring = _Ring(step, bundle.manifest.stride[0], row.batch, counter)
    # Every row tells the affinities of the same block, whatever its batch.
    last = _WARM_UP[row.device] - 1
    warm_up = ring.run(last // row.batch + 1)
    affinities = ring.affinities[last % row.batch]
    if affinities.dtype != np.uint8:
        affinities = np.rint(affinities * 255).astype(np.uint8)
    np.save(order["affinities"], affinities)
    told = runner.describe()
    return ring.window, {
        **{key: told.get(key) for key in ("version", "device", "threads")},
        "open_seconds": opened - began,
        "warm_up_seconds": warm_up,
        "energy": {"source": counter.source, "reason": counter.reason},
    }


def _open_step(
    row: Row, bundle: Bundle, gray: npt.NDArray[np.uint8], threads: int | None
) -> tuple[TorchRunner | Runner, Step]:
    """A row's runner, and what is timed of it."""
    depth, stride = bundle.manifest.patch[0], bundle.manifest.stride[0]
    if not row.whole:
        choice = Choice(row.backend, row.precision, row.device, "measured")
        runner = open_runner(choice, bundle, _build, threads=threads)
        column = Column(runner, _SECTIONS, partial(sections_at, gray))
        return runner, lambda start: column.affinities(start)[None]
    whole = TorchRunner(
        _build(bundle),
        bundle.manifest.patch,
        compiled=row.mode or row.backend == "torch-compile",
        precision=row.precision,
        device=row.device,
        threads=threads,
    )

    def step(start: int) -> npt.NDArray[np.float32]:
        blocks = [sections_at(gray, start + index * stride, depth) for index in range(row.batch)]
        return whole.run_batch(np.stack(blocks))

    return whole, step


class _Ring:
    """A column of blocks without end, over sections that come again and again.

    Args:
        step: what is timed.
        stride: sections between blocks.
        batch: blocks of one step.
        counter: of energy.
    """

    def __init__(self, step: Step, stride: int, batch: int, counter: EnergyCounter) -> None:
        self._step, self._stride, self._batch, self._counter = step, stride, batch, counter
        self._done = 0
        self._step_seconds = 0.0
        self.affinities: npt.NDArray[Any] = np.zeros(0)

    def run(self, steps: int) -> float:
        """Seconds of the next steps."""
        seconds = 0.0
        for number in range(self._done, self._done + steps):
            began = time.perf_counter()
            self.affinities = self._step(number * self._batch * self._stride)
            self._step_seconds = time.perf_counter() - began
            seconds += self._step_seconds
        self._done += steps
        return seconds

    def window(self, blocks: int) -> dict[str, Any]:
        """Seconds of `blocks` blocks, once around the ring or, where that is too short to be timed, several times."""
        # Caches are cold and clocks low after a rest, which says nothing about a long run.
        self.run(int(_WAKE_SECONDS / self._step_seconds))
        around = math.ceil(blocks / self._batch)
        steps = around * max(1, math.ceil(_WINDOW_SECONDS / (around * self._step_seconds)))
        faults, joules = _page_faults(), self._counter.read()
        seconds = self.run(steps)
        used = self._counter.used(joules, self._counter.read())
        share = blocks / (steps * self._batch)
        return {
            "seconds": seconds * share,
            "page_faults": (_page_faults() - faults) * share,
            "joules": None if used is None else used * share,
        }


def _build(bundle: Bundle) -> EagerNetwork:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(bundle.checkpoint).build()


def _page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
