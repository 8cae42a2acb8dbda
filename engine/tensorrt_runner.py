"""TensorRT and TensorRT for RTX: a bundle's graphs as engines, the features of sections kept on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.cuda_device import CudaDevice, handle_of
from fgnet.engine.cuda_memory import architecture_of, open_cuda
from fgnet.engine.device import Buffer
from fgnet.engine.engine_cache import EngineKey, Say, cache_folder, find_or_build, graph_hash
from fgnet.engine.feature_slots import GRAY, FeatureSlots
from fgnet.engine.runner import least_slots
from fgnet.engine.tensorrt_builder import Progress, build_engine
from fgnet.engine.tensorrt_engine import LoadedEngine, require_features, require_patch
from fgnet.engine.tensorrt_library import Library, TensorRTName, open_library
from fgnet.engine.tensorrt_precision import check_hardware
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

_GRAPHS = 64


class _Work(NamedTuple):
    """What a CUDA graph was recorded of.

    Attributes:
        role: of the engine.
        slot: of the first section.
        target: address of the affinities; 0 for the encoder.
    """

    role: str
    slot: int
    target: int


class TensorRTRunner:
    """A bundle on one GPU.

    The encoder writes features where the decoder reads them, at an offset in one buffer, so nothing is copied between
    the two. What is run again at the same slot, with the same target, is run as a CUDA graph. Nothing waits.

    Args:
        bundle: what to run.
        backend: the library.
        precision: of the graphs to run; the bundle's default.
        slots: sections that are held at once, twice a block's by default; fewer where the GPU's memory is too small for
            them, but never fewer than any block needs.
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
        self._graphs: dict[_Work, Any] = {}
        self._seen: set[_Work] = set()
        self._capturing = True
        self._closed = False
        self.device = CudaDevice(open_cuda())
        self._cuda = self.device.cuda
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
                self.stream = self.device.stream(backend)
                self._stream = handle_of(self.stream)
                self.sections: int = 0 if encoder is None else encoder.inputs[GRAY].shape[0]
                self._features = FeatureSlots(
                    self._cuda,
                    {GRAY: gray_bytes(self.patch, bundle.path)}
                    | {name: spec.row_bytes for name, spec in features.items()},
                    slots=slots or 2 * self.patch[0],
                    least=least_slots(self.patch[0], self.sections),
                    say=say,
                )
                self.slots: int = self._features.slots
        except BaseException:
            self.close()
            raise

    def load(self, gray: Buffer, slot: int) -> None:
        """Copy the gray of some sections, (n, y, x) uint8 on the GPU, to the slots from `slot` on."""
        self._features.load(gray, slot, self._stream)

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on."""
        self._run(_Work("encoder", slot, 0), self._features.at(slot))

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Compute the affinities (3, z, y, x) uint8 of the block whose sections lie in the slots from `slot` on."""
        held = self._features.at(slot)
        addresses = {name: held[name] for name in self._engines["decoder"].inputs}
        addresses["affinities"] = affinities.address
        self._run(_Work("decoder", slot, affinities.address), addresses)

    def move(self, source: int, target: int, count: int) -> None:
        """Copy gray and features of `count` sections down, `source` to `target`, in pieces that do not overlap."""
        self._features.move(source, target, count, self._stream)

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and how the engines were come by, as plain data."""
        return {
            "backend": self.name,
            "version": self._library.version,
            "device": self.device.name,
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
        well = self.device.settle()
        with self._cuda.current():
            for graph in self._graphs.values() if well else ():
                self._cuda.release_graph(graph)
            self._graphs.clear()
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
        self.device.close()

    def _load(
        self, role: str, bundle: Bundle, graph: str, options: dict[str, Any], say: Say, progress: Progress | None
    ) -> LoadedEngine:
        key = EngineKey(
            graph=graph_hash(bundle, graph),
            architecture=self._architecture,
            backend=self.name,
            version=self._library.version,
            precision=self._precision,
            options=options,
            device="" if self._library.compiles_at_run_time else self.device.name,
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

    def _run(self, work: _Work, addresses: dict[str, int]) -> None:
        """Queue work, recorded as a CUDA graph where the same was queued before: what the first run sets up is done."""
        engine = self._engines[work.role]
        if work not in self._graphs and work in self._seen and self._capturing and len(self._graphs) < _GRAPHS:
            self._record(work, lambda: engine.run(addresses, self._stream))
        if work in self._graphs:
            self._cuda.replay(self._graphs[work], self._stream)
        else:
            engine.run(addresses, self._stream)
            self._seen.add(work)

    def _record(self, work: _Work, queue: Callable[[], None]) -> None:
        if not self._engines[work.role].capturable(self._stream):
            self._capturing = False
            return
        refused, graph = False, None
        self._cuda.begin_capture(self._stream)
        try:
            queue()
        except BackendError:
            refused = True
        with contextlib.suppress(BackendError):
            graph = self._cuda.end_capture(self._stream)
        if graph is not None and not refused:
            self._graphs[work] = graph
            return
        # What cannot be recorded is run call by call from now on: slower, and as right.
        self._capturing = False
        if graph is not None:
            self._cuda.release_graph(graph)


def gray_bytes(patch: Triple, where: object) -> int:
    """Bytes of a section's gray.

    Raises:
        BackendError: they are no multiple of 256, so that engines cannot read gray at every slot.
    """
    size = patch[1] * patch[2]
    if size % 256:
        raise BackendError(
            f"the gray of a section takes {size} bytes, which is no multiple of 256",
            where=where,
            remedy="export the model with a patch of a multiple of 16 x 16, or use --backend onnxruntime",
        )
    return size
