"""TensorRT engines of a bundle, built beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgnet.engine.backends import Backend
from fgnet.engine.bundle import Bundle, Engine
from fgnet.engine.cuda_memory import architecture_of, open_cuda
from fgnet.engine.gpu_driver import gpu_present
from fgnet.engine.tensorrt_builder import build_engine
from fgnet.engine.tensorrt_library import TENSORRT_NAMES

# For whom no GPU is at hand and none was named: Ada, the most common generation of workstation GPUs.
DEFAULT_ARCHITECTURE = "sm89"


def build_plans(
    bundle: Bundle, backends: Sequence[Backend] | None, architectures: Sequence[str], say: Callable[[str], None]
) -> tuple[Engine, ...]:
    """Build the engines of every precision and architecture, into the bundle's folder.

    Args:
        bundle: its graphs are written.
        backends: asked for; engines are built only where one of TensorRT's is named.
        architectures: to build for; that of the GPU present, or `DEFAULT_ARCHITECTURE`, by default.
        say: told what is being built, how far it is, and for which GPU.

    Raises:
        BackendError: a library is missing or refuses a graph, or an engine is not of its precision.
    """
    wanted = [name for name in TENSORRT_NAMES if name in (backends or ())]
    if not wanted:
        return ()
    if not architectures:
        architectures = [_architecture_here()] if gpu_present() else [DEFAULT_ARCHITECTURE]
        if not gpu_present():
            say(
                f"no GPU here: engines are built for {DEFAULT_ARCHITECTURE}; other GPUs build theirs at the first start"
            )
    engines = []
    for backend in wanted:
        for architecture in architectures:
            for graphs in bundle.manifest.graphs:
                for graph in graphs.files:
                    say(f"building {graph} with {backend} for {architecture}")
                    plan, report = build_engine(
                        bundle.path / graph,
                        backend=backend,
                        precision=graphs.precision,
                        architecture=architecture,
                        progress=_Told(say),
                    )
                    name = f"{graph.removesuffix('.onnx')}.{backend}.{report.architecture}.plan"
                    (bundle.path / name).write_bytes(plan)
                    say(f"{name}: {len(plan) / 1e6:.1f} MB in {report.seconds:.0f} s")
                    engines.append(Engine(backend, report.version, report.architecture, graphs.precision, graph, name))
    return tuple(engines)


class _Told:
    """Says a build's outer step each time it has gone a quarter of its way."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ("", -1)

    def __call__(self, step: str, done: int, of: int) -> None:
        quarter = 4 * done // of if of else 0
        if of >= 100 and (step, quarter) != self._last:
            self._last = (step, quarter)
            self._say(f"  {step}: {done} of {of}")


def _architecture_here() -> str:
    cuda = open_cuda()
    try:
        return architecture_of(cuda.capability)
    finally:
        cuda.close()
