"""A process that decodes a volume: `python -m fgnet.benchmarks.decode_worker`, order on stdin, figures on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.engine.process_memory import peak_memory
from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    ArraySink,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
    fitting_block,
)
from fgnet.postproc.watershed import WatershedOptions
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz
from fgnet.volumes.geometry import Box, as_triple
from fgnet.volumes.kept_memory import give_memory_back, keep_memory
from fgnet.volumes.writing import CHUNKS


def main() -> None:
    """Take the order, warm up, decode."""
    order = json.load(sys.stdin)
    # As fgnet-run does.
    keep_memory()
    if order["decoder"] == "waterz":
        give_memory_back()
    decode = _waterz if order["decoder"] == "waterz" else _blockwise
    # What is compiled, is compiled before the clock starts.
    tiny = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16), dtype=np.uint8)
    decode_array(tiny, BlockwiseOptions(block=(4, 8, 8), watershed=WatershedOptions(flow=order["fragments"])))
    list(decode_waterz(tiny, [0.5], WaterzOptions(fragments=order["fragments"], scoring="mean")))
    began = time.perf_counter()
    segments = decode(order)
    seconds = time.perf_counter() - began
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_memory_bytes": peak_memory(), "segments": segments}) + "\n")


def _waterz(order: dict[str, Any]) -> int:
    affinities = zarr.open_array(order["affinities"], mode="r")
    options = WaterzOptions(fragments=order["fragments"], scoring="mean")
    (labels,) = decode_waterz(np.asarray(affinities[:]), [order["threshold"]], options)
    labels = compact_ids(labels)
    _create(order, affinities.shape[1:])[:] = labels
    return int(labels.max())


def _blockwise(order: dict[str, Any]) -> int:
    affinities = zarr.open_array(order["affinities"], mode="r")
    labels = _create(order, affinities.shape[1:])
    flow = WatershedOptions(flow=order["fragments"])
    # With blocks of fgnet-run's size.
    block = fitting_block(as_triple(affinities.shape[1:], "shape"), flow)
    options = BlockwiseOptions((order["threshold"],), block=block, watershed=flow)
    # On the disk of the volumes, as fgnet-run does it, and not where temporary files may lie in memory.
    folder = Path(order["output"] + ".decoding")
    sink = _Counted(labels)
    decode_blockwise(ArrayAffinities(affinities), [sink], options, folder=folder, workers=order["workers"])
    shutil.rmtree(folder)
    return sink.highest


class _Counted:
    """A sink that remembers the highest id; workers share it."""

    def __init__(self, array: Any) -> None:
        self._sink, self._lock, self.highest = ArraySink(array), threading.Lock(), 0

    def __call__(self, box: Box, labels: npt.NDArray[np.uint64]) -> None:
        self._sink(box, labels)
        with self._lock:
            self.highest = max(self.highest, int(labels.max()))


def _create(order: dict[str, Any], shape: tuple[int, ...]) -> Any:
    chunks = tuple(min(pair) for pair in zip(CHUNKS, shape, strict=True))
    return zarr.create_array(order["output"], shape=shape, chunks=chunks, dtype="uint64")


if __name__ == "__main__":
    main()
