"""From an ONNX graph to a TensorRT plan that is of the precision asked for, or an error that says why not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.engine.bundle import Precision
from fgnet.engine.cuda_memory import architecture_of, open_cuda
from fgnet.engine.tensorrt_library import Library, TensorRTName, open_library
from fgnet.engine.tensorrt_precision import COMPUTING, check_hardware, check_network
from fgnet.volumes.errors import BackendError

Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, the steps done and the steps in all."""

# What a plan holds beside its weights are kernels: 4.4 to 14.2 MiB for the 43 to 119 convolutions and matrix products
# of the graphs of `nano` and `tiny`, in fp32 and fp16 (TensorRT for RTX 1.7, sm89 and sm120). Twice that is allowed.
_PLAN_BYTES = 4 << 20
_PLAN_BYTES_PER_LAYER = 1 << 18
_PLAN_PER_WEIGHT = 1.5


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        version: of the library.
        architecture: that it was built for, such as "sm89".
        precision: asked for, and found.
        layers: of the network, how many of each kind and output type, such as {"CONVOLUTION HALF": 57}.
        plan_bytes: of the plan.
        graph_bytes: of the ONNX file, which is its weights but for a few percent.
        seconds: that parsing and building took.
    """

    backend: str
    version: str
    architecture: str
    precision: Precision
    layers: dict[str, int]
    plan_bytes: int
    graph_bytes: int
    seconds: float


def build_engine(
    onnx_path: Path,
    *,
    backend: TensorRTName,
    precision: Precision,
    architecture: str | None = None,
    workspace_bytes: int | None = None,
    tf32: bool = False,
    timing_cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, BuildReport]:
    """Build the plan of a graph of static shapes.

    Args:
        onnx_path: the graph, whose types are the precision: the network is strongly typed.
        backend: the library to build with.
        precision: that the graph's convolutions and matrix products must have.
        architecture: to build for, such as "sm89"; that of the GPU present by default. TensorRT builds for no other.
        workspace_bytes: most device memory that a layer may use for itself; no limit by default.
        tf32: let fp32 products round their operands to 10 bits, which is faster and no longer fp32.
        timing_cache_folder: where TensorRT's timings are kept, one file for each version and architecture; TensorRT for
            RTX times nothing.
        progress: told how far the build is. What it raises ends the build.

    Returns:
        The plan and what it is.

    Raises:
        BackendError: the library is missing, does not take the graph or cannot build for the architecture; the network
            is of another precision; or the plan is much larger than the graph's weights.
    """
    library = open_library(backend)
    architecture = _resolve(library, architecture)
    check_hardware(precision, architecture, onnx_path)
    started = time.perf_counter()
    library.messages.clear()
    builder = library.make("Builder")
    network = _parse(library, builder, onnx_path)
    layers = check_network(network, precision, onnx_path)
    config = _configure(library, builder, architecture, workspace_bytes, tf32)
    timings = _attach_timings(library, config, timing_cache_folder, architecture)
    plan = _build(library, builder, network, config, progress, onnx_path)
    if timings is not None:
        # What is not kept is timed again; that must not fail what took minutes.
        with contextlib.suppress(OSError):
            write_atomically(timings, bytes(memoryview(config.get_timing_cache().serialize())))
    report = BuildReport(
        backend=backend,
        version=library.version,
        architecture=architecture,
        precision=precision,
        layers=layers,
        plan_bytes=len(plan),
        graph_bytes=onnx_path.stat().st_size,
        seconds=time.perf_counter() - started,
    )
    if library.compiles_at_run_time:
        # TensorRT's own plans hold kernels too, and nobody has measured yet how large these are.
        check_plan_size(report, onnx_path)
    return plan, report


def check_plan_size(report: BuildReport, where: object) -> None:
    """Refuse a plan that holds the weights about twice.

    That betrays casts of weights that were not folded, and so an engine that computes in more bits than the graph
    stores: a naive conversion of such a network to fp16 once gave a plan of 129 MB where fp32 gave 64 MB.

    Raises:
        BackendError: the plan is too large; with figures.
    """
    computing = sum(count for kind, count in report.layers.items() if kind.split()[0] in COMPUTING)
    most = report.graph_bytes * _PLAN_PER_WEIGHT + _PLAN_BYTES + _PLAN_BYTES_PER_LAYER * computing
    if report.plan_bytes > most:
        raise BackendError(
            f"the plan takes {report.plan_bytes / 1e6:.1f} MB for a graph of {report.graph_bytes / 1e6:.1f} MB in "
            f"{report.precision} ({most / 1e6:.1f} MB would be plausible for {report.architecture}), so it does not "
            "keep the weights as the graph has them",
            where=where,
            remedy="export the model again, or use another precision or backend",
        )


def _resolve(library: Library, architecture: str | None) -> str:
    if architecture is not None and architecture in library.architectures:
        return architecture
    others = " or ".join(library.architectures)
    try:
        cuda = open_cuda()
    except BackendError as error:
        raise BackendError(
            f"without a GPU no engine can be built for {architecture or 'it'} ({error.what})",
            where=f"backend {library.name}",
            remedy=f"name an architecture out of {others}" if others else "build it on the GPU that is to run it",
        ) from error
    present = architecture_of(cuda.capability)
    cuda.close()
    if architecture not in (None, present):
        raise BackendError(
            f"no engine for {architecture} can be built on a machine whose GPU is {present}",
            where=f"backend {library.name}",
            remedy=f"build it on a GPU of that kind{f', or for {others}' if others else ''}",
        )
    return present


def _parse(library: Library, builder: Any, path: Path) -> Any:
    trt = library.trt
    # TensorRT 11 knows no other networks and may drop the flag; TensorRT 10 needs it.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(path)):
        errors = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        if not errors:
            raise library.failure("the graph cannot be read", where=path, remedy="export the model again")
        library.messages.clear()
        raise BackendError(
            f"{library.name} {library.version} does not take the graph: {'; '.join(errors)}",
            where=path,
            remedy="export the model again with this version of fgnet",
        )
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if any(length < 0 for length in tensor.shape):
            raise BackendError(
                f"the input {tensor.name} has no static shape, but {tuple(tensor.shape)}",
                where=path,
                remedy="export the model again",
            )
    return network


def _describe(error: Any) -> str:
    operator, name = error.node_operator(), error.node_name()
    text = " ".join(str(error.desc()).split())
    return f"node {name or error.node()} ({operator}): {text}" if operator else text


def _configure(library: Library, builder: Any, architecture: str, workspace: int | None, tf32: bool) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    # Without the details the inspector could not tell of what precision the engine's layers are.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # No memory is taken while the engine runs, which a CUDA graph could not record.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt, "ComputeCapability"):
        # For sm120 on its own, version 1.7 makes 536 MB of an fp32 encoder of 113 MB; for both Blackwells, 126 MB.
        wanted = {"sm120": ("sm120", "sm121")}.get(architecture, (architecture,))
        names = [name.upper() for name in wanted if name in library.architectures]
        config.num_compute_capabilities = len(names)
        taken = [config.set_compute_capability(getattr(trt.ComputeCapability, name), i) for i, name in enumerate(names)]
        # The call says False where it refuses; some versions give nothing.
        if not names or False in taken:
            raise library.failure(
                f"it builds for {', '.join(library.architectures)}, not for {architecture}",
                where=f"backend {library.name}",
                remedy="use --backend tensorrt or onnxruntime on such a GPU",
            )
    return config


def _attach_timings(library: Library, config: Any, folder: Path | None, architecture: str) -> Path | None:
    # TensorRT for RTX keeps the calls but times nothing, and would ask for a GPU.
    if folder is None or library.compiles_at_run_time:
        return None
    path = folder / f"{library.name}-{library.version}-{architecture}.timings"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    if not config.set_timing_cache(config.create_timing_cache(kept), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _build(library: Library, builder: Any, network: Any, config: Any, progress: Progress | None, where: Path) -> bytes:
    monitor = _monitor(library, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    library.messages.clear()
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise library.failure(
            "the engine cannot be built", where=where, remedy="use another precision, or --backend onnxruntime"
        )
    return bytes(memoryview(plan))


def _monitor(library: Library, progress: Progress) -> Any:
    class Monitor(library.trt.IProgressMonitor):  # type: ignore[name-defined]
        """Passes the library's phases on, from whatever thread it builds in."""

        def __init__(self) -> None:
            library.trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps[phase_name])

        def _tell(self, phase: str, done: int) -> None:
            # An exception, or Ctrl-C, must not pass through the library's C++ code.
            if self.raised is None:
                try:
                    progress(phase, done, self._steps[phase])
                except BaseException as error:
                    self.raised = error

    return Monitor()
