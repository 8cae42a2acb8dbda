"""Does the exported graph give the affinities of eager PyTorch?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.runner import Runner
from fgnet.volumes.errors import BackendError

# The largest difference that rounding in another order of FP32 sums explains, with a margin; in units of affinity.
LARGEST_DIFFERENCE = {"fp32": 1e-3}


@dataclass(frozen=True)
class Parity:
    """How far a backend's affinities are from eager FP32 ones.

    Attributes:
        backend: what was compared.
        precision: of its arithmetic.
        patches: how many.
        largest: largest absolute difference where both are finite.
        mean: mean absolute difference, likewise.
        not_finite: values that are NaN or infinite in either.
        passed: whether it is within the tolerance of the precision.
    """

    backend: str
    precision: str
    patches: int
    largest: float
    mean: float
    not_finite: int
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return asdict(self)


def compare(reference: Runner, runner: Runner, patches: npt.NDArray[np.uint8]) -> Parity:
    """Run the same patches through both.

    Args:
        reference: eager PyTorch in FP32.
        runner: the backend to judge.
        patches: (n, z, y, x) uint8.
    """
    largest, total, count, strange = 0.0, 0.0, 0, 0
    for patch in patches:
        wanted, got = (_as_float(r.run(np.repeat(patch[None], r.batch, axis=0))[0]) for r in (reference, runner))
        finite = np.isfinite(got) & np.isfinite(wanted)
        strange += int(np.count_nonzero(~finite))
        difference = np.abs(np.where(finite, got, 0) - np.where(finite, wanted, 0))
        largest, total, count = (
            max(largest, float(difference.max())),
            total + float(difference.sum()),
            count + wanted.size,
        )
    precision = str(runner.describe()["precision"])
    return Parity(
        backend=runner.name,
        precision=precision,
        patches=len(patches),
        largest=largest,
        mean=total / count,
        not_finite=strange,
        passed=strange == 0 and largest <= LARGEST_DIFFERENCE[precision],
    )


def require(parity: Parity, where: object) -> None:
    """Refuse a backend that is not equal.

    Raises:
        BackendError: it did not pass; the figures are in the message.
    """
    if not parity.passed:
        raise BackendError(
            f"{parity.backend} {parity.precision} differs from eager PyTorch by up to {parity.largest:.3g}"
            f" ({parity.not_finite} values not finite), allowed are {LARGEST_DIFFERENCE[parity.precision]:.3g}",
            where=where,
            remedy="no bundle was written",
        )


def _as_float(affinities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    scale = 255 if affinities.dtype == np.uint8 else 1
    return affinities.astype(np.float32) / np.float32(scale)
