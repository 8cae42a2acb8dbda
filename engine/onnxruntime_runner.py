"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Bundle
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple


class OnnxRuntimeRunner:
    """A bundle's graph in an ONNX Runtime session.

    Args:
        bundle: what to run.
        threads: of one call; all cores that this process may use by default.

    Raises:
        BackendError: onnxruntime is not installed, or does not take the graph.
    """

    name = "onnxruntime"
    batch = 1

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                "onnxruntime is not installed",
                where="backend onnxruntime",
                remedy="pip install 'fgnet[cpu]' or 'fgnet[gpu]'",
            ) from error
        self.patch: Triple = bundle.manifest.patch
        self.threads = threads or len(os.sched_getaffinity(0))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(bundle.graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                f"ONNX Runtime does not take the graph ({str(error).splitlines()[0]})",
                where=bundle.graph,
                remedy="export the model again with this version",
            ) from error
        self._version = str(onnxruntime.__version__)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [[(value.type, value.shape) for value in values] for values in (inputs, outputs)]
        expected = [[("tensor(uint8)", [1, 1, *self.patch])], [("tensor(float)", [1, 3, *self.patch])]]
        if found != expected:
            raise BackendError(
                f"the graph takes {found[0]} and gives {found[1]}, not {expected[0]} and {expected[1]}",
                where=bundle.graph,
                remedy="export the model again",
            )
        self._input, self._output = inputs[0].name, outputs[0].name

    def run(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(1, z, y, x) uint8 -> (1, 3, z, y, x) float32."""
        (affinities,) = self._session.run([self._output], {self._input: patches[:, None]})
        result: npt.NDArray[np.float32] = affinities
        return result

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads."""
        return {
            "backend": self.name,
            "version": self._version,
            "device": "cpu",
            "precision": "fp32",
            "threads": self.threads,
        }

    def close(self) -> None:
        """Give back the session's memory."""
        del self._session
