"""What an ONNX file of a bundle takes and gives, and where its weights lie; the weights themselves stay on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgnet.volumes.errors import BackendError, BundleError

if TYPE_CHECKING:
    import onnx

_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a graph or comes out of it.

    Attributes:
        name: in the graph.
        dtype: as NumPy names it, or "bfloat16".
        shape: static.
        bytes: of the whole tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without the weights that lie in files beside it.

    Raises:
        BackendError: onnx is not installed.
        BundleError: no ONNX file.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            "the package onnx is not installed, and graphs cannot be read without it",
            where=path,
            remedy="pip install 'fgnet[train]'",
        ) from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(f"the graph cannot be read ({error})", where=path, remedy="export the model again") from error
    if not model.graph.node:
        raise BundleError("the file holds no graph", where=path, remedy="export the model again")
    return model


def graph_ports(model: onnx.ModelProto, where: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a graph, in its order.

    Raises:
        BundleError: a shape is not static.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    return _ports(inputs, where), _ports(model.graph.output, where)


def _ports(values: Iterable[onnx.ValueInfoProto], where: Path) -> tuple[Port, ...]:
    ports = []
    for value in values:
        tensor = value.type.tensor_type
        shape = static_shape(value)
        if shape is None:
            raise BundleError(f"the shape of {value.name} is not static", where=where, remedy="export the model again")
        size = math.prod(shape) * item_bytes(tensor.elem_type)
        ports.append(Port(value.name, dtype_name(tensor.elem_type), shape, size))
    return tuple(ports)


def static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """The extents of a value, or None where one is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(dim.WhichOneof("value") != "dim_value" for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def dtype_name(element: int) -> str:
    """The name of an ONNX element type as NumPy has it, such as "float16"."""
    import onnx

    name = str(onnx.TensorProto.DataType.Name(element)).lower()
    return _NAMES.get(name, name)


def item_bytes(element: int) -> int:
    """Bytes of one element of an ONNX element type."""
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def weight_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names, relative to the graph's folder, of the files that hold weights outside the graph, in order and once."""
    import onnx

    located = {
        entry.value: None
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(located)
