"""A bundle's graphs in ONNX Runtime sessions, checked against what the manifest promises."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import Bundle, Graphs
from fgnet.volumes.errors import BackendError

# By ONNX Runtime's name of a type: numpy's, and what its binding calls it. bfloat16 has no numpy type: its bits travel
# as uint16, and 16 is its number in ONNX.
_TYPES: dict[str, tuple[Any, Any]] = {
    "tensor(float)": (np.float32, np.float32),
    "tensor(float16)": (np.float16, np.float16),
    "tensor(bfloat16)": (np.uint16, 16),
}


@dataclass(frozen=True)
class Feature:
    """A tensor that travels from the encoder to the decoder, for one section.

    Attributes:
        dtype: of its values; bfloat16 as the uint16 of its bits.
        element: the same, as ONNX Runtime's binding wants to be told.
        shape: (channels, h, w).
    """

    dtype: npt.DTypeLike
    element: Any
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of one section."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "onnxruntime is not installed",
            where="backend onnxruntime",
            remedy="pip install 'fgnet[cpu]' or 'fgnet[gpu]'",
        ) from error
    return onnxruntime


def open_session(path: Path, providers: Sequence[Any], threads: int) -> Any:
    """An InferenceSession of one graph.

    Args:
        path: of the ONNX file.
        providers: execution providers, each a name or a pair of name and options, the preferred one first.
        threads: of one call.

    Raises:
        BackendError: ONNX Runtime does not take the graph, or falls back from the first provider.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    _share_memory()
    # Encoder and decoder take turns: what one has freed serves the other.
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A thread that looks for work after its last call takes its core from the other graph, and from the stages beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in (available := onnxruntime.get_available_providers()):
        raise BackendError(
            f"this ONNX Runtime has no {wanted}, only {', '.join(available)}",
            where="backend onnxruntime",
            remedy="pip install 'fgnet[gpu]' in place of onnxruntime, or run on the CPU",
        )
    if wanted != "CPUExecutionProvider":
        _load_gpu_libraries(tensorrt=wanted.startswith("Tensorrt"))
    try:
        # Where a provider does not start it would print that, and silently try again without its options.
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        if wanted != "CPUExecutionProvider":
            raise BackendError(
                f"ONNX Runtime's {wanted} does not take the graph, or does not start ({first_line(error)})",
                where=path,
                remedy="check the GPU's driver and libraries, or choose another --backend or --precision",
            ) from error
        raise BackendError(
            f"ONNX Runtime does not take the graph ({first_line(error)})",
            where=path,
            remedy="export the model again with this version, or choose another --precision",
        ) from error
    if wanted not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime could not start {wanted} and would run on {', '.join(session.get_providers())}",
            where="backend onnxruntime",
            remedy="check the GPU's driver and the CUDA libraries, or run on the CPU",
        )
    return session


def first_line(error: Exception) -> str:
    """What an error of ONNX Runtime says, without the trace that may follow."""
    return str(error).strip().partition("\n")[0]


@cache
def _load_gpu_libraries(*, tensorrt: bool) -> None:
    """Load libraries that pip installs where ONNX Runtime does not look: CUDA's, cuDNN's and TensorRT's."""
    onnxruntime = import_onnxruntime()
    if hasattr(onnxruntime, "preload_dlls"):
        # It prints what it misses; where that matters the session will say so.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if tensorrt:
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            import_module("tensorrt")


@cache
def _share_memory() -> None:
    """Let all sessions of this process take the CPU's memory from one arena."""
    onnxruntime = import_onnxruntime()
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), None)


def features_of(bundle: Bundle, graphs: Graphs, encoder: Any | None, decoder: Any) -> dict[str, Feature]:
    """What travels between two sessions.

    Raises:
        BackendError: a graph does not take or give what the manifest promises.
    """
    depth, rows, columns = bundle.manifest.patch
    sections = bundle.manifest.sections

    def ports(values: Any) -> dict[str, tuple[str, tuple[Any, ...]]]:
        return {value.name: (value.type, tuple(value.shape)) for value in values}

    given: dict[str, tuple[str, tuple[Any, ...]]] = {}
    if encoder is not None:
        taken, given = ports(encoder.get_inputs()), ports(encoder.get_outputs())
        _require(bundle.path / str(graphs.encoder), taken, {"gray": ("tensor(uint8)", (sections, rows, columns))})
    path = bundle.path / graphs.decoder
    inputs = ports(decoder.get_inputs())
    promised = {name: (kind, (depth, *shape[1:])) for name, (kind, shape) in given.items()}
    if "gray" in inputs:
        promised["gray"] = ("tensor(uint8)", (depth, rows, columns))
    _require(path, inputs, promised)
    _require(path, ports(decoder.get_outputs()), {"affinities": ("tensor(uint8)", (3, depth, rows, columns))})
    for name, (kind, shape) in given.items():
        if kind not in _TYPES or not all(isinstance(extent, int) for extent in shape) or shape[0] != sections:
            raise BackendError(
                f"the feature {name} is {kind} of shape {list(shape)}",
                where=bundle.path / str(graphs.encoder),
                remedy="export the model again",
            )
    return {name: Feature(*_TYPES[kind], shape[1:]) for name, (kind, shape) in given.items()}


def _require(path: Path, found: dict[str, Any], promised: dict[str, Any]) -> None:
    if found != promised:
        told = [
            ", ".join(f"{name} {kind}{list(shape)}" for name, (kind, shape) in p.items()) for p in (found, promised)
        ]
        raise BackendError(
            f"the graph has {told[0]} where the bundle promises {told[1]}",
            where=path,
            remedy="export the model again",
        )
