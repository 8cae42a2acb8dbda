"""TensorRT and TensorRT for RTX: a bundle's graphs as engines, the features of sections kept on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.cuda_memory import Cuda, architecture_of, open_cuda
from fgnet.engine.engine_cache import EngineKey, Say, cache_folder, find_or_build
from fgnet.engine.feature_slots import FeatureSlots
from fgnet.engine.tensorrt_builder import Progress, build_engine
from fgnet.engine.tensorrt_engine import LoadedEngine, require_features, require_patch
from fgnet.engine.tensorrt_library import Library, TensorRTName, open_library
from fgnet.engine.tensorrt_precision import check_hardware
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

_GRAPHS = 64


class TensorRTRunner:
    """A bundle on one GPU.

    The encoder writes features where the decoder reads them, at an offset in one buffer, so nothing is copied between
    the two. What is run again at the same slot is run as a CUDA graph.

    Args:
        bundle: what to run.
        backend: the library.
        precision: of the graphs to run; the bundle's default.
        slots: sections whose features are held at once, twice a block's by default; fewer where the GPU's memory is too
            small for them, but never fewer than a block has.
        workspace_bytes: most device memory that a layer may use for itself.
        tf32: let fp32 products round their operands to 10 bits.
        folder: where engines are kept; the user's cache folder by default.
        say: told what the user may have to wait for.
        progress: told how far a build is.

    Raises:
        BackendError: the library or the GPU is missing, the GPU is too old or too small, or the graphs are refused.
        BundleError: the bundle has no graphs of this precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: TensorRTName = "tensorrt",
        precision: Precision | None = None,
        slots: int | None = None,
        workspace_bytes: int | None = None,
        tf32: bool = False,
        folder: Path | None = None,
        say: Say = lambda _: None,
        progress: Progress | None = None,
    ) -> None:
        self.name: str = backend
        self.patch: Triple = bundle.manifest.patch
        self._library: Library = open_library(backend)
        graphs = bundle.graphs(precision)
        self._precision: Precision = graphs.precision
        self.precision: str = graphs.precision
        self._folder = cache_folder() if folder is None else folder
        self._engines: dict[str, LoadedEngine] = {}
        self._origins: dict[str, str] = {}
        self._device: dict[str, int] = {}
        self._graphs: dict[tuple[str, int], Any] = {}
        self._seen: set[tuple[str, int]] = set()
        self._capturing = True
        self._pending = False
        self._closed = False
        self._cuda: Cuda = open_cuda()
        self._architecture = architecture_of(self._cuda.capability)
        options = {"workspace_bytes": workspace_bytes, "tf32": tf32}

        def load(role: str, graph: str) -> LoadedEngine:
            self._engines[role] = self._load(role, bundle, graph, options, say, progress)
            return self._engines[role]

        try:
            with self._cuda.current():
                check_hardware(self._precision, self._architecture, bundle.path)
                encoder = None if graphs.encoder is None else load("encoder", graphs.encoder)
                decoder = load("decoder", graphs.decoder)
                features = {} if encoder is None else require_features(encoder, decoder, bundle.path)
                require_patch(encoder, decoder, features, self.patch, bundle.path)
                self._prepare(encoder, decoder)
                self._features = FeatureSlots(
                    self._cuda,
                    {name: spec.row_bytes for name, spec in features.items()},
                    slots=slots or 2 * self.patch[0],
                    depth=self.patch[0],
                    say=say,
                )
                self.slots: int = self._features.slots
        except BaseException:
            self.close()
            raise

    def encode(self, gray: npt.NDArray[np.uint8], slot: int) -> None:
        """(sections, y, x) uint8 -> the features of the slots from `slot` on. Returns before they are computed."""

        def queue() -> None:
            self._cuda.upload(self._device["sections"], self._sections_host, self._stream)
            addresses = {"gray": self._device["sections"], **self._features.at(slot)}
            self._engines["encoder"].run(addresses, self._stream)

        with self._cuda.current():
            if self._pending:  # the last call may still be reading the pinned array
                self._cuda.synchronise(self._stream)
            np.copyto(self._sections_host, gray)
            self._run(("encoder", slot), queue)
            self._pending = True

    def decode(self, gray: npt.NDArray[np.uint8], slot: int) -> npt.NDArray[np.uint8]:
        """(z, y, x) uint8 and the features of the slots from `slot` on -> affinities (3, z, y, x) uint8."""

        def queue() -> None:
            addresses = self._features.at(slot)
            if "block" in self._device:
                self._cuda.upload(self._device["block"], self._block_host, self._stream)
                addresses["gray"] = self._device["block"]
            addresses["affinities"] = self._device["affinities"]
            self._engines["decoder"].run(addresses, self._stream)
            self._cuda.download(self._affinities_host, self._device["affinities"], self._stream)

        with self._cuda.current():
            if "block" in self._device:
                np.copyto(self._block_host, gray)
            self._run(("decoder", slot), queue)
            self._cuda.synchronise(self._stream)
            self._pending = False
        return self._affinities_host

    def move(self, source: int, target: int, count: int) -> None:
        """Copy the features of `count` sections down, `source` to `target`, in pieces that do not overlap."""
        with self._cuda.current():
            self._features.move(source, target, count, self._stream)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and how the engines were come by, as plain data."""
        return {
            "backend": self.name,
            "version": self._library.version,
            "device": self._cuda.device,
            "architecture": self._architecture,
            "precision": self.precision,
            "threads": None,
            "cuda": self._cuda.name,
            "cuda_graphs": self._capturing,
            "slots": self.slots,
            "engines": dict(self._origins),
            "layers": {role: engine.precisions for role, engine in self._engines.items()},
        }

    def close(self) -> None:
        """Give back what the runner holds on the GPU; once is enough, and twice does no harm."""
        if self._closed:
            return
        self._closed = True
        with self._cuda.current():
            for graph in self._graphs.values():
                self._cuda.release_graph(graph)
            self._graphs.clear()
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
        self._cuda.close()

    def _load(
        self, role: str, bundle: Bundle, graph: str, options: dict[str, Any], say: Say, progress: Progress | None
    ) -> LoadedEngine:
        key = EngineKey(
            graph=bundle.manifest.files[graph],
            architecture=self._architecture,
            backend=self.name,
            version=self._library.version,
            precision=self._precision,
            options=options,
        )

        def build() -> tuple[bytes, dict[str, Any]]:
            plan, report = build_engine(
                bundle.path / graph,
                backend=self._library.name,
                precision=self._precision,
                architecture=self._architecture,
                timing_cache_folder=self._folder,
                progress=progress,
                **options,
            )
            return plan, asdict(report)

        found = find_or_build(bundle, graph, key, build, folder=self._folder, say=say)
        self._origins[role] = found.origin
        return LoadedEngine(
            self._library,
            found.plan,
            precision=self._precision,
            where=found.path or bundle.path / graph,
            kernels=self._folder / f"{key.digest}.kernels",
        )

    def _prepare(self, encoder: LoadedEngine | None, decoder: LoadedEngine) -> None:
        """Take what every call uses, whatever the slot."""
        _, *size = self.patch
        self._stream = self._cuda.stream()
        self.sections: int = 0 if encoder is None else encoder.inputs["gray"].shape[0]
        self._affinities_host, self._device["affinities"] = self._staged((3, *self.patch))
        if "gray" in decoder.inputs:
            self._block_host, self._device["block"] = self._staged(self.patch)
        if encoder is not None:
            self._sections_host, self._device["sections"] = self._staged((self.sections, *size))

    def _staged(self, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], int]:
        array = self._cuda.pinned(shape)
        return array, self._cuda.allocate(array.nbytes)

    def _run(self, key: tuple[str, int], queue: Callable[[], None]) -> None:
        """Queue work, recorded as a CUDA graph where the same was queued before: what the first run sets up is done."""
        if key not in self._graphs and key in self._seen and self._capturing and len(self._graphs) < _GRAPHS:
            self._record(key, queue)
        if key in self._graphs:
            self._cuda.replay(self._graphs[key], self._stream)
        else:
            queue()
            self._seen.add(key)

    def _record(self, key: tuple[str, int], queue: Callable[[], None]) -> None:
        if not self._engines[key[0]].capturable(self._stream):
            self._capturing = False
            return
        refused = False
        self._cuda.begin_capture(self._stream)
        try:
            queue()
        except BackendError:
            refused = True
        try:
            graph = self._cuda.end_capture(self._stream)
        except BackendError:
            refused = True
        # What cannot be recorded is run call by call from now on: slower, and as right.
        if refused:
            self._capturing = False
        else:
            self._graphs[key] = graph
