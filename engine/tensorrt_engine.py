"""A TensorRT plan made ready to run on the GPU, if it is what was asked for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgnet.engine.atomic_file import write_atomically
from fgnet.engine.bundle import Precision
from fgnet.engine.tensorrt_library import Library
from fgnet.engine.tensorrt_precision import check_engine
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine: dense, in C order.

    Attributes:
        shape: static.
        kind: the library's name of the data type, such as "HALF".
        itemsize: bytes of one element.
    """

    shape: tuple[int, ...]
    kind: str
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Of the whole tensor."""
        size = self.itemsize
        for length in self.shape:
            size *= length
        return size

    @property
    def row_bytes(self) -> int:
        """Of one element of the first axis, such as a section."""
        return self.nbytes // self.shape[0]


class LoadedEngine:
    """An engine with one execution context. The device must be current for every call.

    Args:
        library: that built the plan.
        plan: the serialized engine.
        precision: that its layers must have.
        where: the plan or graph, to name in errors.
        kernels: file that TensorRT for RTX keeps the kernels in that it compiles; None to compile them each time.

    Attributes:
        inputs: by name.
        outputs: by name.
        precisions: of the convolutions and matrix products, as far as the inspector tells.

    Raises:
        BackendError: the plan does not fit the GPU or is of another precision, or the GPU's memory is too small.
    """

    def __init__(
        self, library: Library, plan: bytes, *, precision: Precision, where: object, kernels: Path | None = None
    ) -> None:
        trt = library.trt
        self._library, self._where, self._kernels = library, where, kernels
        library.messages.clear()
        self._runtime: Any = library.make("Runtime")
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise library.failure(
                "the engine does not fit this GPU or library", where=where, remedy="delete it so that it is built again"
            )
        inspector = self._engine.create_engine_inspector()
        self.precisions = check_engine(
            inspector.get_engine_information(trt.LayerInformationFormat.JSON),
            precision,
            where,
            every=library.compiles_at_run_time,
        )
        self._cache: Any = None
        self._config: Any = None
        self._context: Any = self._make_context()
        if self._context is None:
            raise library.failure(
                "the engine cannot be made ready",
                where=where,
                remedy="close other programs on the GPU, or export the model with a smaller patch",
            )
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            kind = self._engine.get_tensor_dtype(name)
            spec = TensorSpec(tuple(self._engine.get_tensor_shape(name)), kind.name, int(kind.itemsize))
            given = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if given else self.outputs)[name] = spec

    def run(self, addresses: dict[str, int], stream: int) -> None:
        """Queue one execution.

        Args:
            addresses: of every input and output in device memory, each a multiple of 256.
            stream: to queue it on.

        Raises:
            BackendError: the library refuses.
        """
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._library.failure(f"the engine takes no address for {name}", where=self._where)
        if not self._context.execute_async_v3(stream):
            raise self._library.failure("the engine cannot be run", where=self._where)

    def capturable(self, stream: int) -> bool:
        """Whether an execution can be recorded as a CUDA graph; TensorRT itself tells only when it is tried."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def close(self) -> None:
        """Keep the kernels that were compiled, and give back the GPU's memory."""
        if self._cache is not None and self._kernels is not None:
            # Kernels that are not kept are compiled again; that must not fail what has been computed.
            with contextlib.suppress(OSError):
                serialized = self._cache.serialize()
                if serialized is not None:
                    write_atomically(self._kernels, bytes(memoryview(serialized)))
        # In this order, for each holds memory of the next.
        self._context = self._config = self._cache = self._engine = self._runtime = None

    def _make_context(self) -> Any:
        if not self._library.compiles_at_run_time:
            return self._engine.create_execution_context()
        # Nothing says that a context keeps its configuration alive.
        self._config = config = self._engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            # Kernels of another driver are refused by the library, and compiled again.
            self._cache.deserialize(self._kernels.read_bytes())
            self._library.messages.clear()
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)


def require_features(encoder: LoadedEngine, decoder: LoadedEngine, where: object) -> dict[str, TensorSpec]:
    """The features that travel from the encoder to the decoder.

    Returns:
        The decoder's inputs (z, channels, h, w) but for gray, by name.

    Raises:
        BackendError: the two do not fit together, or a section's features are no multiple of 256 bytes.
    """
    features = {name: spec for name, spec in decoder.inputs.items() if name != "gray"}
    made = {name: (spec.kind, spec.shape[1:]) for name, spec in encoder.outputs.items()}
    if made != {name: (spec.kind, spec.shape[1:]) for name, spec in features.items()}:
        raise BackendError(
            f"the encoder gives {sorted(made)}, the decoder takes {sorted(features)}, or in other types or shapes",
            where=where,
            remedy="export the model again",
        )
    for name, spec in features.items():
        # The engines address features by section, and TensorRT takes addresses that are multiples of 256.
        if spec.row_bytes % 256:
            raise BackendError(
                f"{name} of a section takes {spec.row_bytes} bytes, which is no multiple of 256",
                where=where,
                remedy="export the model with a larger patch, or use --backend onnxruntime",
            )
    return features


def require_patch(
    encoder: LoadedEngine | None,
    decoder: LoadedEngine,
    features: dict[str, TensorSpec],
    patch: Triple,
    where: object,
) -> None:
    """Hold the engines' tensors against the patch that the manifest promises.

    Raises:
        BackendError: they have other names, shapes or types.
    """
    depth, *size = patch
    found = [("affinities", decoder.outputs.get("affinities"), TensorSpec((3, *patch), "UINT8", 1))]
    if "gray" in decoder.inputs or encoder is None:
        found.append(("gray", decoder.inputs.get("gray"), TensorSpec(patch, "UINT8", 1)))
    if encoder is not None:
        gray = encoder.inputs.get("gray")
        sections = 0 if gray is None else gray.shape[0]
        found.append(("gray of the encoder", gray, TensorSpec((sections, *size), "UINT8", 1)))
    found += [(name, spec, replace(spec, shape=(depth, *spec.shape[1:]))) for name, spec in features.items()]
    for name, spec, wanted in found:
        if spec != wanted:
            raise BackendError(
                f"the engine's {name} is {spec}, for patches of {patch} it should be {wanted}",
                where=where,
                remedy="export the model again",
            )
