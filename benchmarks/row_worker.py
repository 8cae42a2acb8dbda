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

from fgnet.benchmarks.kept_memory import keep_memory
from fgnet.benchmarks.rows import Row
from fgnet.benchmarks.tissue import sections_at
from fgnet.engine.backends import Choice, open_runner
from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest
from fgnet.engine.columns import Column
from fgnet.engine.process_memory import peak_memory
from fgnet.engine.torch_runner import Device, EagerNetwork, TorchRunner
from fgnet.volumes.errors import FGNetError

Step = Callable[[int], npt.NDArray[Any]]
"""First section of a block -> affinities, in host memory when it returns."""

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
    if row.keeps_memory:
        keep_memory()
    gray: npt.NDArray[np.uint8] = np.load(order["gray"])
    path = Path(order["bundle"])
    # Who gave the order has checked the files against their hashes.
    bundle = Bundle(path, BundleManifest.from_json((path / MANIFEST).read_text(encoding="utf-8"), path))
    began = time.perf_counter()
    runner = open_runner(
        Choice(row.backend, row.precision, row.device, "measured"),
        bundle,
        _build,
        threads=order["threads"],
    )
    opened = time.perf_counter()
    step: Step
    if row.whole:
        assert isinstance(runner, TorchRunner)  # noqa: S101 - only PyTorch's rows are whole
        infer = runner.run

        def step(start: int) -> npt.NDArray[np.float32]:
            return infer(sections_at(gray, start, bundle.manifest.patch[0]))

    else:
        step = Column(runner, _SECTIONS, partial(sections_at, gray)).affinities
    column = _Ring(step, bundle.manifest.stride[0])
    warm_up = column.run(_WARM_UP[row.device])
    affinities = column.affinities
    if affinities.dtype != np.uint8:
        affinities = np.rint(affinities * 255).astype(np.uint8)
    np.save(order["affinities"], affinities)
    told = runner.describe()
    return column.window, {
        **{key: told.get(key) for key in ("version", "device", "threads")},
        "open_seconds": opened - began,
        "warm_up_seconds": warm_up,
    }


class _Ring:
    """A column of blocks without end, over sections that come again and again.

    Args:
        step: what is timed.
        stride: sections between blocks.
    """

    def __init__(self, step: Step, stride: int) -> None:
        self._step, self._stride = step, stride
        self._done = 0
        self._block_seconds = 0.0
        self.affinities: npt.NDArray[Any] = np.zeros(0)

    def run(self, blocks: int) -> float:
        """Seconds of the next blocks."""
        first, seconds = self._done, 0.0
        for start in range(first * self._stride, (first + blocks) * self._stride, self._stride):
            began = time.perf_counter()
            self.affinities = self._step(start)
            self._block_seconds = time.perf_counter() - began
            seconds += self._block_seconds
        self._done += blocks
        return seconds

    def window(self, blocks: int) -> dict[str, Any]:
        """Seconds of `blocks` blocks, once around the ring or, where that is too short to be timed, several times."""
        # Caches are cold and clocks low after a rest, which says nothing about a long run.
        self.run(int(_WAKE_SECONDS / self._block_seconds))
        rounds = max(1, math.ceil(_WINDOW_SECONDS / (blocks * self._block_seconds)))
        faults = _page_faults()
        seconds = self.run(rounds * blocks)
        return {"seconds": seconds / rounds, "page_faults": (_page_faults() - faults) / rounds}


def _build(bundle: Bundle) -> EagerNetwork:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(bundle.checkpoint).build()


def _page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
