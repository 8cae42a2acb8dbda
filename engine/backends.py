"""Which backend runs a bundle here, and at which precision?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from fgnet.engine.bundle import Bundle, Precision
from fgnet.engine.columns import warm_up
from fgnet.engine.gpu_driver import gpu_architecture, gpu_present
from fgnet.engine.onnxruntime_cuda_runner import OnnxRuntimeCudaRunner
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.onnxruntime_session import import_onnxruntime
from fgnet.engine.openvino_runner import OpenVINORunner, computes_bf16
from fgnet.engine.runner import Runner
from fgnet.engine.tensorrt_library import open_library
from fgnet.engine.tensorrt_runner import TensorRTRunner
from fgnet.engine.torch_runner import Device, EagerNetwork, TorchRunner
from fgnet.volumes.errors import BackendError

Backend = Literal[
    "tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime", "openvino", "torch-compile", "torch"
]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

BuildNetwork = Callable[[Bundle], EagerNetwork]
"""Rebuilds the eager network of a bundle; given from outside, for the engine knows no network."""

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Told the step that a long preparation is in, how many it has done and of how many."""

_MODULES: dict[Backend, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
    "onnxruntime-tensorrt": ("onnxruntime",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch-compile": ("torch",),
    "torch": ("torch",),
}
_EXTRAS: dict[Backend, str] = {
    "tensorrt-rtx": "rtx",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "torch-compile": "train",
    "torch": "train",
}

# What each device runs, the fastest first as measured (docs/engines.md). PyTorch's own ways are for comparison.
_ON_GPU: tuple[Backend, ...] = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-tensorrt",
    "onnxruntime",
    "torch-compile",
    "torch",
)
_ON_CPU: tuple[tuple[Backend, Precision], ...] = (
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
    ("torch", "fp32"),
)


@dataclass(frozen=True)
class Choice:
    """A backend, at a precision, on a device, and why."""

    backend: Backend
    precision: Precision
    device: Device
    reason: str


def choose_backend(
    bundle: Bundle, backend: str = "auto", *, precision: Precision | None = None, device: Device | None = None
) -> Choice:
    """What to run a bundle with: the first of `choices_for`.

    Raises:
        BackendError: an unknown backend, or nothing that could run the bundle is installed.
    """
    return next(choices_for(bundle, backend, precision=precision, device=device))


def choices_for(
    bundle: Bundle, backend: str = "auto", *, precision: Precision | None = None, device: Device | None = None
) -> Iterator[Choice]:
    """What to run a bundle with, the best first; whether it starts shows when it is opened.

    `auto` takes the fastest backend that is installed for the device. A precision below fp32 is taken of itself only
    where the bundle's parity report says that its segmentations agree with eager PyTorch's.

    Args:
        bundle: what is to be run.
        backend: one of `BACKENDS`, which is then the only one, or "auto".
        precision: asked for; the backend's best one by default.
        device: asked for; a GPU where there is one by default.

    Raises:
        BackendError: an unknown backend, or nothing that could run the bundle is installed.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise BackendError(
            f"there is no backend {backend!r}", where="--backend", remedy=f"one of auto, {', '.join(BACKENDS)}"
        )
    _require_device(backend, device)
    places: list[Device] = ["cuda", "cpu"] if device is None and gpu_present() else [device or "cpu"]
    if backend != "auto":
        wanted: Backend = backend  # type: ignore[assignment]
        place: Device = "cpu" if backend == "openvino" and device is None else places[0]
        candidates = _candidates(bundle, on_gpu=place == "cuda", precision=precision)
        trusted = [half for name, half in candidates if name == wanted and _trusted(bundle, name, half)]
        fallback: Precision = "fp32" if wanted.startswith("torch") else bundle.manifest.graphs[0].precision
        best = trusted[0] if trusted else fallback
        choice = Choice(wanted, best if precision is None else precision, place, "asked for")
        _require_proof(bundle, choice)
        yield choice
        return
    found = False
    for place in places:
        for name, half in _candidates(bundle, on_gpu=place == "cuda", precision=precision):
            if (name.startswith("torch") and bundle.manifest.checkpoint is None) or not ready(name, place):
                continue
            fastest = f"the fastest installed for this {'GPU' if place == 'cuda' else 'CPU'}"
            if _trusted(bundle, name, half):
                found = True
                yield Choice(name, half, place, f"{fastest} whose affinities were proved")
            elif precision not in (None, "int8") and name.startswith("torch"):
                found = True
                yield Choice(name, half, place, f"{fastest} at this precision, which was not proved")
    if found:
        return
    if precision is not None and precision != "bf16":
        bundle.graphs(precision)
    asked = "" if precision is None else f" in {precision}"
    raise BackendError(
        f"no backend is installed that runs this bundle{asked} and was not found wanting",
        where="backend auto",
        remedy="pip install 'fgnet[cpu]' or 'fgnet[gpu]', or choose --precision fp32",
    )


def open_first(
    choices: Iterable[Choice],
    bundle: Bundle,
    build: BuildNetwork,
    *,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> tuple[Choice, Runner]:
    """The first of some choices that starts: a package that is installed may miss a library, a driver or memory.

    Args:
        choices: at least one, the best first.
        bundle: the model.
        build: as in `open_runner`, as are the others.
        threads: of one call on the CPU.
        say: told what is taken, and why what was better was not.

    Raises:
        BackendError: none starts; of the last one.
    """
    failed: BackendError | None = None
    for choice in choices:
        if failed is not None:
            say(f"it does not start: {failed}")
        say(f"{bundle.manifest.name} on {choice.backend} {choice.precision}: {choice.reason}")
        try:
            runner = open_runner(choice, bundle, build, threads=threads, say=say)
            try:
                # Some take a GPU's memory, or load libraries, at the first call only; runs need none of their own then.
                warm_up(runner)
            except BaseException:
                runner.close()
                raise
            return choice, runner
        except BackendError as error:
            failed = error
    raise failed or BackendError("there is none to open", where="backend")


def open_runner(
    choice: Choice,
    bundle: Bundle,
    build: BuildNetwork,
    *,
    threads: int | None = None,
    slots: int | None = None,
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> Runner:
    """A bundle made ready on a backend.

    Args:
        choice: the backend.
        bundle: the model.
        build: makes the eager network for PyTorch's backends; not called for others.
        threads: of one call on the CPU; all cores by default.
        slots: sections whose features are held; twice a block's by default.
        say: told what the user may have to wait for.
        progress: told how far the building of an engine is.

    Raises:
        BackendError: the backend is missing or does not take the bundle.
        BundleError: the bundle holds no graphs of the precision.
    """
    backend, precision = choice.backend, choice.precision
    if not installed(backend):
        raise BackendError(
            f"{_MODULES[backend][0]} is not installed",
            where=f"backend {backend}",
            remedy=f"pip install 'fgnet[{_EXTRAS.get(backend, 'gpu')}]'",
        )
    if backend in ("tensorrt", "tensorrt-rtx"):
        name: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt" if backend == "tensorrt" else "tensorrt-rtx"
        return TensorRTRunner(bundle, backend=name, precision=precision, slots=slots, say=say, progress=progress)
    if backend == "openvino":
        _require_device(backend, choice.device)
        return OpenVINORunner(bundle, precision=precision, threads=threads, slots=slots)
    if backend == "onnxruntime-tensorrt":
        return OnnxRuntimeCudaRunner(bundle, provider="tensorrt", precision=precision, slots=slots, say=say)
    if backend == "onnxruntime":
        if choice.device == "cuda":
            return OnnxRuntimeCudaRunner(bundle, precision=precision, slots=slots, say=say)
        return OnnxRuntimeRunner(bundle, precision=precision, threads=threads, slots=slots)
    return TorchRunner(
        build(bundle),
        bundle.manifest.patch,
        sections=bundle.manifest.sections,
        compiled=backend == "torch-compile",
        precision=precision,
        device=choice.device,
        threads=threads,
        slots=slots,
    )


def installed(backend: Backend) -> bool:
    """Whether the package that a backend needs is there."""
    return any(find_spec(module) is not None for module in _MODULES[backend])


def _candidates(bundle: Bundle, *, on_gpu: bool, precision: Precision | None) -> list[tuple[Backend, Precision]]:
    """What to try, the fastest first."""
    if on_gpu:
        return [(name, precision or _best_on_gpu(bundle, name)) for name in _ON_GPU]
    if precision is None:
        return list(_ON_CPU)
    # Those first that were measured to be fast at this precision.
    names = [name for name, half in sorted(_ON_CPU, key=lambda entry: entry[1] != precision)]
    return [(name, precision) for name in dict.fromkeys(names)]


def _best_on_gpu(bundle: Bundle, backend: Backend) -> Precision:
    """Half precision where the bundle has it: every GPU computes it at least twice as fast."""
    if backend.startswith("torch"):
        return "fp32"
    held = [graphs.precision for graphs in bundle.manifest.graphs]
    order: tuple[Precision, ...] = ("fp16", "bf16")
    return next((half for half in order if half in held), held[0])


def _require_device(backend: str, device: Device | None) -> None:
    """Refuse a device that is not there, or that the backend does not run on."""
    if device == "cuda" and backend == "openvino":
        raise BackendError("OpenVINO runs on no NVIDIA GPU", where="--device", remedy="choose --device cpu")
    if device == "cuda" and not gpu_present():
        raise BackendError(
            "there is no NVIDIA GPU here, or no driver for it", where="--device", remedy="choose --device cpu"
        )
    if device == "cpu" and backend in ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt"):
        raise BackendError(
            f"{backend} runs on NVIDIA GPUs only", where="--device", remedy="choose --device cuda or another --backend"
        )


def ready(backend: Backend, device: Device) -> bool:
    """Whether a backend is installed, and where a GPU is meant, in its variant for GPUs."""
    if not installed(backend):
        return False
    if device == "cuda" and backend.startswith("onnxruntime"):
        provider = "CUDAExecutionProvider" if backend == "onnxruntime" else "TensorrtExecutionProvider"
        return provider in import_onnxruntime().get_available_providers()
    if device == "cuda" and backend == "tensorrt-rtx":
        # It is made for the GPUs of workstations, and leaves out some of data centres, such as Hopper's.
        try:
            return gpu_architecture() in open_library("tensorrt-rtx").architectures
        except BackendError:
            return False
    if device == "cuda" and backend.startswith("torch"):
        import torch

        return bool(torch.cuda.is_available())
    return True


def _require_proof(bundle: Bundle, choice: Choice) -> None:
    """Refuse what the export found to change the segmentations."""
    for report in bundle.manifest.parity:
        asked = (report.get("backend"), report.get("precision")) == (choice.backend, choice.precision)
        if asked and not report.get("passed"):
            raise BackendError(
                f"{choice.precision} is not offered for this model: its export found it not equal to eager PyTorch"
                f" (VOI {report.get('voi')}, eager PyTorch's {report.get('voi_eager')})",
                where=f"backend {choice.backend}",
                remedy="choose --precision fp32",
            )


def _trusted(bundle: Bundle, backend: Backend, precision: Precision) -> bool:
    """Whether the bundle holds what is needed, and nothing speaks against its numbers."""
    held = [graphs.precision for graphs in bundle.manifest.graphs]
    if backend.startswith("torch"):
        return precision == "fp32"
    if backend == "openvino" and precision == "bf16":
        # OpenVINO casts fp32 graphs by itself.
        available = bool({"fp32", "bf16"} & set(held)) and installed("openvino") and computes_bf16()
    else:
        available = precision in held
    reports = [
        report
        for report in bundle.manifest.parity
        if (report.get("backend"), report.get("precision")) == (backend, precision)
    ]
    proved = all(report.get("passed") for report in reports)
    # What rounds coarsely has to have been tried; fp32, and fp16 on devices that the export had not, are trusted.
    needs_proof = precision == "int8" or (backend == "openvino" and precision == "bf16")
    return available and proved and (bool(reports) or not needs_proof)
