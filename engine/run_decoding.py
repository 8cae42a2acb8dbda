"""The segmentation of a run: by waterz, with the whole region in memory, or block by block from the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_decoder import BlockPlan, BlockwiseOptions, decode_blockwise
from fgnet.postproc.sidecar import PLAN
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.output_store import explained


def decode_whole(
    affinities: MultiscaleWriter,
    segmentation: MultiscaleWriter,
    *,
    threshold: float,
    options: WaterzOptions,
    min_size: int,
) -> int:
    """Decode by waterz, in memory; see `fgnet.postproc.waterz_decoder`.

    Args:
        affinities: (3, z, y, x) uint8.
        segmentation: (z, y, x) uint64 to be written.
        threshold: score, 0 to 1.
        options: how waterz makes fragments and scores contacts.
        min_size: voxels below which a segment becomes background.

    Returns:
        How many segments there are.

    Raises:
        DecodingError, OutputError: as said there.
    """
    (labels,) = decode_waterz(affinities.read(Box.from_shape(affinities.shape[-3:])), [threshold], options)
    if min_size > 1:
        labels = remove_small(labels, min_size)
    labels = compact_ids(labels)
    segmentation.write(Box.from_shape(labels.shape), labels)
    return int(labels.max())


def decode_blocks(
    affinities: MultiscaleWriter,
    segmentation: MultiscaleWriter,
    options: BlockwiseOptions,
    *,
    folder: Path,
    identity: dict[str, Any],
    workers: int | None = None,
) -> int:
    """Decode block by block; see `fgnet.postproc.blockwise_decoder`.

    What a kill has left in the folder is gone on with, unless it is of other affinities or options.

    Args:
        affinities: (3, z, y, x) uint8.
        segmentation: (z, y, x) uint64 to be written; its chunks divide the blocks.
        options: of the decoder, with one threshold.
        folder: for intermediate results.
        identity: what the affinities depend on.
        workers: threads; all cores by default.

    Returns:
        How many segments there are.

    Raises:
        DecodingError, OutputError: as said there.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    source, sink = _Stored(affinities), _Counted(segmentation)
    described = BlockPlan(source.shape, options).describe(digest)
    with explained(folder):
        if folder.exists() and not ((folder / PLAN).is_file() and (folder / PLAN).read_text() == described):
            shutil.rmtree(folder)
    decode_blockwise(
        source,
        [sink],
        options,
        folder=folder,
        identity=digest,
        workers=workers or len(os.sched_getaffinity(0)),
    )
    return sink.highest


@dataclass(frozen=True, eq=False)
class _Stored:
    """Affinities that were written, as a source."""

    writer: MultiscaleWriter

    @property
    def shape(self) -> Triple:
        return as_triple(self.writer.shape[-3:], "shape")

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        return np.asarray(self.writer.read(box), np.uint8)


class _Counted:
    """A segmentation as a sink that remembers its highest id; ids are 1, 2, 3, ..."""

    def __init__(self, writer: MultiscaleWriter) -> None:
        self._writer, self._lock = writer, threading.Lock()
        self.highest = 0

    def __call__(self, box: Box, labels: npt.NDArray[np.uint64]) -> None:
        self._writer.write(box, labels)
        with self._lock:
            self.highest = max(self.highest, int(labels.max()))
