"""What does waterz, the reference of the field, make of the affinities of a whole volume?"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import fastremap
import numpy as np
import numpy.typing as npt
import waterz

from fgnet.postproc.affinity_values import require_affinities
from fgnet.postproc.fragments import section_fragments
from fgnet.postproc.tissue import links_within, require_tissue
from fgnet.volumes.errors import DecodingError

PREBUILT_QUANTILES = tuple(range(10, 100, 5))
"""Quantiles, in percent, that waterz >= 0.10.1 ships compiled; any other would need a compiler at run time."""

# waterz writes to standard output at the level of the process: one call at a time may divert it.
_STDOUT = threading.Lock()


@dataclass(frozen=True)
class WaterzOptions:
    """How waterz makes fragments and scores their contacts; every combination is compiled into its wheels.

    Attributes:
        fragments: "sections" floods each section (see `fragments.section_fragments`); "affinity" is waterz's own
            watershed of the three-dimensional affinity graph, which leaves voxels without affinity background. It
            breaks noisy affinities into very many fragments, which takes tens of times longer to agglomerate.
        scoring: affinity of a contact: a "quantile" of a 256-bin histogram, or the "mean" over its faces.
        quantile: the quantile in percent, one of PREBUILT_QUANTILES; not read for the mean.
        init_with_max: the histogram of a contact starts with one count at the highest bin among its faces instead of
            one count per face (waterz's InitWithMax, its default). The quantile is then taken over the initial
            contacts that were joined into one, each weighing the same however large it is. Not read for the mean.
        discretize_queue: bins of the merge queue; contacts within a bin merge in the order in which they were queued.
            0 is an exact queue.
        aff_threshold_low: affinities below are cut. Acts only where waterz makes the fragments ("affinity").
        aff_threshold_high: affinities from here on are joined at once. Acts only where waterz makes the fragments.
        mask_threshold: mean in-plane affinity below which a voxel is background; None fills every voxel. Acts only
            on "sections".

    Raises:
        DecodingError: if an option has a value that waterz cannot take without a compiler.
    """

    fragments: Literal["sections", "affinity"] = "sections"
    scoring: Literal["quantile", "mean"] = "quantile"
    quantile: int = 50
    init_with_max: bool = True
    discretize_queue: Literal[0, 256] = 256
    aff_threshold_low: float = 0.0001
    aff_threshold_high: float = 0.9999
    mask_threshold: float | None = None

    def __post_init__(self) -> None:
        choices: tuple[tuple[str, object, tuple[object, ...]], ...] = (
            ("fragments", self.fragments, ("sections", "affinity")),
            ("scoring", self.scoring, ("quantile", "mean")),
            ("quantile", self.quantile, PREBUILT_QUANTILES),
            ("discretize_queue", self.discretize_queue, (0, 256)),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise DecodingError(
                    f"it is {value!r}", where=name, remedy=f"choose one of {', '.join(map(str, allowed))}"
                )
        if not 0.0 <= self.aff_threshold_low < self.aff_threshold_high <= 1.0:
            raise DecodingError(
                f"aff_threshold_low is {self.aff_threshold_low}, aff_threshold_high {self.aff_threshold_high}",
                remedy="choose 0 <= low < high <= 1",
            )

    @property
    def scoring_function(self) -> str:
        """The C++ type that names the score to waterz."""
        if self.scoring == "mean":
            return "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"
        init = "true" if self.init_with_max else "false"
        return f"OneMinus<HistogramQuantileAffinity<RegionGraphType, {self.quantile}, ScoreValue, 256, {init}>>"


def decode_waterz(
    affinities: npt.NDArray[Any],
    thresholds: Sequence[float],
    options: WaterzOptions | None = None,
    *,
    fragments: npt.NDArray[np.uint64] | None = None,
    tissue: npt.NDArray[np.bool_] | None = None,
    threads: int = 1,
) -> Iterator[npt.NDArray[np.uint64]]:
    """Agglomerate fragments until their contacts score the threshold, once per threshold.

    The score of a contact is 1 - its affinity; contacts merge, lowest score first, while score < threshold. So 0
    merges nothing, and higher thresholds merge more. The arguments are checked at once, the work is done as the
    result is iterated over. Holds the interpreter's lock; needs 30 to 50 bytes of memory per voxel. Standard output
    of the whole process is discarded while waterz runs, for it reports its progress there.

    Args:
        affinities: (3, z, y, x) uint8 or floats in [0, 1]; uint8 is read as value / 255.
        thresholds: scores in [0, 1], in increasing order.
        options: how fragments are made and contacts scored; by default those behind the published rows.
        fragments: (z, y, x) uint64 fragments to start from instead of making them, 0 is background. Not modified.
        tissue: (z, y, x) bool, True in tissue: what is none is background. None for everywhere; not read where
            fragments are given.
        threads: that make fragments of sections; waterz itself has one.

    Yields:
        (z, y, x) uint64 segmentation per threshold, each an array of its own. Ids are those of fragments, with gaps
        (see `compact_ids`); 0 is background.

    Raises:
        DecodingError: if affinities, thresholds, fragments or tissue are not as described.

    Source: Funke et al. 2019, "Large scale image segmentation with structured loss based deep learning for
    connectome reconstruction".
    """
    require_affinities(affinities)
    levels = [float(threshold) for threshold in thresholds]
    if not levels or not all(0.0 <= level <= 1.0 for level in levels):
        raise DecodingError(f"the thresholds are {levels}", remedy="give at least one score from 0 to 1")
    if any(later <= earlier for earlier, later in itertools.pairwise(levels)):
        raise DecodingError(f"the thresholds are {levels}", remedy="sort them in increasing order, each once")
    if fragments is not None and (fragments.shape != affinities.shape[1:] or fragments.dtype != np.uint64):
        raise DecodingError(
            f"fragments have shape {fragments.shape} and dtype {fragments.dtype}",
            remedy=f"give uint64 of shape {affinities.shape[1:]}",
        )
    if tissue is not None:
        require_tissue(tissue, affinities)
    return _segmentations(affinities, levels, options or WaterzOptions(), fragments, tissue, threads)


def _segmentations(
    affinities: npt.NDArray[Any],
    thresholds: list[float],
    options: WaterzOptions,
    fragments: npt.NDArray[np.uint64] | None,
    tissue: npt.NDArray[np.bool_] | None,
    threads: int,
) -> Iterator[npt.NDArray[np.uint64]]:
    if fragments is not None:
        # waterz overwrites its fragments, and allocates per id up to the largest.
        start, _ = fastremap.renumber(fragments, preserve_zero=True)
        start = np.ascontiguousarray(start, np.uint64)
    elif options.fragments == "sections":
        start = section_fragments(affinities, mask_threshold=options.mask_threshold, tissue=tissue, threads=threads)
    else:
        start = None
        if tissue is not None:
            affinities = links_within(affinities, tissue)
    with _silent_stdout():
        results = waterz.agglomerate(
            _as_float32(affinities),
            thresholds,
            fragments=start,
            aff_threshold_low=options.aff_threshold_low,
            aff_threshold_high=options.aff_threshold_high,
            scoring_function=options.scoring_function,
            discretize_queue=options.discretize_queue,
        )
    for _ in thresholds:
        with _silent_stdout():
            segmentation = next(results)
        # waterz goes on to change the array that it handed out.
        yield np.array(segmentation, np.uint64)


def _as_float32(affinities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if affinities.dtype == np.uint8:
        return affinities * np.float32(1 / 255)
    return np.ascontiguousarray(affinities, np.float32)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what Python and C++ code write to standard output."""
    with _STDOUT, contextlib.ExitStack() as restore:
        if sys.stdout is not None:
            sys.stdout.flush()
        restore.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            saved = os.dup(1)
        except OSError:
            # There is no standard output to protect.
            yield
            return
        restore.callback(os.close, saved)
        restore.callback(os.dup2, saved, 1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        yield


def remove_small(segmentation: npt.NDArray[Any], min_size: int) -> npt.NDArray[Any]:
    """Turn segments of fewer voxels than the minimum (dust) into background.

    Args:
        segmentation: integer ids of any shape, 0 is background. Not modified.
        min_size: in voxels; 0 and 1 keep everything.

    Returns:
        A new array of the same shape and dtype; the ids that stay are not changed.
    """
    ids, counts = fastremap.unique(segmentation, return_counts=True)
    dust = ids[counts < min_size]
    cleaned: npt.NDArray[Any] = fastremap.mask(segmentation, dust) if dust.size else segmentation.copy()
    return cleaned


def compact_ids(segmentation: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Rename segments to 1, 2, 3, ... in the order of their first voxels; 0 stays 0.

    Args:
        segmentation: integer ids of any shape, 0 is background. Not modified.

    Returns:
        uint64 of the same shape.
    """
    compact, _ = fastremap.renumber(np.ascontiguousarray(segmentation), preserve_zero=True)
    return np.ascontiguousarray(compact, np.uint64)
