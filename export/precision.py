"""Half precision written into a graph: fp16 or bf16 arithmetic with fp32 islands, which strongly typed backends obey.

What is halved is decided by a node's place, not its name:

- convolutions and matrix products are halved, all of them: they take the time, and their sums accumulate in fp32 on
  the hardware that runs them in half precision;
- islands stay fp32: layer norms, whose squares overflow fp16 where a trunk has outlier channels of a few hundred (the
  features are then wrong by 69 %, and by 0.3 % with the island); softmax; the residual sums of the trunk (a tenth to a
  sixth less error); and what stands before the first product and after the last one (a third less in the affinities);
- what only moves or picks numbers stays fp32 between islands, and is halved elsewhere.

A trunk whose sums exceed 65504 needs bf16: no island saves what reads these sums. Elsewhere fp16 is ten times closer.

The weights are stored once, in the type that reads them, and the features that travel between the two graphs are half
precision themselves, half as many bytes to keep.

The converters of the field were tried on these graphs. Those of onnxconverter-common and ONNX Runtime know no bf16, and
leave a graph that starts with a cast of gray mistyped or unsorted; AutoCast of NVIDIA's ModelOpt does all of it, but
pins versions of onnx and onnxruntime-gpu that exclude the ones used here, and halves residual sums and the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from fgnet.volumes.errors import BackendError

Half = Literal["fp16", "bf16"]
_TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SUFFIX: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ISLANDS = frozenset({"LayerNormalization", "Softmax"})
# They give back numbers that they were given: nothing overflows or is rounded in them.
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Identity", "Max", "Pad", "ReduceMax", "Relu", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
# Conv and Round take bf16 from here on; the operators of these graphs mean the same as in the opset of the export.
_BF16_OPSET = 22


@dataclass(frozen=True)
class Islands:
    """What stays fp32 beside the islands by operator.

    Attributes:
        operators: types of nodes.
        residual_sums: additions whose result a layer norm reads, or another such sum.
        ends: what stands before the first product and after the last one.
    """

    operators: frozenset[str] = ISLANDS
    residual_sums: bool = True
    ends: bool = True


def convert(model: onnx.ModelProto, precision: Half, islands: Islands | None = None) -> onnx.ModelProto:
    """The graph with half precision written into it.

    Args:
        model: an fp32 graph of static shapes; it is not changed.
        precision: "fp16" or "bf16". A bf16 graph is of opset 22 at least.
        islands: what stays fp32, unless it is what was measured to be best.

    Returns:
        The graph: fp32 inputs and outputs became half precision, those of other types are as they were.

    Raises:
        BackendError: a weight is too large for fp16.
    """
    converted = _upgraded(model) if precision == "bf16" else _copy(model)
    _Conversion(converted, _TYPES[precision], islands or Islands()).run()
    converted = shape_inference.infer_shapes(converted, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import version_converter

    held = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return _copy(model) if held >= _BF16_OPSET else version_converter.convert_version(model, _BF16_OPSET)


class _Conversion:
    """One graph on its way: which type each node computes in, then the casts and weights that follow from it."""

    def __init__(self, model: onnx.ModelProto, half: int, islands: Islands) -> None:
        graph = model.graph
        # The types that the exporter noted are about to be wrong.
        del graph.value_info[:]
        self.graph = graph
        self.half = half
        self.islands = islands
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        typed = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        values = (*typed.value_info, *typed.input, *typed.output)
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.weights = {w.name: w for w in graph.initializer}
        self.floats |= {w.name for w in graph.initializer if w.data_type == TensorProto.FLOAT}
        self.outputs = {value.name for value in graph.output}
        # What the rewritten graph consists of: the type of each tensor, its weights and its nodes.
        self.held: dict[str, int] = dict.fromkeys(self.floats, int(TensorProto.FLOAT))
        self.stored: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def run(self) -> None:
        """Rewrite the graph in place."""
        kept = {id(node) for node in self._kept()}
        for value in (*self.graph.input, *self.graph.output):
            if value.name in self.floats:
                value.type.tensor_type.elem_type = self.half
                self.held[value.name] = self.half
        for node in self.graph.node:
            own = TensorProto.FLOAT if id(node) in kept else self.half
            self._read(node, own)
            self.nodes.append(node)
            self._write(node, own)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        others = [w for w in self.weights.values() if w.name in read and w.name not in self.stored]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*others, *self.stored.values()])

    def _read(self, node: onnx.NodeProto, own: int) -> None:
        """Give a node inputs of the type that it computes in."""
        for i in self._of_own_type(node):
            name = node.input[i]
            if name in self.weights and name in self.floats:
                node.input[i] = self._weight(name, own)
            elif name in self.floats and self.held[name] != own:
                node.input[i] = self._cast(name, own)

    def _write(self, node: onnx.NodeProto, own: int) -> None:
        """Note the type of a node's results; those that leave the graph leave it as half precision."""
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = own
        for i, name in enumerate(node.output):
            if name in self.floats and name in self.outputs and own != self.half:
                node.output[i] = f"{name}_{_SUFFIX[own]}"
                self.held[node.output[i]] = own
                self.nodes.append(helper.make_node("Cast", [node.output[i]], [name], f"{name}_cast", to=self.half))
            elif name in self.floats:
                self.held[name] = own

    def _kept(self) -> list[onnx.NodeProto]:
        """The nodes that compute in fp32."""
        nodes = list(self.graph.node)
        kept = {id(node) for node in nodes if node.op_type in self.islands.operators}
        kept |= self._residual_sums() if self.islands.residual_sums else set()
        kept |= self._ends() if self.islands.ends else set()
        # The largest set of moves from nodes that are kept to such nodes: a cast there and back would round.
        moves = [node for node in nodes if node.op_type in _MOVES and id(node) not in kept]
        kept |= {id(node) for node in moves}
        while True:
            halved = {id(node) for node in moves if id(node) in kept and not self._between(node, kept)}
            if not halved:
                return [node for node in nodes if id(node) in kept]
            kept -= halved

    def _between(self, node: onnx.NodeProto, kept: set[int]) -> bool:
        sources = [name for name in node.input if name in self.floats and name not in self.weights]
        produced = all(name in self.producers and id(self.producers[name]) in kept for name in sources)
        readers = [reader for name in node.output for reader in self.readers.get(name, [])]
        return produced and any(id(reader) in kept for reader in readers)

    def _residual_sums(self) -> set[int]:
        """Sums that a layer norm reads, directly or as a term of another such sum."""
        found: set[int] = set()
        open_nodes = [node for node in self.graph.node if node.op_type == "LayerNormalization"]
        while open_nodes:
            node = open_nodes.pop()
            for name in node.input[:1] if node.op_type == "LayerNormalization" else node.input:
                source = self._origin(name)
                if source is None or source.op_type != "Add" or id(source) in found:
                    continue
                # Positions are added to embeddings once, and are weights: no long sum, and stored as the others are.
                if not any(term in self.weights for term in source.input):
                    found.add(id(source))
                    open_nodes.append(source)
        return found

    def _origin(self, name: str) -> onnx.NodeProto | None:
        """The node that computed a tensor, looking through those that moved it."""
        source = self.producers.get(name)
        while source is not None and source.op_type in _MOVES - {"Concat", "Max"}:
            source = self.producers.get(source.input[0])
        return source

    def _ends(self) -> set[int]:
        """What no product and no feature precedes, and what no product and no feature follows."""
        after = {value.name for value in self.graph.input if value.name in self.floats}
        before = {value.name for value in self.graph.output if value.name in self.floats}
        starts: set[int] = set()
        stops: set[int] = set()
        for node in self.graph.node:
            if node.op_type in PRODUCTS or any(name in after for name in node.input):
                after.update(node.output)
            else:
                starts.add(id(node))
        for node in reversed(self.graph.node):
            if node.op_type in PRODUCTS or any(name in before for name in node.output):
                before.update(node.input)
            else:
                stops.add(id(node))
        return starts | stops

    def _of_own_type(self, node: onnx.NodeProto) -> list[int]:
        """The inputs that have to be of the type that the node computes in, by the operator's definition."""
        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.input))]
        return [i for i, entry in enumerate(formal) if entry.type_str == schema.inputs[0].type_str]

    def _weight(self, name: str, own: int) -> str:
        """The name of a weight in one type; a second copy exists only of what both types read, which is scalars."""
        weight = self.weights[name]
        if own == TensorProto.FLOAT:
            self.stored[name] = weight
            return name
        key = f"{name}_{_SUFFIX[own]}"
        if key not in self.stored:
            array = numpy_helper.to_array(weight)
            with np.errstate(over="ignore", under="ignore"):
                halved = array.astype(helper.tensor_dtype_to_np_dtype(own))
            if not np.isfinite(halved.astype(np.float32)).all() and np.isfinite(array).all():
                raise BackendError(
                    f"a weight of {np.abs(array).max():.3g} is too large for {_SUFFIX[own]}",
                    where=name,
                    remedy="export with --precision bf16 or fp32",
                )
            self.stored[key] = numpy_helper.from_array(halved, key)
        return key

    def _cast(self, name: str, own: int) -> str:
        key = f"{name}_{_SUFFIX[own]}"
        if key not in self.held:
            self.held[key] = own
            self.nodes.append(helper.make_node("Cast", [name], [key], f"{key}_cast", to=own))
        return key
