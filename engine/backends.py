"""Which backend runs a bundle here?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from fgnet.engine.bundle import Bundle
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.runner import Runner
from fgnet.engine.torch_runner import EagerNetwork, TorchRunner
from fgnet.volumes.errors import BackendError

Backend = Literal["auto", "onnxruntime", "torch"]

BuildNetwork = Callable[[Bundle], EagerNetwork]
"""Rebuilds the eager network of a bundle; given from outside, for the engine knows no network."""


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken."""

    backend: Literal["onnxruntime", "torch"]
    reason: str


def choose_backend(wanted: Backend, bundle: Bundle) -> Choice:
    """The backend to use; `auto` takes the fastest that is installed.

    Raises:
        BackendError: nothing that could run the bundle is installed.
    """
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if find_spec("onnxruntime") is not None:
        return Choice("onnxruntime", "the fastest installed backend for the CPU")
    if find_spec("torch") is not None and bundle.manifest.checkpoint is not None:
        return Choice("torch", "onnxruntime is not installed")
    raise BackendError(
        "no backend is installed", where="backend auto", remedy="pip install 'fgnet[cpu]' or 'fgnet[gpu]'"
    )


def open_runner(choice: Choice, bundle: Bundle, build: BuildNetwork, *, threads: int | None = None) -> Runner:
    """A bundle made ready on a backend.

    Args:
        choice: the backend.
        bundle: the model.
        build: makes the eager network for the backend `torch`; not called for others.
        threads: of one call; all cores by default.

    Raises:
        BackendError: the backend is missing or does not take the bundle.
    """
    if choice.backend == "onnxruntime":
        return OnnxRuntimeRunner(bundle, threads=threads)
    return TorchRunner(build(bundle), bundle.manifest.patch, threads=threads)
