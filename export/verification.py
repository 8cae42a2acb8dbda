"""Every backend that can run a bundle here, compared with eager PyTorch on the same gray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.backends import BACKENDS, Backend, Choice, installed, open_runner, ready
from fgnet.engine.bundle import Bundle, Decoding, Precision
from fgnet.engine.gpu_driver import gpu_present
from fgnet.engine.openvino_runner import computes_bf16
from fgnet.engine.tensorrt_library import TENSORRT_NAMES
from fgnet.engine.torch_runner import Device, EagerNetwork, TorchRunner
from fgnet.export.finite import count_not_finite
from fgnet.export.parity import Parity, Reference
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple
from fgnet.volumes.grid import mirror_pad
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

# PyTorch's own ways are what is compared with.
COMPARED: tuple[Backend, ...] = tuple(name for name in BACKENDS if not name.startswith("torch"))


def reference_of(
    network: EagerNetwork,
    patch: Triple,
    stride: Triple,
    decoding: Decoding,
    gray: npt.NDArray[np.uint8] | None = None,
    labels: npt.NDArray[Any] | None = None,
) -> Reference:
    """What eager PyTorch makes of a crop of gray.

    Args:
        network: trained.
        patch: (z, y, x) voxels of a block.
        stride: voxels between blocks.
        decoding: recommended decoder settings.
        gray: (z, y, x) uint8; synthetic neuropil by default, two blocks along z and x, with its labels.
        labels: true labels of gray, (z, y, x), if they are known.

    Raises:
        BackendError: the network's affinities are not finite.
    """
    # Two blocks along z, so that features are reused, and two along x, so that blocks are blended.
    depth, rows, columns = (patch[0] + stride[0], patch[1], patch[2] + stride[2])
    if gray is None:
        made = make_neuropil(NeuropilOptions(shape=(depth, rows, columns), voxel_size=(10.0, 10.0, 10.0), seed=0))
        gray, labels = made.raw, made.labels
    # A side that is shorter than a patch's is mirrored, as fgnet-run does; what is mirrored has no label.
    missing = [max(side - extent, 0) for extent, side in zip(gray.shape, patch, strict=True)]
    if any(missing):
        gray = mirror_pad(gray, [extent + more for extent, more in zip(gray.shape, missing, strict=True)])
        labels = None if labels is None else np.pad(labels, [(0, more) for more in missing])
    with closing(TorchRunner(network, patch, device="cpu")) as eager:
        return Reference(eager.run, np.ascontiguousarray(gray), patch, stride, decoding, labels)


def verify(
    bundle: Bundle,
    network: EagerNetwork,
    reference: Reference,
    backends: Sequence[Backend] | None,
    say: Callable[[str], None],
    seconds: Callable[[], float],
) -> list[Parity]:
    """Compare every backend that can run here.

    Args:
        bundle: what they run.
        network: eager, for backends that need it.
        reference: what eager PyTorch makes of the gray.
        backends: to compare; every installed one by default.
        say: told what is being compared, and what cannot be.
        seconds: a clock.

    Raises:
        BackendError: a backend that was asked for is missing, or does not take the graphs.
    """
    counts: dict[Precision, int] = {}
    reports = []
    for choice in choices(bundle, backends, say):
        precision = choice.precision
        source = next((g for g in bundle.manifest.graphs if g.precision == precision), bundle.manifest.graphs[0])
        say(f"comparing {choice.backend} {precision}")
        if source.precision not in counts:
            # All of them: what one block holds says nothing of the others, and the affinities would hide it.
            blocks = (np.ascontiguousarray(reference.gray[box.slices]) for box in reference.boxes)
            counts[source.precision] = 0 if source.precision == "bf16" else count_not_finite(bundle, source, blocks)
        try:
            runner = open_runner(choice, bundle, lambda _: network, say=say, slots=bundle.manifest.patch[0] * 2)
        except BackendError as error:
            if backends or choice.device == "cpu":
                raise
            say(f"{choice.backend} {precision} is not compared: {error}")
            continue
        try:
            reports.append(reference.compare(runner, counts[source.precision], seconds))
        finally:
            runner.close()
    return reports


def choices(bundle: Bundle, backends: Sequence[Backend] | None, say: Callable[[str], None]) -> list[Choice]:
    """What can be compared here, of what was asked for."""
    found = []
    gpu = gpu_present()
    for backend in backends or [name for name in COMPARED if installed(name)]:
        if backend.startswith("torch"):
            continue
        needs_gpu = backend in (*TENSORRT_NAMES, "onnxruntime-tensorrt")
        if needs_gpu and not gpu:
            if backends:
                say(f"{backend} is not compared: it needs a GPU; fgnet-export --verify does it where there is one")
            continue
        # A GPU does not make a package one for GPUs: ONNX Runtime for CPUs is compared on the CPU.
        on_gpu = gpu and backend != "openvino" and ready(backend, "cuda")
        if needs_gpu and not on_gpu and not backends:
            continue
        device: Device = "cuda" if on_gpu or needs_gpu else "cpu"
        found += [
            Choice(backend, precision, device, "to be compared")
            for precision in _precisions(bundle, backend, on_gpu=device == "cuda")
        ]
    return found


def _precisions(bundle: Bundle, backend: Backend, *, on_gpu: bool) -> list[Precision]:
    held: list[Precision] = [graphs.precision for graphs in bundle.manifest.graphs]
    if on_gpu:
        return held
    if backend == "openvino":
        # It casts fp32 graphs by itself.
        own: list[Precision] = [precision for precision in held if precision != "bf16"]
        return [*own, "bf16"] if {"fp32", "bf16"} & set(held) and installed("openvino") and computes_bf16() else own
    return [precision for precision in held if precision != "bf16"]
