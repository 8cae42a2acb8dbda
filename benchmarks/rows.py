"""Which ways of running a bundle are measured: every backend and precision that is there, and PyTorch's own ways."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fgnet.engine.backends import BACKENDS, Backend, installed
from fgnet.engine.bundle import PRECISIONS, Bundle, Precision
from fgnet.engine.gpu_driver import gpu_present
from fgnet.engine.openvino_runner import computes_bf16
from fgnet.engine.torch_runner import Device
from fgnet.volumes.errors import BackendError

_OURS: dict[Device, tuple[Backend, ...]] = {
    "cpu": ("openvino", "onnxruntime"),
    "cuda": ("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime"),
}
_PYTORCH: tuple[Backend, ...] = ("torch", "torch-compile")
_MAX_AUTOTUNE = "torch-compile-max-autotune"
"""A row that is only measured where it is asked for: trying all kernels takes minutes."""
_AUTOCAST: dict[Device, Precision] = {"cpu": "bf16", "cuda": "fp16"}


@dataclass(frozen=True)
class Row:
    """One way of running a bundle.

    Attributes:
        name: of the way, in words; no two rows have the same.
        backend: that runs it.
        precision: of its arithmetic.
        device: that it runs on.
        whole: whether the whole network runs on every block, as in PyTorch's own ways; else each section is encoded
            once, as in fgnet-run.
        keeps_memory: whether the C library is told not to give freed memory back. Out of the box it gives it back
            after every large activation, and every call of PyTorch on the CPU then waits for fresh pages. Rows that
            are not whole run as in fgnet-run, which does it anyway.
        mode: of torch.compile; its default one, or "max-autotune".
        batch: blocks of one call; whole networks only, for the graphs of a bundle are of one block.
    """

    name: str
    backend: Backend
    precision: Precision
    device: Device
    whole: bool = False
    keeps_memory: bool = False
    mode: str | None = None
    batch: int = 1

    @property
    def is_reference(self) -> bool:
        """Whether this is eager FP32 as it comes, which all others are held to."""
        return self.is_eager and not self.keeps_memory and self.batch == 1

    @property
    def is_eager(self) -> bool:
        """Whether this is eager FP32, with or without memory kept."""
        return self.whole and self.backend == "torch" and self.precision == "fp32"

    @property
    def asked_as(self) -> str:
        """What --backend names it by."""
        return self.backend if self.mode is None else f"{self.backend}-{self.mode}"


@dataclass(frozen=True)
class RowPlan:
    """What is measured.

    Attributes:
        rows: the reference first, if there is one.
        no_reference: why PyTorch's rows are missing; None where they are not.
    """

    rows: tuple[Row, ...]
    no_reference: str | None


def plan_rows(
    bundle: Bundle,
    *,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    device: Device | None = None,
    batches: Sequence[int] = (1,),
) -> RowPlan:
    """The rows for a bundle on this machine.

    Args:
        bundle: the model.
        backends: to measure; all that are installed by default. Eager FP32 is measured whatever they are, if it can be.
        precisions: to measure; all that the bundle offers by default.
        device: where; on a GPU if there is one by default.
        batches: blocks of one call, for PyTorch's rows; each is a row of its own. 1 is measured whatever they are.

    Raises:
        BackendError: a backend or precision that is unknown, not installed or not for the device, or no row is left.
        BundleError: the bundle lacks graphs of a precision, or the checkpoint that PyTorch needs.
    """
    place: Device = device or ("cuda" if gpu_present() else "cpu")
    for backend in backends:
        _require_backend(backend, place)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise BackendError(
                f"there is no precision {precision!r}", where="--precision", remedy=f"one of {', '.join(PRECISIONS)}"
            )
    no_reference = _no_reference(bundle)
    if no_reference is not None and set(backends) & {*_PYTORCH, _MAX_AUTOTUNE}:
        # Raises for the checkpoint; PyTorch itself was found above, as it was asked for.
        _ = bundle.checkpoint
    pytorch = () if no_reference else tuple(_pytorch(place))
    larger = [_batched(row, batch) for batch in dict.fromkeys(batches) if batch > 1 for row in pytorch]
    offered = [*pytorch, *larger, *_ours(bundle, place)]
    rows = [
        row
        for row in offered
        if row.is_eager
        or (
            (row.asked_as in backends if backends else row.mode is None)
            and (not precisions or row.precision in precisions)
        )
    ]
    _require_rows(bundle, rows, backends, precisions, place)
    return RowPlan(tuple(rows), no_reference)


def _pytorch(device: Device) -> Iterator[Row]:
    """PyTorch's own ways, the reference first; on a CPU each with memory kept as well."""
    ways: tuple[tuple[Backend, Precision, str, str | None], ...] = (
        ("torch", "fp32", "eager", None),
        ("torch", _AUTOCAST[device], "autocast", None),
        ("torch-compile", "fp32", "torch.compile", None),
        ("torch-compile", "fp32", "torch.compile max-autotune", "max-autotune"),
    )
    for backend, precision, way, mode in ways:
        yield Row(f"torch {precision} ({way})", backend, precision, device, whole=True, mode=mode)
        if device == "cpu" and platform.libc_ver()[0] == "glibc":
            name = f"torch {precision} ({way}, memory kept)"
            yield Row(name, backend, precision, device, whole=True, keeps_memory=True, mode=mode)


def _batched(row: Row, batch: int) -> Row:
    return replace(row, name=f"{row.name[:-1]}, batch {batch})", batch=batch)


def _ours(bundle: Bundle, device: Device) -> Iterator[Row]:
    """Each installed backend with each precision that the bundle offers it."""
    held = [graphs.precision for graphs in bundle.manifest.graphs]
    for backend in _OURS[device]:
        if not installed(backend):
            continue
        precisions = list(held)
        if device == "cpu":
            # OpenVINO casts the fp32 graphs by itself; ONNX Runtime computes no bfloat16 on a CPU.
            precisions = [precision for precision in held if precision != "bf16"]
            if backend == "openvino" and "fp32" in held and computes_bf16():
                precisions.append("bf16")
        yield from (Row(f"{backend} {precision}", backend, precision, device) for precision in precisions)


def _no_reference(bundle: Bundle) -> str | None:
    if bundle.manifest.checkpoint is None:
        return "the bundle holds no checkpoint, so PyTorch has nothing to run (export it with its checkpoint)"
    if not installed("torch"):
        return "PyTorch is not installed (pip install 'fgnet[train]')"
    return None


def _require_backend(backend: str, device: Device) -> None:
    named = "torch-compile" if backend == _MAX_AUTOTUNE else backend
    known = next((name for name in BACKENDS if name == named), None)
    if known is None:
        raise BackendError(
            f"there is no backend {backend!r}",
            where="--backend",
            remedy=f"one of {', '.join((*BACKENDS, _MAX_AUTOTUNE))}",
        )
    if known not in (*_OURS[device], *_PYTORCH):
        raise BackendError(
            f"{backend} does not run on the device {device}",
            where="--backend",
            remedy=f"one of {', '.join((*_OURS[device], *_PYTORCH))}",
        )
    if not installed(known):
        extra = "train" if known in _PYTORCH else "cpu" if device == "cpu" else "gpu"
        extra = "rtx" if known == "tensorrt-rtx" else extra
        raise BackendError(f"{backend} is not installed", where="--backend", remedy=f"pip install 'fgnet[{extra}]'")


def _require_rows(
    bundle: Bundle, rows: Sequence[Row], backends: Sequence[str], precisions: Sequence[str], device: Device
) -> None:
    """Refuse what was asked for and is in no row, rather than leave it out without a word."""
    for precision in precisions:
        if not any(row.precision == precision for row in rows):
            bundle.graphs(precision)  # type: ignore[arg-type]
            raise BackendError(f"nothing here runs it on the device {device}", where=f"--precision {precision}")
    for backend in backends:
        if not any(row.asked_as == backend for row in rows):
            asked = f" at {', '.join(precisions)}" if precisions else ""
            raise BackendError(f"it does not run this bundle{asked} here", where=f"--backend {backend}")
    if not rows:
        raise BackendError(
            "no backend that could run this bundle is installed",
            where="--backend",
            remedy="pip install 'fgnet[cpu]' or 'fgnet[gpu]'",
        )
