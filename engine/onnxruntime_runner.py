"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.device import Buffer
from fgnet.engine.host_runner import HostRunner
from fgnet.engine.onnxruntime_session import features_of, import_onnxruntime, open_session
from fgnet.volumes.errors import BackendError


class OnnxRuntimeRunner(HostRunner):
    """A bundle's graphs in ONNX Runtime sessions, bound to arrays that are taken once.

    Args:
        bundle: what to run.
        precision: of the graphs; the bundle's default. Half precision is stored as such and computed in FP32 where the
            CPU provider knows no better.
        threads: of one call; all cores that this process may use by default.
        slots: sections whose features are held; twice a block's by default.

    Raises:
        BackendError: onnxruntime is not installed, or does not take the graphs.
        BundleError: the bundle has no graphs of this precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        slots: int | None = None,
    ) -> None:
        graphs = bundle.graphs(precision)
        if graphs.precision == "bf16":
            raise BackendError(
                "ONNX Runtime computes no bfloat16 on the CPU",
                where="backend onnxruntime",
                remedy="choose --precision fp32, or --backend openvino, which does",
            )
        self.threads = threads or len(os.sched_getaffinity(0))
        provider = ["CPUExecutionProvider"]
        self._decoder = open_session(bundle.path / graphs.decoder, provider, self.threads)
        self._encoder = None
        if graphs.encoder is not None:
            self._encoder = open_session(bundle.path / graphs.encoder, provider, self.threads)
        sections = 0 if self._encoder is None else bundle.manifest.sections
        super().__init__("onnxruntime", graphs.precision, bundle.manifest.patch, sections, slots)
        self._version = str(import_onnxruntime().__version__)
        features = features_of(bundle, graphs, self._encoder, self._decoder)
        self._features = {name: np.zeros((self.slots, *of.shape), of.dtype) for name, of in features.items()}
        self._reads_gray = "gray" in {value.name for value in self._decoder.get_inputs()}

    def features(self) -> list[npt.NDArray[Any]]:
        """Of all slots, by name of the graphs' tensors."""
        return list(self._features.values())

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on."""
        assert self._encoder is not None  # noqa: S101 - nothing is encoded where `sections` is 0
        binding = self._encoder.io_binding()
        _bind(binding.bind_input, "gray", self.gray[slot : slot + self.sections])
        for name, array in self._features.items():
            _bind(binding.bind_output, name, array[slot : slot + self.sections])
        self._encoder.run_with_iobinding(binding)

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Write the affinities (3, z, y, x) uint8 of the block whose sections lie in the slots from `slot` on."""
        binding = self._decoder.io_binding()
        if self._reads_gray:
            _bind(binding.bind_input, "gray", self.block(slot))
        for name, array in self._features.items():
            _bind(binding.bind_input, name, array[slot : slot + self.patch[0]])
        _bind(binding.bind_output, "affinities", affinities.host)
        self._decoder.run_with_iobinding(binding)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads."""
        return {
            "backend": self.name,
            "version": self._version,
            "device": "cpu",
            "precision": self.precision,
            "threads": self.threads,
        }

    def close(self) -> None:
        """Give back the sessions' memory too."""
        super().close()
        self._encoder = self._decoder = None
        self._features.clear()


def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Bind a contiguous view where it lies; ONNX Runtime's own call for arrays would not take a view's address."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
