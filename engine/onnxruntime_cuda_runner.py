"""ONNX Runtime on an NVIDIA GPU: its CUDA or its TensorRT execution provider, gray and features kept on the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.cuda_device import CudaDevice, handle_of
from fgnet.engine.cuda_memory import open_cuda
from fgnet.engine.device import Buffer
from fgnet.engine.engine_cache import cache_folder, graph_hash
from fgnet.engine.feature_slots import GRAY, FeatureSlots
from fgnet.engine.onnxruntime_session import Feature, features_of, first_line, import_onnxruntime, open_session
from fgnet.engine.runner import least_slots
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

Provider = Literal["cuda", "tensorrt"]

_BUILDS = "ONNX Runtime builds TensorRT engines at the first start, which takes minutes; later starts find them"


class OnnxRuntimeCudaRunner:
    """A bundle's graphs in ONNX Runtime sessions on one GPU, bound to device memory that is taken once.

    Args:
        bundle: what to run.
        provider: the execution provider: `cuda`, or `tensorrt`, which builds engines at its first start and keeps them.
        precision: of the graphs; the bundle's default.
        slots: sections that are held, twice a block's by default; fewer where the GPU's memory is too small, but never
            fewer than any block needs.
        say: told what the user may have to wait for.

    Raises:
        BackendError: onnxruntime-gpu or the GPU is missing or too small, or the graphs are refused.
        BundleError: the bundle has no graphs of this precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Provider = "cuda",
        precision: Precision | None = None,
        slots: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = "onnxruntime" if provider == "cuda" else "onnxruntime-tensorrt"
        self.patch: Triple = bundle.manifest.patch
        graphs = bundle.graphs(precision)
        self.precision: str = graphs.precision
        onnxruntime = import_onnxruntime()
        self._version = str(onnxruntime.__version__)
        # Whoever needs the results waits for an event; without this, every run would wait for its own.
        self._options: Any = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._encoder: Any = None
        self._decoder: Any = None
        self._closed = False
        self.device = CudaDevice(open_cuda())
        try:
            with self.device.cuda.current():
                self.stream = self.device.stream(self.name)
                self._stream = handle_of(self.stream)
                if provider == "tensorrt":
                    say(_BUILDS)
                self._decoder = self._open(bundle, graphs.decoder, provider)
                if graphs.encoder is not None:
                    self._encoder = self._open(bundle, graphs.encoder, provider)
                self.sections = 0 if self._encoder is None else bundle.manifest.sections
                ports = features_of(bundle, graphs, self._encoder, self._decoder)
                self._reads_gray = GRAY in {value.name for value in self._decoder.get_inputs()}
                gray = Feature(np.uint8, np.uint8, self.patch[1:])
                self._ports: dict[str, Feature] = {GRAY: gray, **ports}
                self._features = FeatureSlots(
                    self.device.cuda,
                    {name: port.bytes for name, port in self._ports.items()},
                    slots=slots or 2 * self.patch[0],
                    least=least_slots(self.patch[0], self.sections),
                    say=say,
                )
        except BaseException:
            self.close()
            raise
        self.slots = self._features.slots

    def load(self, gray: Buffer, slot: int) -> None:
        """Copy the gray of some sections, (n, y, x) uint8 on the GPU, to the slots from `slot` on."""
        self._features.load(gray, slot, self._stream)

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on."""
        binding = self._encoder.io_binding()
        addresses = self._features.at(slot)
        for name in self._ports:
            bind = binding.bind_input if name == GRAY else binding.bind_output
            self._bind(bind, name, addresses[name], self.sections)
        self._run(self._encoder, binding)

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Compute the affinities (3, z, y, x) uint8 of the block whose sections lie in the slots from `slot` on."""
        binding = self._decoder.io_binding()
        addresses = self._features.at(slot)
        for name in self._ports:
            if name != GRAY or self._reads_gray:
                self._bind(binding.bind_input, name, addresses[name], self.patch[0])
        binding.bind_output("affinities", "cuda", 0, np.uint8, (3, *self.patch), affinities.address)
        self._run(self._decoder, binding)

    def move(self, source: int, target: int, count: int) -> None:
        """Copy gray and features of `count` sections down, `source` to `target`, in pieces that do not overlap."""
        self._features.move(source, target, count, self._stream)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and precision, as plain data."""
        return {
            "backend": self.name,
            "version": self._version,
            "device": self.device.name,
            "precision": self.precision,
            "threads": None,
            "cuda": self.device.cuda.name,
            "slots": self.slots,
        }

    def close(self) -> None:
        """Give back what is held on the GPU; once is enough, and twice does no harm."""
        if self._closed:
            return
        self._closed = True
        self.device.settle()
        # The sessions first, for they work on the stream.
        with self.device.cuda.current():
            self._encoder = self._decoder = None
        self.device.close()

    def _open(self, bundle: Bundle, graph: str, provider: Provider) -> Any:
        providers = _providers(provider, self._stream, graph_hash(bundle, graph), self.precision)
        return open_session(bundle.path / graph, providers, 1)

    def _run(self, session: Any, binding: Any) -> None:
        try:
            session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                f"ONNX Runtime fails ({first_line(error)})",
                where=f"backend {self.name}",
                remedy="see that the GPU's memory is free, or try another --backend",
            ) from error

    def _bind(self, bind: Any, name: str, address: int, count: int) -> None:
        port = self._ports[name]
        bind(name, "cuda", 0, port.element, (count, *port.shape), address)


def _providers(provider: Provider, stream: int, graph: str, precision: str) -> list[tuple[str, dict[str, str]]]:
    """The execution provider on our stream, and CUDA behind TensorRT for what TensorRT does not take.

    Args:
        provider: which.
        stream: handle of the CUDA stream.
        graph: `graph_hash` of what it is to run.
        precision: of the graph.
    """
    shared = {"device_id": "0", "user_compute_stream": str(stream)}
    # fp32 is what it says: by default convolutions would round their operands to 10 bits. In other precisions the
    # switch would keep convolutions from tensor cores altogether.
    cuda = ("CUDAExecutionProvider", shared | ({"use_tf32": "0"} if precision in ("fp32", "int8") else {}))
    if provider == "cuda":
        return [cuda]
    # TensorRT rounds likewise, and its provider has no switch: only the environment does, once for the process.
    rounds = os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0") != "0"
    folder = cache_folder() / "onnxruntime"
    # ONNX Runtime names an engine after the graph's file, inputs and nodes, not after its weights: in one folder a
    # fine-tuned model would be given the engine of the model that it was made from.
    engines = folder / (f"{graph}-tf32" if rounds else graph)
    engines.mkdir(parents=True, exist_ok=True)
    # Unlike CUDA's, its switches are spelled out: ONNX Runtime refuses "1".
    options = shared | {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
    return [("TensorrtExecutionProvider", options), cuda]
