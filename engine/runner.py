"""The one contract that every backend fulfils: patches of gray in, patches of affinities out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.volumes.geometry import Triple


class Runner(Protocol):
    """A network made ready on one backend and device.

    Attributes:
        name: the backend, as `--backend` names it.
        patch: (z, y, x) voxels of the patches that it takes.
        batch: patches per call.
    """

    name: str
    patch: Triple
    batch: int

    def run(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Affinities of a batch.

        Args:
            patches: (batch, z, y, x) uint8 gray.

        Returns:
            (batch, 3, z, y, x) float32 in [0, 1], or uint8 (255 is 1.0); channels (z, y, x).
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads, as plain data."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


def warm_up(runner: Runner) -> None:
    """Run one batch of noise, so that what a backend prepares at its first call is not timed with the rest."""
    noise = np.random.default_rng(0).integers(0, 256, (runner.batch, *runner.patch), dtype=np.uint8)
    runner.run(noise)
