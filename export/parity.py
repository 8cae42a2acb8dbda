"""Does a backend give the affinities of eager PyTorch, and what does the difference do to the segmentation?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Decoding, Precision
from fgnet.engine.columns import Column
from fgnet.engine.inference import plan_blocks
from fgnet.engine.runner import Runner
from fgnet.postproc.blending import BlendAccumulator, make_weights
from fgnet.postproc.metrics import score
from fgnet.postproc.waterz_decoder import WaterzOptions, decode_waterz
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Box, Triple


@dataclass(frozen=True)
class Tolerance:
    """How far a precision may be from eager FP32.

    Attributes:
        largest: difference of an affinity beyond what rounding to 8 bits explains.
        mean: the same, on average.
        off: share of 8-bit affinities that differ by more than 2.
        voi: variation of information (split + merge, bits): how far the score against the true labels may move, or,
            where there are none, how far the segmentation may be from eager PyTorch's.
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


_DITHERS = 3


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
        not_finite: features and logits that are NaN or infinite, in the graphs of this precision.
        voi_split, voi_merge, arand: between the two segmentations.
        voi_truth: of the backend's segmentation against the true labels; None where there are none.
        voi_truth_eager: of eager PyTorch's.
        voi_allowed: what the segmentation may move by: the tolerance, or what one 8-bit level of noise does to eager
            PyTorch's own affinities on this crop, if that is more.
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
    voi_truth: float | None
    voi_truth_eager: float | None
    voi_allowed: float
    segments: int
    seconds: float
    passed: bool

    @property
    def moved(self) -> float:
        """What is held against `voi_allowed`."""
        if self.voi_truth is None or self.voi_truth_eager is None:
            return self.voi_split + self.voi_merge
        return abs(self.voi_truth - self.voi_truth_eager)

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
        self._labels = labels
        self.boxes = plan_blocks(_shape(gray), patch, stride=stride)
        self._patch = patch
        self._decoding = decoding
        self.affinities = [infer(np.ascontiguousarray(gray[box.slices])) for box in self.boxes]
        for box, affinities in zip(self.boxes, self.affinities, strict=True):
            if not np.isfinite(affinities).all():
                raise BackendError(
                    f"eager PyTorch gives affinities that are not finite in {box}",
                    where="checkpoint",
                    remedy="the weights are broken: train again, or export an earlier checkpoint",
                )
        self.segmentation = self._segment(self._dithered(0, np.random.default_rng()))
        self._voi_truth = self._against_truth(self.segmentation)
        self._floor = self._noise_floor()

    def compare(self, runner: Runner, not_finite: int, seconds: Callable[[], float]) -> Parity:
        """Run the same blocks through a runner.

        Args:
            runner: the backend to judge.
            not_finite: what was counted in the graphs of its precision.
            seconds: a clock.
        """
        largest, total, off, spent = 0.0, 0.0, 0, 0.0
        made: list[tuple[Box, npt.NDArray[np.uint8]]] = []
        column, place = Column(runner), self.boxes[0].start[1:]
        for box, wanted in zip(self.boxes, self.affinities, strict=True):
            if box.start[1:] != place:
                column, place = Column(runner), box.start[1:]
            began = seconds()
            got = column.affinities(box.start[0], np.ascontiguousarray(self.gray[box.slices]))
            spent += seconds() - began
            made.append((box, got.copy()))
            exact = wanted * np.float32(255)
            beyond = np.maximum(np.abs(got - exact) - np.float32(0.5), 0)
            largest, total = max(largest, float(beyond.max())), total + float(beyond.mean())
            off += int(np.count_nonzero(np.abs(got.astype(np.int16) - np.rint(exact).astype(np.int16)) > 2))
        segmentation = self._segment(made)
        scores = score(segmentation, self.segmentation)
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
            voi_truth=self._against_truth(segmentation),
            voi_truth_eager=self._voi_truth,
            voi_allowed=max(tolerance.voi, self._floor),
            segments=int(np.unique(self.segmentation[self.segmentation > 0]).size),
            seconds=spent / count,
            passed=within and not_finite == 0,
            **values,
        )
        return replace(report, passed=report.passed and report.moved <= report.voi_allowed)

    def _noise_floor(self) -> float:
        """How far the segmentation moves when eager PyTorch's own affinities are off by up to one 8-bit level.

        Agglomeration decides between contacts that score almost the same: no arithmetic but the very same one repeats
        all its decisions, and a difference that small does no harm that could be measured.
        """
        moved = []
        for seed in range(_DITHERS):
            segmentation = self._segment(self._dithered(1, np.random.default_rng(seed)))
            truth = self._against_truth(segmentation)
            if truth is None or self._voi_truth is None:
                moved.append(score(segmentation, self.segmentation).voi)
            else:
                moved.append(abs(truth - self._voi_truth))
        return max(moved)

    def _dithered(self, levels: float, generator: np.random.Generator) -> Iterator[tuple[Box, npt.NDArray[np.uint8]]]:
        """The blocks' affinities in 8 bits, each first shifted at random by up to `levels`."""
        for box, affinities in zip(self.boxes, self.affinities, strict=True):
            shifted = affinities * np.float32(255)
            if levels:
                shifted += generator.uniform(-levels, levels, shifted.shape).astype(np.float32)
            yield box, np.clip(np.rint(shifted), 0, 255).astype(np.uint8)

    def _against_truth(self, segmentation: npt.NDArray[np.uint64]) -> float | None:
        return None if self._labels is None else score(segmentation, self._labels).voi

    def _segment(self, blocks: Any) -> npt.NDArray[np.uint64]:
        box = Box.from_shape(_shape(self.gray))
        accumulator = BlendAccumulator(3, box, make_weights("gaussian", self._patch))
        for block, affinities in blocks:
            accumulator.add(affinities, block.start)
        decoding = self._decoding
        options = WaterzOptions(
            fragments=decoding.fragments,  # type: ignore[arg-type]
            scoring=decoding.scoring,  # type: ignore[arg-type]
            quantile=decoding.quantile,
        )
        (segmentation,) = decode_waterz(accumulator.finish(), [decoding.threshold], options)
        return segmentation


def failures(report: Parity) -> Iterator[str]:
    """What a report says that is beyond the tolerance of its precision, each as a phrase with both figures."""
    tolerance = TOLERANCES[report.precision]
    if report.not_finite:
        yield f"{report.not_finite} features or logits are not finite"
    phrases = {"largest": "largest difference", "mean": "mean difference", "off": "share off by more than 2"}
    for name, told in phrases.items():
        if (value := getattr(report, name)) > (allowed := getattr(tolerance, name)):
            yield f"{told} {value:.3g}, allowed {allowed:.3g}"
    if report.moved > report.voi_allowed:
        yield f"the segmentation's VOI moves by {report.moved:.3f}, allowed {report.voi_allowed:.3f}"


def require(reports: list[Parity], where: object) -> None:
    """Refuse backends that are not equal.

    Raises:
        BackendError: one did not pass; the figures are in the message.
    """
    told = [f"{r.backend} {r.precision}: {'; '.join(failures(r))}" for r in reports if not r.passed]
    if told:
        raise BackendError(
            f"not equal to eager PyTorch: {' | '.join(told)}",
            where=where,
            remedy="nothing was written; leave that precision or backend out, or pass --force to write it as failed",
        )


def _shape(gray: npt.NDArray[Any]) -> Triple:
    z, y, x = gray.shape
    return z, y, x
