"""How do the scores of a segmentation depend on the agglomeration threshold, and which threshold is best?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_in_turn
from fgnet.postproc.metrics import Scores, score
from fgnet.postproc.protocols import ProtocolName
from fgnet.postproc.watershed import WatershedOptions
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import DecodingError, GeometryError
from fgnet.volumes.geometry import Box
from fgnet.volumes.matching import same_array
from fgnet.volumes.reading import Volume

Criterion: TypeAlias = Literal["voi", "arand", "cremi_score"]
Decoder: TypeAlias = Literal["waterz", "blockwise"]

MOST_THRESHOLDS = 1000


@dataclass(frozen=True)
class CurvePoint:
    """A threshold and what the segmentation that it gives scores."""

    threshold: float
    scores: Scores


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Reads "0.1:0.9:0.1" (first, last, step; the last one is included) or "0.3,0.5,0.55", in increasing order.

    Raises:
        DecodingError: no such text, a threshold outside 0 to 1, or more than a thousand of them.
    """
    remedy = 'write "0.1:0.9:0.1" (first, last and step) or "0.3,0.5", from 0 to 1'
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = int(np.floor((last - first) / step + 1e-9)) + 1
            if step <= 0 or not 0 < count <= MOST_THRESHOLDS:
                raise DecodingError(
                    f"{text!r} is no range of 1 to {MOST_THRESHOLDS}", where="thresholds", remedy=remedy
                )
            # 0.1 + 2 * 0.1 is not 0.3, which is what was asked for.
            levels = {round(first + i * step, 9) for i in range(count)}
        else:
            levels = {float(part) for part in text.split(",")}
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise DecodingError(f"{text!r} is no list of numbers", where="thresholds", remedy=remedy) from error
    if not all(0.0 <= level <= 1.0 for level in levels):
        raise DecodingError(f"{text!r} goes beyond 0 to 1", where="thresholds", remedy=remedy)
    return tuple(sorted(levels))


def segmentations(
    affinities: npt.NDArray[Any], thresholds: Sequence[float], decoder: Decoder, options: WaterzOptions
) -> Iterable[npt.NDArray[np.uint64]]:
    """The segmentation of each threshold, as fgnet-run makes it of the same affinities; the next may overwrite it.

    Args:
        affinities: (3, z, y, x) uint8; for waterz also floats from 0 to 1.
        thresholds: in increasing order.
        decoder: which one; the blockwise one scores by mean affinity.
        options: how fragments are made and, by waterz, contacts scored.

    Raises:
        DecodingError: affinities that cannot be decoded.
    """
    if decoder == "waterz":
        return decode_waterz(affinities, thresholds, options)
    flow = WatershedOptions(flow=options.fragments)
    return decode_in_turn(affinities, BlockwiseOptions(tuple(thresholds), watershed=flow))


def threshold_curve(
    affinities: npt.NDArray[Any],
    truth: npt.NDArray[np.uint64],
    thresholds: Sequence[float],
    *,
    decoder: Decoder,
    options: WaterzOptions,
    protocol: ProtocolName,
    min_size: int = 0,
    masked: npt.NDArray[np.bool_] | None = None,
) -> Iterator[CurvePoint]:
    """Score the segmentation of each threshold, one after the other.

    Args:
        affinities: (3, z, y, x).
        truth: (z, y, x) ids.
        thresholds: in increasing order.
        decoder: see `segmentations`.
        options: see `segmentations`.
        protocol: see `metrics.score`.
        min_size: true ids with fewer voxels are not scored.
        masked: (z, y, x), voxels that are not scored.

    Raises:
        DecodingError, VolumeError: affinities that cannot be decoded, or nothing to score.
    """
    made = segmentations(affinities, thresholds, decoder, options)
    for threshold, segments in zip(thresholds, made, strict=True):
        yield CurvePoint(threshold, score(segments, truth, protocol=protocol, min_size=min_size, border_mask=masked))


def best_point(points: Sequence[CurvePoint], by: Criterion) -> CurvePoint:
    """The point of the lowest score; of equal ones, that of the lowest threshold."""
    return min(points, key=lambda point: (getattr(point.scores, by), point.threshold))


def refuse_shared_voxels(validation: tuple[Volume, Box], test: tuple[Volume, Box]) -> None:
    """Refuse regions of one volume that overlap: a threshold chosen on test data says nothing of new data.

    Args:
        validation: volume and region on which a threshold is chosen.
        test: volume and region that is scored with it.

    Raises:
        GeometryError: they are one array of one file, and the regions share a voxel.
    """
    (chosen_on, chosen), (scored_on, scored) = validation, test
    shared = chosen.intersect(scored)
    if shared.size and same_array(chosen_on, scored_on):
        raise GeometryError(
            f"the threshold would be chosen on {chosen} and tested on {scored}, which share {shared}",
            where=scored_on.address,
            remedy="choose it on other voxels than those of --crop",
        )
