"""ONNX Runtime on an NVIDIA GPU: its CUDA or its TensorRT execution provider, the features kept on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.cuda_memory import Cuda, open_cuda
from fgnet.engine.engine_cache import cache_folder
from fgnet.engine.feature_slots import FeatureSlots
from fgnet.engine.onnxruntime_session import Feature, features_of, import_onnxruntime, open_session
from fgnet.volumes.geometry import Triple

Provider = Literal["cuda", "tensorrt"]


class OnnxRuntimeCudaRunner:
    """A bundle's graphs in ONNX Runtime sessions on one GPU, bound to device memory that is taken once.

    Args:
        bundle: what to run.
        provider: the execution provider: `cuda`, or `tensorrt`, which builds engines at its first start and keeps them.
        precision: of the graphs; the bundle's default.
        slots: sections whose features are held, twice a block's by default; fewer where the GPU's memory is too small.
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
        import_onnxruntime()
        self._cuda: Cuda = open_cuda()
        try:
            with self._cuda.current():
                self._stream = self._cuda.stream()
                providers = _providers(provider, self._stream, say)
                self._decoder = open_session(bundle.path / graphs.decoder, providers, 1)
                self._encoder = None
                if graphs.encoder is not None:
                    self._encoder = open_session(bundle.path / graphs.encoder, providers, 1)
                self.sections = 0 if self._encoder is None else bundle.manifest.sections
                self._ports: dict[str, Feature] = features_of(bundle, graphs, self._encoder, self._decoder)
                self._reads_gray = "gray" in {value.name for value in self._decoder.get_inputs()}
                self._stage()
                self._features = FeatureSlots(
                    self._cuda,
                    {name: port.bytes for name, port in self._ports.items()},
                    slots=slots or 2 * self.patch[0],
                    depth=self.patch[0],
                    say=say,
                )
        except BaseException:
            self._cuda.close()
            raise
        self.slots = self._features.slots

    def encode(self, gray: npt.NDArray[np.uint8], slot: int) -> None:
        """(sections, y, x) uint8 -> the features of the slots from `slot` on."""
        assert self._encoder is not None  # noqa: S101 - nothing is encoded where `sections` is 0
        with self._cuda.current():
            # The last upload from this pinned array may still be under way.
            self._cuda.synchronise(self._stream)
            np.copyto(self._sections_host, gray)
            self._cuda.upload(self._sections, self._sections_host, self._stream)
            binding = self._encoder.io_binding()
            self._bind(binding.bind_input, "gray", self._sections, np.uint8, self._sections_host.shape)
            self._bind_features(binding.bind_output, slot, self.sections)
            self._encoder.run_with_iobinding(binding)

    def decode(self, gray: npt.NDArray[np.uint8], slot: int) -> npt.NDArray[np.uint8]:
        """(z, y, x) uint8 and the features of the slots from `slot` on -> affinities (3, z, y, x) uint8."""
        with self._cuda.current():
            binding = self._decoder.io_binding()
            if self._reads_gray:
                np.copyto(self._block_host, gray)
                self._cuda.upload(self._block, self._block_host, self._stream)
                self._bind(binding.bind_input, "gray", self._block, np.uint8, self.patch)
            self._bind_features(binding.bind_input, slot, self.patch[0])
            self._bind(binding.bind_output, "affinities", self._affinities, np.uint8, self._affinities_host.shape)
            self._decoder.run_with_iobinding(binding)
            self._cuda.download(self._affinities_host, self._affinities, self._stream)
            self._cuda.synchronise(self._stream)
        return self._affinities_host

    def move(self, source: int, target: int, count: int) -> None:
        """Copy the features of `count` sections down, `source` to `target`."""
        with self._cuda.current():
            self._features.move(source, target, count, self._stream)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and precision, as plain data."""
        return {
            "backend": self.name,
            "version": str(import_onnxruntime().__version__),
            "device": self._cuda.device,
            "precision": self.precision,
            "threads": None,
            "cuda": self._cuda.name,
            "slots": self.slots,
        }

    def close(self) -> None:
        """Give back what is held on the GPU."""
        del self._encoder, self._decoder
        self._cuda.close()

    def _stage(self) -> None:
        """Take pinned arrays and device buffers for what goes in and out."""
        depth, rows, columns = self.patch
        self._sections_host = self._cuda.pinned((max(self.sections, 1), rows, columns))
        self._block_host = self._cuda.pinned((depth, rows, columns))
        self._affinities_host = self._cuda.pinned((3, depth, rows, columns))
        self._sections, self._block, self._affinities = (
            self._cuda.allocate(array.nbytes)
            for array in (self._sections_host, self._block_host, self._affinities_host)
        )

    def _bind_features(self, bind: Any, slot: int, count: int) -> None:
        addresses = self._features.at(slot)
        for name, port in self._ports.items():
            self._bind(bind, name, addresses[name], port.element, (count, *port.shape))

    def _bind(self, bind: Any, name: str, address: int, dtype: Any, shape: tuple[int, ...]) -> None:
        bind(name, "cuda", 0, dtype, shape, address)


def _providers(provider: Provider, stream: int, say: Callable[[str], None]) -> list[tuple[str, dict[str, str]]]:
    """The execution provider on our stream, and CUDA behind TensorRT for what TensorRT does not take."""
    cuda = ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": str(stream)})
    if provider == "cuda":
        return [cuda]
    folder = cache_folder() / "onnxruntime"
    folder.mkdir(parents=True, exist_ok=True)
    say("ONNX Runtime builds TensorRT engines at the first start, which takes minutes; later starts find them")
    options = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    return [("TensorrtExecutionProvider", options), cuda]
