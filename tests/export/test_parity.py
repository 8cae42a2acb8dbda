from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.export.parity import compare, require
from fgnet.volumes.errors import BackendError

SHAPE = (2, 3, 4)
PATCHES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)


@dataclass
class ShiftedRunner:
    """Affinities that are the gray itself, and a value instead of one of them."""

    shift: float = 0.0
    value: float | None = None
    batch: int = 1
    dtype: Any = np.float32
    name: str = "shifted"
    patch: tuple[int, int, int] = SHAPE

    def run(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        assert patches.shape == (self.batch, *SHAPE)
        affinities = np.repeat(patches[:, None].astype(np.float32) / 255, 3, axis=1)
        affinities[:, 2] += self.shift
        if self.value is not None:
            affinities[:, 1, 1, 1, 1] = self.value
        return np.rint(affinities * 255).astype(np.uint8) if self.dtype == np.uint8 else affinities

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "precision": "fp32"}

    def close(self) -> None:
        """It holds nothing."""


def test_equal_runners_pass_without_difference() -> None:
    parity = compare(ShiftedRunner(), ShiftedRunner(), PATCHES)
    assert (parity.largest, parity.mean, parity.not_finite, parity.patches, parity.passed) == (0, 0, 0, 3, True)
    require(parity, where="here")


def test_runners_of_other_batches_and_of_bytes_are_compared_alike() -> None:
    assert compare(ShiftedRunner(), ShiftedRunner(batch=4, dtype=np.uint8), PATCHES).largest < 1e-6


def test_differences_are_measured_over_every_voxel() -> None:
    parity = compare(ShiftedRunner(), ShiftedRunner(shift=-0.25), PATCHES)
    assert parity.largest == pytest.approx(0.25)
    assert parity.mean == pytest.approx(0.25 / 3, rel=1e-4)
    assert not parity.passed


@pytest.mark.parametrize(("shift", "passed"), [(9e-4, True), (1.1e-3, False)])
def test_the_tolerance_is_a_thousandth(shift: float, passed: bool) -> None:
    assert compare(ShiftedRunner(), ShiftedRunner(shift=shift), PATCHES).passed == passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["both", "backend", "eager"])
def test_values_that_are_not_finite_never_pass(value: float, where: str) -> None:
    eager = ShiftedRunner(value=value if where != "backend" else None)
    backend = ShiftedRunner(value=value if where != "eager" else None)
    parity = compare(eager, backend, PATCHES)
    assert (parity.not_finite, parity.passed) == (3, False)
    assert np.isfinite([parity.largest, parity.mean]).all()
    with pytest.raises(BackendError, match="3 values not finite"):
        require(parity, where="here")


def test_a_refusal_gives_the_figures() -> None:
    with pytest.raises(BackendError, match=r"shifted fp32 differs .* up to 0\.5 .* allowed are 0\.001"):
        require(compare(ShiftedRunner(), ShiftedRunner(shift=0.5), PATCHES), where="model.pt")
