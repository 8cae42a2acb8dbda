"""What one graph consists of: its layers, the precision each kind of them computes in, its weights and its FLOPs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgnet.export.graph_file import (
    Port,
    dtype_name,
    graph_ports,
    item_bytes,
    read_graph,
    static_shape,
    weight_files,
)
from fgnet.volumes.errors import BundleError

if TYPE_CHECKING:
    import onnx

COUNTED = "2 x multiply-adds of Conv, ConvTranspose, Gemm and MatMul, attention included; nothing else"
"""What a FLOP is here."""

ATTENTION = "MatMul (attention)"
"""The name of a MatMul with no weights among its factors."""

_MULTIPLY_ADD = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# They multiply and add as well, but no export of ours holds them: named in the result rather than counted wrongly.
_UNCOUNTED = (
    *("Attention", "ConvInteger", "Einsum", "GRU", "If", "LSTM", "Loop", "MatMulInteger", "QLinearConv"),
    *("QLinearMatMul", "RNN", "Scan"),
)
_LAYOUT = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
# Integers of 64 bits and booleans are shapes, axes and masks.
_NOT_PARAMETERS = ("bool", "int64", "string")
# Larger tensors never say what shape another one has, and inference would copy them three times over.
_SHAPE_ELEMENTS = 1024


@dataclass(frozen=True)
class Layers:
    """The nodes of one operator.

    Attributes:
        operator: of ONNX; `ATTENTION` sets attention's products apart.
        nodes: how many.
        precisions: how many of them compute in which type: that of what they read; an integer type where all factors
            come out of a DequantizeLinear, "float16 with int8" where one of two does.
        flops: as `COUNTED` says.
    """

    operator: str
    nodes: int
    precisions: dict[str, int]
    flops: int


@dataclass(frozen=True)
class GraphInspection:
    """What one ONNX file of a bundle consists of.

    Attributes:
        file: its name.
        bytes: of the file and of those that hold weights for it.
        inputs: in the graph's order.
        outputs: likewise.
        parameters: numbers among the constants, positions and folded norms included, shapes and indices not.
        parameter_bytes: what they take up.
        layers: the nodes by operator, most FLOPs first.
        flops: of one call.
        moved: numbers that the nodes of `COUNTED` read and write in one call, each tensor once for each of them.
        uncounted: nodes, by operator, that may multiply and add but are not in `flops`.
    """

    file: str
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    parameter_bytes: int
    layers: tuple[Layers, ...]
    flops: int
    moved: int
    uncounted: dict[str, int]


def inspect_graph(path: Path) -> GraphInspection:
    """Inspect an ONNX file of static shapes.

    Raises:
        BackendError: onnx is not installed.
        BundleError: no ONNX file, shapes that are not static, or files of weights that are missing.
    """
    model = read_graph(path)
    files = [path, *(path.parent / name for name in weight_files(model))]
    try:
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise BundleError("a file of the graph's weights is missing", where=error.filename) from error
    inputs, outputs = graph_ports(model, path)
    graph = _Graph(model, path)
    layers = graph.layers()
    return GraphInspection(
        file=path.name,
        bytes=size,
        inputs=inputs,
        outputs=outputs,
        parameters=sum(math.prod(tensor.dims) for tensor in graph.parameters),
        parameter_bytes=sum(math.prod(tensor.dims) * item_bytes(tensor.data_type) for tensor in graph.parameters),
        layers=layers,
        flops=sum(entry.flops for entry in layers),
        moved=graph.moved(),
        uncounted=graph.uncounted(),
    )


class _Graph:
    """A graph whose values have known types and shapes.

    Args:
        model: as read; large weights are dropped from it.
        where: its file, for errors.
    """

    def __init__(self, model: onnx.ModelProto, where: Path) -> None:
        import onnx

        self.where = where
        attributes = (entry for node in model.graph.node if node.op_type == "Constant" for entry in node.attribute)
        tensors = [*model.graph.initializer, *(entry.t for entry in attributes if entry.HasField("t"))]
        self.parameters = [tensor for tensor in tensors if dtype_name(tensor.data_type) not in _NOT_PARAMETERS]
        for tensor in tensors:
            if math.prod(tensor.dims) > _SHAPE_ELEMENTS:
                tensor.ClearField("raw_data")
        try:
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(f"the graph makes no sense ({error})", where=where) from error
        self.nodes = graph.node
        self.maker = {output: node for node in graph.node for output in node.output}
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int, ...] | None] = {
            tensor.name: tuple(tensor.dims) for tensor in graph.initializer
        }
        self.constants = {tensor.name for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.types.setdefault(value.name, value.type.tensor_type.elem_type)
            self.shapes.setdefault(value.name, static_shape(value))
        for node in graph.node:
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)

    def layers(self) -> tuple[Layers, ...]:
        precisions: dict[str, Counter[str]] = defaultdict(Counter)
        flops: Counter[str] = Counter()
        for node in self.nodes:
            name = node.op_type
            if name == "MatMul" and not self.constants.intersection(node.input):
                name = ATTENTION
            precisions[name][self._precision(node)] += 1
            if self._counts(node):
                flops[name] += 2 * self._multiply_adds(node)
        entries = (
            Layers(name, count.total(), dict(count.most_common()), flops[name]) for name, count in precisions.items()
        )
        return tuple(sorted(entries, key=lambda entry: (-entry.flops, -entry.nodes, entry.operator)))

    def moved(self) -> int:
        """Numbers read and written by what multiplies and adds."""
        products = (node for node in self.nodes if self._counts(node))
        return sum(math.prod(self._shape(name)) for node in products for name in (*node.input, *node.output) if name)

    def uncounted(self) -> dict[str, int]:
        """Nodes that may multiply and add in a way that is not known here."""
        return dict(
            Counter(
                node.op_type for node in self.nodes if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx")
            )
        )

    def _counts(self, node: onnx.NodeProto) -> bool:
        """Whether it multiplies and adds; what depends on constants only is computed once, when the graph is loaded."""
        return node.op_type in _MULTIPLY_ADD and not self.constants.issuperset(node.output)

    def _precision(self, node: onnx.NodeProto) -> str:
        if not node.input:
            return self._type(node.output[0])
        if node.op_type not in _MULTIPLY_ADD:
            # The first input of Where is its condition.
            return self._type(node.input[1 if node.op_type == "Where" else 0])
        stored = [self._stored(name) for name in node.input[:2]]
        computed = self._type(node.input[0])
        quantised = [name for name in stored if name is not None]
        if len(quantised) == len(stored):
            return quantised[0]
        return f"{computed} with {quantised[0]}" if quantised else computed

    def _stored(self, name: str) -> str | None:
        """The type that a value had before a DequantizeLinear, or None if it comes out of none."""
        while (node := self.maker.get(name)) is not None and node.op_type in _LAYOUT:
            name = node.input[0]
        return self._type(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else None

    def _type(self, name: str) -> str:
        return dtype_name(self.types.get(name, 0))

    def _shape(self, name: str) -> Sequence[int]:
        if (shape := self.shapes.get(name)) is None:
            raise BundleError(
                f"the shape of {name} is not static, so what it costs cannot be told",
                where=self.where,
                remedy="export the model again",
            )
        return shape

    def _multiply_adds(self, node: onnx.NodeProto) -> int:
        """Padding counts as if it were computed, as PyTorch's counter has it."""
        left, right, output = (self._shape(name) for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            return math.prod(output) * math.prod(right[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(left) * math.prod(right[1:])
        if node.op_type == "Gemm":
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            return math.prod(output) * left[0 if transposed else 1]
        return math.prod(output) * left[-1]
