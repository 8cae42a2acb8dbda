"""PyTorch eager: the baseline that every other backend is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

if TYPE_CHECKING:
    from torch import Tensor


class EagerNetwork(Protocol):
    """What the runner asks of a PyTorch module; the engine itself knows no network."""

    def eval(self) -> Any:
        """Put the module into evaluation mode, and return it."""
        ...

    def infer(self, gray: Tensor) -> Tensor:
        """Gray (B, 1, z, y, x) float in [0, 1] -> logits (B, 3, z, y, x), running nothing that only training needs."""
        ...


class TorchRunner:
    """A network in eager PyTorch, FP32 on the CPU.

    Args:
        network: a module that infers logits. Put into evaluation mode.
        patch: (z, y, x) voxels of the patches.
        threads: of one call; PyTorch's own choice by default.

    Raises:
        BackendError: PyTorch is not installed.
    """

    name = "torch"
    batch = 1

    def __init__(self, network: EagerNetwork, patch: Triple, *, threads: int | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                "PyTorch is not installed", where="backend torch", remedy="pip install 'fgnet[train]'"
            ) from error
        self._torch = torch
        if threads is not None:
            torch.set_num_threads(threads)
        self.patch = patch
        self._network: EagerNetwork = network.eval()

    def run(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, z, y, x) uint8 -> (B, 3, z, y, x) float32."""
        torch = self._torch
        with torch.inference_mode():
            logits = self._network.infer(torch.from_numpy(patches[:, None]).float() / 255)
            affinities: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).contiguous().numpy()
        return affinities

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads."""
        return {
            "backend": self.name,
            "version": str(self._torch.__version__),
            "device": "cpu",
            "precision": "fp32",
            "threads": self._torch.get_num_threads(),
        }

    def close(self) -> None:
        """Give back the network's memory."""
        del self._network
