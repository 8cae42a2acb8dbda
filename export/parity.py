"""Does a backend give the affinities of eager PyTorch, and what does the difference do to the segmentation?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Decoding, Precision
from fgnet.engine.columns import Column
from fgnet.engine.runner import Runner
from fgnet.postproc.blending import WeightTotals, add_patch, finish_chunk, make_weights
from fgnet.postproc.metrics import score
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid


@dataclass(frozen=True)
class Tolerance:
    """How far a precision may be from eager FP32.

    Attributes:
        largest: difference of an affinity beyond what rounding to 8 bits explains.
        mean: the same, on average.
        off: share of 8-bit affinities that differ by more than 2.
        voi: by how much the score of its segmentations (`Parity.voi`, bits) may differ from that of eager PyTorch's.
    """

    largest: float
    mean: float
    off: float
    voi: float = 0.02


# fp32: rounding in another order of sums, with a margin. Below it the segmentation is what counts; single affinities
# may be off where the network is at its steepest, but few, and hardly any on average.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(largest=1e-3, mean=1e-5, off=0.0),
    "fp16": Tolerance(largest=0.1, mean=2e-3, off=0.02),
    "bf16": Tolerance(largest=0.5, mean=1e-2, off=0.25),
    "int8": Tolerance(largest=1.0, mean=2e-2, off=0.5),
}


# Agglomeration decides between contacts that score almost the same: no arithmetic but the very same one repeats all its
# decisions, and one affinity in fifty that is off by one 8-bit level may change VOI by more than the tolerance, for
# better or worse. What a precision does to the quality shows in the mean over several such accidents.
DITHERS = 8


@dataclass(frozen=True)
class Parity:
    """How far a backend is from eager FP32 on the same gray.

    Attributes:
        backend: what was compared.
        precision: of its arithmetic.
        version: of the backend.
        device: that it ran on.
        blocks: that were compared.
        largest: largest absolute difference of an affinity beyond what rounding to 8 bits explains.
        mean: mean of the same.
        off: share of 8-bit affinities that differ by more than 2.
        not_finite: numbers that are NaN or infinite in the graphs of this precision, as `finite` counts them.
        voi_split, voi_merge, arand: between the two segmentations.
        against: what both are scored against: the true "labels", or "eager" PyTorch's segmentation for lack of them.
        voi, voi_eager: mean VOI of the backend's and of eager PyTorch's segmentations against it, `DITHERS` of each,
            their affinities shifted at random by up to one 8-bit level.
        segments: in eager PyTorch's.
        seconds: per block; of this one run, on a machine that did other things too.
        passed: whether all is within the tolerance of the precision.
    """

    backend: str
    precision: Precision
    version: str
    device: str
    blocks: int
    largest: float
    mean: float
    off: float
    not_finite: int
    voi_split: float
    voi_merge: float
    arand: float
    against: str
    voi: float
    voi_eager: float
    segments: int
    seconds: float
    passed: bool

    @property
    def moved(self) -> float:
        """What is held against the tolerance of VOI."""
        return abs(self.voi - self.voi_eager)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        values = asdict(self).items()
        return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Parity:
        """The inverse of `to_dict`."""
        return cls(**data)


class Reference:
    """What eager PyTorch in FP32 makes of a crop: affinities of every block, and a segmentation of all.

    Args:
        infer: eager PyTorch: a block (z, y, x) uint8 -> affinities (3, z, y, x) float32 in [0, 1].
        gray: the crop (z, y, x) uint8, at least as large as a block.
        patch: voxels of a block.
        stride: voxels between blocks.
        decoding: recommended decoder settings.
        labels: true labels of the crop (z, y, x), if they are known.
    """

    def __init__(
        self,
        infer: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
        gray: npt.NDArray[np.uint8],
        patch: Triple,
        stride: Triple,
        decoding: Decoding,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        self.gray = gray
        grid = PatchGrid(_shape(gray), patch, stride)
        self.boxes = sorted(grid, key=lambda box: (box.start[1:], box.start[0]))  # column by column
        self._patch, self._grid = patch, grid
        self._decoding = decoding
        self.affinities = [infer(np.ascontiguousarray(gray[box.slices])) for box in self.boxes]
        for box, affinities in zip(self.boxes, self.affinities, strict=True):
            if not np.isfinite(affinities).all():
                raise BackendError(
                    f"eager PyTorch gives affinities that are not finite in {box}",
                    where="checkpoint",
                    remedy="the weights are broken: train again, or export an earlier checkpoint",
                )
        rounded = (np.rint(affinities * 255).astype(np.uint8) for affinities in self.affinities)
        blended = self._blend(zip(self.boxes, rounded, strict=True))
        self.segmentation = self._segment(blended)
        self._truth: npt.NDArray[Any] = self.segmentation if labels is None else labels
        self._against = "eager" if labels is None else "labels"
        self._eager_score = self._score(blended)

    def compare(self, runner: Runner, not_finite: int, seconds: Callable[[], float]) -> Parity:
        """Run the same blocks through a runner.

        Args:
            runner: the backend to judge.
            not_finite: what was counted in the graphs of its precision.
            seconds: a clock.
        """
        largest, total, off, spent = 0.0, 0.0, 0, 0.0
        made: list[tuple[Box, npt.NDArray[np.uint8]]] = []
        column, place = None, None
        for box, wanted in zip(self.boxes, self.affinities, strict=True):
            if column is None or box.start[1:] != place:
                column, place = self._column(runner, box), box.start[1:]
            began = seconds()
            got = column.affinities(box.start[0])
            spent += seconds() - began
            made.append((box, got.copy()))
            exact = wanted * np.float32(255)
            beyond = np.maximum(np.abs(got - exact) - np.float32(0.5), 0)
            largest, total = max(largest, float(beyond.max())), total + float(beyond.mean())
            off += int(np.count_nonzero(np.abs(got.astype(np.int16) - np.rint(exact).astype(np.int16)) > 2))
        blended = self._blend(made)
        scores = score(self._segment(blended), self.segmentation)
        described = runner.describe()
        precision = cast(Precision, runner.precision)
        count = len(self.boxes)
        values = {
            "largest": largest / 255,
            "mean": total / count / 255,
            "off": off / (count * self.affinities[0].size),
        }
        tolerance = TOLERANCES[precision]
        within = all(values[name] <= getattr(tolerance, name) for name in values)
        report = Parity(
            backend=runner.name,
            precision=precision,
            version=str(described["version"]),
            device=str(described["device"]),
            blocks=count,
            not_finite=not_finite,
            voi_split=scores.voi_split,
            voi_merge=scores.voi_merge,
            arand=scores.arand,
            against=self._against,
            voi=self._score(blended),
            voi_eager=self._eager_score,
            segments=int(np.unique(self.segmentation[self.segmentation > 0]).size),
            seconds=spent / count,
            passed=within and not_finite == 0,
            **values,
        )
        return replace(report, passed=report.passed and report.moved <= tolerance.voi)

    def _column(self, runner: Runner, box: Box) -> Column:
        """The column of blocks that a box is part of."""
        _, rows, columns = box.slices
        return Column(runner, len(self.gray), lambda first, count: self.gray[first : first + count, rows, columns])

    def _score(self, affinities: npt.NDArray[np.uint8]) -> float:
        """Mean VOI against the truth of the segmentations of these affinities, shifted by up to one 8-bit level."""
        moved = []
        for seed in range(DITHERS):
            noise = np.random.default_rng(seed).integers(-1, 2, affinities.shape, dtype=np.int16)
            shifted = np.clip(affinities + noise, 0, 255).astype(np.uint8)
            moved.append(score(self._segment(shifted), self._truth).voi)
        return float(np.mean(moved))

    def _blend(self, blocks: Iterable[tuple[Box, npt.NDArray[Any]]]) -> npt.NDArray[np.uint8]:
        weights, whole = make_weights("gaussian", self._patch), Box.from_shape(_shape(self.gray))
        sums = np.zeros((3, *whole.shape), np.float32)
        for block, affinities in blocks:
            add_patch(sums, whole, affinities, block.start, weights)
        return finish_chunk(sums, whole, WeightTotals.of(weights, self._grid))

    def _segment(self, affinities: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        decoding = self._decoding
        options = WaterzOptions(
            fragments=decoding.fragments,  # type: ignore[arg-type]
            scoring=decoding.scoring,  # type: ignore[arg-type]
            quantile=decoding.quantile,
        )
        (segmentation,) = decode_waterz(affinities, [decoding.threshold], options)
        return segmentation


def failures(report: Parity) -> Iterator[str]:
    """What a report says that is beyond the tolerance of its precision, each as a phrase with both figures."""
    tolerance = TOLERANCES[report.precision]
    if report.not_finite:
        yield f"{report.not_finite} numbers are not finite"
    phrases = {"largest": "largest difference", "mean": "mean difference", "off": "share off by more than 2"}
    for name, told in phrases.items():
        if (value := getattr(report, name)) > (allowed := getattr(tolerance, name)):
            yield f"{told} {value:.3g}, allowed {allowed:.3g}"
    if report.moved > tolerance.voi:
        yield f"VOI against the {report.against} moves by {report.moved:.3f}, allowed {tolerance.voi:.3f}"


def require(reports: list[Parity], where: object, remedy: str) -> None:
    """Refuse backends that are not equal.

    Args:
        reports: of all that were compared.
        where: what they ran, to name in the error.
        remedy: likewise.

    Raises:
        BackendError: one did not pass; the figures are in the message.
    """
    told = [f"{r.backend} {r.precision}: {'; '.join(failures(r))}" for r in reports if not r.passed]
    if told:
        raise BackendError(
            f"not equal to eager PyTorch: {' | '.join(told)}",
            where=where,
            remedy=remedy,
        )


def _shape(gray: npt.NDArray[Any]) -> Triple:
    z, y, x = gray.shape
    return z, y, x
