"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgnet.engine.bundle import Bundle, Graphs, Precision
from fgnet.engine.device import Buffer
from fgnet.engine.host_runner import HostRunner
from fgnet.engine.openvino_depthwise import join_depthwise
from fgnet.volumes.errors import BackendError

_TELEMETRY = "openvino_telemetry"


@dataclass(frozen=True)
class _Compiled:
    """A graph, and its ports by the names that its file gives them.

    Compiling may give a port more names, where a conversion before an output falls away: the first of them is any one.
    """

    model: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class OpenVINORunner(HostRunner):
    """A bundle's graphs compiled by OpenVINO.

    `bf16` runs the bundle's bf16 graphs, with their fp32 islands, or, where it has none, the fp32 graphs, which
    OpenVINO casts by itself. What `int8` leaves unquantised is computed in bfloat16 too, where the CPU has it.
    Depthwise convolutions over z are put together to 3-D ones (`openvino_depthwise`), and features are kept with their
    channels last, the layout in which its convolutions work.

    Args:
        bundle: what to run.
        precision: fp32, bf16, fp16 (stored as such, computed in FP32) or int8; the bundle's default.
        threads: of one call; all cores that this process may use by default.
        slots: sections whose features are held; twice a block's by default.

    Raises:
        BackendError: openvino is not installed, does not take the graphs, or the CPU has no bfloat16.
        BundleError: the bundle has no graphs of this precision.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        slots: int | None = None,
    ) -> None:
        self._ov = _import_openvino()
        self._core = self._ov.Core()
        held = {graphs.precision for graphs in bundle.manifest.graphs}
        graphs = bundle.graphs("fp32" if precision == "bf16" and "bf16" not in held else precision)
        chosen: str = precision or graphs.precision
        if chosen == "bf16" and not computes_bf16(self._core):
            raise BackendError(
                "this CPU computes no bfloat16", where="backend openvino", remedy="choose --precision fp32"
            )
        self._half = chosen == "bf16" or (chosen == "int8" and computes_bf16(self._core))
        self.threads = threads or len(os.sched_getaffinity(0))
        paths = [bundle.path / name for name in (graphs.decoder, graphs.encoder) if name is not None]
        # Each is compiled by one thread for the most part.
        with ThreadPoolExecutor(len(paths)) as pool:
            decoder, *rest = pool.map(self._compile, paths)
        encoder = rest[0] if rest else None
        sections = 0 if encoder is None else bundle.manifest.sections
        super().__init__("openvino", chosen, bundle.manifest.patch, sections, slots)
        self._features = self._allocate(bundle, graphs, decoder, encoder)
        self._decoding: Any = decoder.model.create_infer_request()
        self._encoding: Any = None if encoder is None else encoder.model.create_infer_request()
        self._reads_gray = "gray" in decoder.inputs

    def features(self) -> list[Any]:
        """Of all slots, as arrays."""
        return [tensor.data for tensor in self._features.values()]

    def encode(self, slot: int) -> None:
        """Compute the features of the sections in the slots from `slot` on."""
        assert self._encoding is not None  # noqa: S101 - nothing is encoded where `sections` is 0
        self._set(self._encoding, "gray", self.gray[slot : slot + self.sections])
        self._set_features(self._encoding, slot, self.sections)
        self._encoding.infer()

    def decode(self, slot: int, affinities: Buffer) -> None:
        """Write the affinities (3, z, y, x) uint8 of the block whose sections lie in the slots from `slot` on."""
        if self._reads_gray:
            self._set(self._decoding, "gray", self.block(slot))
        self._set(self._decoding, "affinities", affinities.host)
        self._set_features(self._decoding, slot, self.patch[0])
        self._decoding.infer()

    def describe(self) -> dict[str, Any]:
        """Backend, version, device, precision and threads."""
        return {
            "backend": self.name,
            "version": str(self._ov.__version__).split("-")[0],
            "device": "cpu",
            "precision": self.precision,
            "arithmetic": f"{self.precision} and bf16" if self.precision == "int8" and self._half else self.precision,
            "threads": self.threads,
        }

    def close(self) -> None:
        """Give back the compiled models' memory too."""
        super().close()
        self._decoding = self._encoding = None
        self._features.clear()

    def _compile(self, path: Path) -> _Compiled:
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._half else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # Fewer threads than cores leave some to others, which would be bound to the same first cores.
            "ENABLE_CPU_PINNING": self.threads >= len(os.sched_getaffinity(0)),
        }
        try:
            model = self._core.read_model(path)
            names = [[port.any_name for port in ports] for ports in (model.inputs, model.outputs)]
            join_depthwise(model)
            compiled = self._core.compile_model(self._placed(model), "CPU", options)
            inputs, outputs = (
                dict(zip(known, ports, strict=True))
                for known, ports in zip(names, (compiled.inputs, compiled.outputs), strict=True)
            )
            return _Compiled(compiled, inputs, outputs)
        except Exception as error:  # OpenVINO raises RuntimeError and its own classes alike
            told = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise BackendError(
                f"OpenVINO does not take the graph ({told[-1] if told else error.__class__.__name__})",
                where=path,
                remedy="export the model again with this version, or choose another --precision",
            ) from error

    def _placed(self, model: Any) -> Any:
        """The model with its features' layout and type in memory chosen; what converts them becomes part of it."""
        processor = self._ov.preprocess.PrePostProcessor(model)
        for port, place in [
            *((port, processor.input(port.any_name)) for port in model.inputs),
            *((port, processor.output(port.any_name)) for port in model.outputs if port.any_name != "affinities"),
        ]:
            if port.any_name == "gray":
                continue
            place.model().set_layout(self._ov.Layout("NCHW"))
            place.tensor().set_layout(self._ov.Layout("NHWC"))
            if self._half:
                place.tensor().set_element_type(self._ov.Type.bf16)
        return processor.build()

    def _allocate(
        self, bundle: Bundle, graphs: Graphs, decoder: _Compiled, encoder: _Compiled | None
    ) -> dict[str, Any]:
        depth, *size = self.patch
        given = {} if encoder is None else _ports(encoder.outputs)
        inputs = _ports(decoder.inputs)
        promised = {name: (kind, [depth, *shape[1:]]) for name, (kind, shape) in given.items()}
        if "gray" in inputs:
            promised["gray"] = ("u8", [depth, *size])
        expected = [
            (inputs, promised),
            (_ports(decoder.outputs), {"affinities": ("u8", [3, depth, *size])}),
            *([] if encoder is None else [(_ports(encoder.inputs), {"gray": ("u8", [self.sections, *size])})]),
        ]
        for found, wanted in expected:
            if found != wanted:
                raise BackendError(
                    f"the graphs have {found} where the bundle promises {wanted}",
                    where=bundle.path / graphs.decoder,
                    remedy="export the model again",
                )
        for name, (kind, shape) in given.items():
            if shape[0] != self.sections or -1 in shape:
                raise BackendError(
                    f"the feature {name} is {kind} of shape {shape}",
                    where=bundle.path / str(graphs.encoder),
                    remedy="export the model again",
                )
        ports = {} if encoder is None else encoder.outputs
        tensors = {
            name: self._ov.Tensor(port.element_type, [self.slots, *port.shape[1:]]) for name, port in ports.items()
        }
        for tensor in tensors.values():
            tensor.data[...] = 0
        return tensors

    def _set(self, request: Any, name: str, array: Any) -> None:
        """Let a request read or write an array where it lies; OpenVINO does not hold it."""
        request.set_tensor(name, self._ov.Tensor(array, shared_memory=True))

    def _set_features(self, request: Any, slot: int, count: int) -> None:
        for name, tensor in self._features.items():
            shape = list(tensor.shape)
            view = self._ov.Tensor(tensor, [slot, 0, 0, 0], [slot + count, *shape[1:]])
            request.set_tensor(name, view)


def computes_bf16(core: Any | None = None) -> bool:
    """Whether OpenVINO computes bfloat16 on this CPU."""
    core = core or _import_openvino().Core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _ports(ports: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    return {
        name: (
            port.element_type.get_type_name(),
            [-1 if extent.is_dynamic else extent.get_length() for extent in port.partial_shape],
        )
        for name, port in ports.items()
    }


def _import_openvino() -> Any:
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise BackendError(
            "openvino is not installed", where="backend openvino", remedy="pip install 'fgnet[cpu]'"
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO without the package by which every import of it is reported to its makers, from a forked process.

    Nobody was asked whether a run may be reported. And the fork may copy a lock that another thread holds, such as that
    of stdin: then it never ends, and neither does this process, which waits for it.
    """
    known = sys.modules.get(_TELEMETRY)
    # As if it were not installed, which OpenVINO is prepared for.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if known is not None:
            sys.modules[_TELEMETRY] = known
