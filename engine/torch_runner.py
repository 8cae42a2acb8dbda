"""PyTorch: eager, the baseline that every other backend is held to, or compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Precision
from fgnet.engine.device import Buffer
from fgnet.engine.host_runner import HostRunner
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

if TYPE_CHECKING:
    from torch import Tensor

Device = Literal["cpu", "cuda"]


class EagerNetwork(Protocol):
    """What the runner asks of a PyTorch module; the engine itself knows no network."""

    def eval(self) -> Any:
        """Put the module into evaluation mode, and return it."""
        ...

    def to(self, device: str) -> Any:
        """Bring the module to a device, and return it."""
        ...

    def infer(self, gray: Tensor) -> Tensor:
        """Gray (B, 1, z, y, x) float in [0, 1] -> logits (B, 3, z, y, x), running nothing that only training needs."""
        ...

    def encode(self, stack: Tensor) -> list[Tensor]:
        """Sections (N, 1, y, x) float in [0, 1] -> features (N, channels, h, w); none without an encoder."""
        ...

    def refine(self, stack: Tensor, features: list[Tensor], depth: int) -> Tensor:
        """Sections (B * depth, 1, y, x) and their features -> logits (B * depth, 3, y, x)."""
        ...


class TorchRunner(HostRunner):
    """A network in PyTorch, which keeps its features wherever it runs; gray and affinities go by host memory.

    Args:
        network: put into evaluation mode.
        patch: (z, y, x) voxels of a block.
        sections: that one call of the encoder takes; those of a block by default.
        compiled: whether `torch.compile` makes it faster first; its mode, or True for the default one.
        precision: fp32, or bf16 and fp16 by autocast.
        device: where it runs; `cuda` if there is one by default.
        threads: of one call on the CPU; PyTorch's own choice by default.
        slots: sections whose features are held; twice a block's by default.

    Raises:
        BackendError: PyTorch is not installed, or the device or precision is not to be had.
    """

    def __init__(
        self,
        network: EagerNetwork,
        patch: Triple,
        *,
        sections: int | None = None,
        compiled: bool | str = False,
        precision: Precision | None = None,
        device: Device | None = None,
        threads: int | None = None,
        slots: int | None = None,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendError(
                "PyTorch is not installed", where="backend torch", remedy="pip install 'fgnet[train]'"
            ) from error
        self._torch = torch
        name = "torch-compile" if compiled else "torch"
        chosen: str = precision or "fp32"
        self._place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self._place == "cuda" and not torch.cuda.is_available():
            raise BackendError("PyTorch finds no GPU", where="backend torch", remedy="choose --device cpu")
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if chosen != "fp32" and chosen not in halves:
            raise BackendError(
                f"PyTorch runs no {chosen} network here",
                where=f"backend {name}",
                remedy="choose --precision fp32, bf16 or fp16",
            )
        super().__init__(name, chosen, patch, sections or patch[0], slots)
        self._half = halves.get(chosen)
        if threads is not None and self._place == "cpu":
            torch.set_num_threads(threads)
        placed: EagerNetwork = network.eval().to(self._place)
        self._infer, self._encode, self._refine = placed.infer, placed.encode, placed.refine
        if compiled:
            mode = compiled if isinstance(compiled, str) else None
            self._infer = torch.compile(placed.infer, mode=mode)
            self._encode = torch.compile(placed.encode, mode=mode)
            self._refine = torch.compile(placed.refine, mode=mode)
        self._features: list[Tensor] = []

    def run(self, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The whole network on one block, as PyTorch's users do: (z, y, x) uint8 -> (3, z, y, x) float32 in [0, 1]."""
        affinities: npt.NDArray[np.float32] = self.run_batch(block[None])[0]
        return affinities

    def run_batch(self, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The whole network on several blocks at a time: (B, z, y, x) uint8 -> (B, 3, z, y, x) float32 in [0, 1]."""
        torch = self._torch
        with torch.inference_mode(), self._autocast():
            logits = self._infer(torch.from_numpy(blocks[:, None]).to(self._place).float() / 255)
            affinities: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).contiguous().cpu().numpy()
        return affinities

    def features(self) -> list[Tensor]:
        """Of all slots; none before the first call of `encode`, or where there is no encoder."""
        return self._features

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on."""
        with self._torch.inference_mode(), self._autocast():
            features = self._encode(self._stack(self.gray[slot : slot + self.sections]))
            if not self._features:
                self._features = [
                    level.new_zeros((self.slots, *level.shape[1:])).contiguous(memory_format=self._torch.channels_last)
                    for level in features
                ]
            for held, level in zip(self._features, features, strict=True):
                held[slot : slot + self.sections] = level

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Write the affinities (3, z, y, x) uint8 of the block whose sections lie in the slots from `slot` on."""
        depth = self.patch[0]
        with self._torch.inference_mode(), self._autocast():
            features = [held[slot : slot + depth] for held in self._features]
            logits = self._refine(self._stack(self.block(slot)), features, depth).float()
            quantised = self._torch.round(self._torch.sigmoid(logits) * 255).to(self._torch.uint8)
            np.copyto(affinities.host, quantised.transpose(0, 1).cpu().numpy())

    def move(self, source: int, target: int, count: int) -> None:
        """Copy gray and features of `count` sections down, `source` to `target`."""
        with self._torch.inference_mode():
            super().move(source, target, count)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads."""
        on_cpu = self._place == "cpu"
        return {
            "backend": self.name,
            "version": str(self._torch.__version__),
            "device": "cpu" if on_cpu else self._torch.cuda.get_device_name(),
            "precision": self.precision,
            "threads": self._torch.get_num_threads() if on_cpu else None,
        }

    def close(self) -> None:
        """Give back the network's memory too."""
        super().close()
        for held in ("_infer", "_encode", "_refine"):
            vars(self).pop(held, None)
        self._features = []

    def _stack(self, gray: npt.NDArray[np.uint8]) -> Tensor:
        stack = self._torch.from_numpy(gray[:, None]).to(self._place).float() / 255
        return stack.contiguous(memory_format=self._torch.channels_last)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._half is None:
            return nullcontext()
        return self._torch.autocast(self._place, dtype=self._half)
