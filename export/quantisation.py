"""Eight bits written into a graph: what the large convolutions and matrix products read and weigh becomes int8.

Pairs of QuantizeLinear and DequantizeLinear stand before these products only; biases, sums, norms, softmax and the
features between the graphs stay fp32. Weights are int8 for each output channel, activations int8 for each tensor, both
symmetric, which TensorRT asks for; the scales are the largest magnitudes on calibration patches.

The pairs are our own, not those of ONNX Runtime's `quantize_static`: that one quantises a tensor for all its readers,
pooling and residual sums too, and symmetric graphs of that kind came out wrong in OpenVINO 2026.4. ONNX Runtime only
measures the ranges here. Left out by measurement: products of fewer than 8 channels, which are the first layer (wrong
in OpenVINO as well) and the head (no time to gain), and depthwise convolutions (more error, hardly faster).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fgnet.volumes.errors import BackendError

LEAST_PATCHES = 4
"""Fewer do not show the ranges that tissue has: membranes, organelles, vessels and bare cytoplasm."""

_FEWEST_CHANNELS = 8
_LARGEST = 127
# A tensor of zeros alone has some scale, too.
_TINIEST = 1e-8


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product with constant weights.

    Attributes:
        node: in the graph.
        weight: its weights.
        axis: of the weights along which output channels lie.
        channels: input and output channels of each group.
    """

    node: onnx.NodeProto
    weight: NDArray[Any]
    axis: int
    channels: tuple[int, int]


def products(model: onnx.ModelProto) -> list[Product]:
    """The convolutions and matrix products of a graph that int8 pays for."""
    weights = {weight.name: weight for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in weights:
            continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        weight = numpy_helper.to_array(weights[node.input[1]])
        if node.op_type == "Conv":
            axis, channels = 0, (weight.shape[1], weight.shape[0] // attributes.get("group", 1))
        else:
            axis = 0 if attributes.get("transB") else weight.ndim - 1
            channels = (weight.size // weight.shape[axis], weight.shape[axis])
        if weight.ndim >= 2 and min(channels) >= _FEWEST_CHANNELS:
            found.append(Product(node, weight, axis, channels))
    return found


def quantise(model: onnx.ModelProto, calibration: Iterable[Mapping[str, NDArray[Any]]]) -> onnx.ModelProto:
    """The graph with int8 written into it.

    Args:
        model: an fp32 graph of static shapes; it is not changed.
        calibration: inputs of the graph by name, one set for each patch of a real volume; at least `LEAST_PATCHES`.

    Returns:
        The graph, with the same inputs and outputs.

    Raises:
        BackendError: too few patches, patches that do not fit the graph, or ONNX Runtime is not installed.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    del graph.value_info[:]
    chosen = products(quantised)
    scales = _activation_scales(quantised, [product.node.input[0] for product in chosen], calibration)
    by_node = {id(product.node): product for product in chosen}
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, onnx.TensorProto] = {weight.name: weight for weight in graph.initializer}
    made: set[str] = set()
    for node in graph.node:
        product = by_node.get(id(node))
        if product is not None:
            activation, weight = node.input[0], node.input[1]
            if activation not in made:
                made.add(activation)
                nodes += _pair(activation, scales[activation], weights)
            if weight not in made:
                made.add(weight)
                nodes.append(_stored(weight, product, weights))
            node.input[0], node.input[1] = f"{activation}_dequantised", f"{weight}_dequantised"
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [weight for name, weight in weights.items() if name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    quantised = shape_inference.infer_shapes(quantised, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _pair(name: str, scale: float, weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes that round an activation to eight bits."""
    around = [f"{name}_scale", f"{name}_zero"]
    weights[around[0]] = numpy_helper.from_array(np.array(scale, np.float32), around[0])
    weights[around[1]] = numpy_helper.from_array(np.array(0, np.int8), around[1])
    rounded, back = f"{name}_quantised", f"{name}_dequantised"
    return [
        helper.make_node("QuantizeLinear", [name, *around], [rounded], f"{name}_quantise"),
        helper.make_node("DequantizeLinear", [rounded, *around], [back], f"{name}_dequantise"),
    ]


def _stored(name: str, product: Product, weights: dict[str, onnx.TensorProto]) -> onnx.NodeProto:
    """The node that reads weights which are stored as int8."""
    weight, axis = product.weight, product.axis
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(others, keepdims=True), _TINIEST) / _LARGEST
    stored, *around = names = [f"{name}_quantised", f"{name}_scale", f"{name}_zero"]
    weights[stored] = numpy_helper.from_array(np.rint(weight / scale).astype(np.int8), stored)
    weights[around[0]] = numpy_helper.from_array(scale.ravel().astype(np.float32), around[0])
    weights[around[1]] = numpy_helper.from_array(np.zeros(scale.size, np.int8), around[1])
    return helper.make_node("DequantizeLinear", names, [f"{name}_dequantised"], f"{name}_dequantise", axis=axis)


def _activation_scales(
    model: onnx.ModelProto, names: Sequence[str], calibration: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, float]:
    """The scale of each tensor, from its largest magnitude on all patches."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "int8 needs ONNX Runtime to calibrate", where="calibration", remedy="pip install 'fgnet[cpu]'"
        ) from error
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    unique = list(dict.fromkeys(names))
    # The graph reduces the tensors itself: together they would not fit into memory.
    del probe.graph.output[:]
    for i, name in enumerate(unique):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"magnitude_{i}"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"magnitude_{i}"], [f"largest_{i}"], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(f"largest_{i}", TensorProto.FLOAT, []))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    largest = np.zeros(len(unique))
    patches = 0
    for patch in calibration:
        _require_fit(patch, inputs, patches)
        found = session.run(None, {name: patch[name] for name in inputs}) if unique else []
        largest = np.maximum(largest, np.array(found, np.float64).reshape(-1))
        patches += 1
    if patches < LEAST_PATCHES:
        raise BackendError(
            f"int8 needs at least {LEAST_PATCHES} calibration patches, {patches} were given",
            where="calibration",
            remedy="calibrate on a larger volume, or on patches that overlap",
        )
    if not np.isfinite(largest).all():
        raise BackendError(
            f"{unique[int(np.argmin(np.isfinite(largest)))]} is not finite on a calibration patch",
            where="calibration",
            remedy="check the patches and the checkpoint",
        )
    return {name: max(float(value), _TINIEST) / _LARGEST for name, value in zip(unique, largest, strict=True)}


def _require_fit(patch: Mapping[str, NDArray[Any]], inputs: Mapping[str, onnx.TypeProto.Tensor], index: int) -> None:
    for name, expected in inputs.items():
        shape = tuple(size.dim_value for size in expected.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(expected.elem_type)
        given = patch.get(name)
        if given is None or given.shape != shape or given.dtype != dtype:
            found = "is missing" if given is None else f"is {given.dtype} of shape {given.shape}"
            raise BackendError(
                f"calibration patch {index} does not fit the graph: {name} {found}",
                where="calibration",
                remedy=f"give {name} as {dtype} of shape {shape}",
            )
