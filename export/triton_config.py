"""The `config.pbtxt` of one model of a Triton Inference Server repository.

It is protobuf text, of the schema `model_config.proto`. The subset that is needed here is written without protobuf: the
schema's Python package would tie an export to one range of protobuf versions, the one onnx may not want; the tests
parse what is written with that schema.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from fgnet.export.graph_file import Port

Backend = Literal["onnxruntime", "tensorrt"]
Device = Literal["gpu", "cpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
DEVICES: tuple[Device, ...] = get_args(Device)

MARK = "# Written by fgnet; write it again rather than changing it."
"""First line of every file of text, by which an earlier repository is known."""

DATA_TYPES = {
    **{f"{kind}{bits}": f"TYPE_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
}
"""Triton's names of NumPy's dtypes."""


@dataclass(frozen=True)
class ModelConfig:
    """What Triton is told about one model. Shapes are whole ones: the graphs are static, without a batch dimension.

    Attributes:
        name: of the model and of its folder.
        backend: Triton's.
        inputs: in any order.
        outputs: likewise.
        device: that instances run on.
        instances: of each device.
        parameters: plain text for whoever asks the server about the model.
    """

    name: str
    backend: Backend
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    device: Device = "gpu"
    instances: int = 1
    parameters: dict[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """The text of `config.pbtxt`."""
        lines = [
            MARK,
            f"name: {_quoted(self.name)}",
            f"backend: {_quoted(self.backend)}",
            "max_batch_size: 0",
        ]
        for kind, ports in (("input", self.inputs), ("output", self.outputs)):
            for port in ports:
                lines += _message(kind, [f"name: {_quoted(port.name)}", *_tensor(port)])
        lines += _message("instance_group", [f"count: {self.instances}", f"kind: KIND_{self.device.upper()}"])
        for key, value in self.parameters.items():
            lines += _entry("parameters", key, [f"string_value: {_quoted(value)}"])
        return "\n".join([*lines, *_message("model_warmup", self._warmup()), ""])

    def _warmup(self) -> Iterable[str]:
        yield 'name: "one call"'
        yield "batch_size: 1"
        for port in self.inputs:
            # Triton's random data are random bits: fit for gray, but as floats they are infinite or no numbers at all.
            data = "random_data" if port.dtype == "uint8" else "zero_data"
            yield from _entry("inputs", port.name, [*_tensor(port), f"{data}: true"])


def _tensor(port: Port) -> list[str]:
    return [f"data_type: {DATA_TYPES[port.dtype]}", f"dims: [ {', '.join(str(extent) for extent in port.shape)} ]"]


def _entry(name: str, key: str, value: Iterable[str]) -> list[str]:
    return _message(name, [f"key: {_quoted(key)}", *_message("value", value)])


def _message(name: str, lines: Iterable[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    """A string of protobuf text; what could end it or the line is written as octal bytes."""
    escaped = "".join(f"\\{ord(one):03o}" if one in '"\\' or ord(one) < 32 or ord(one) == 127 else one for one in text)
    return f'"{escaped}"'
