from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")

from onnx import TensorProto, helper  # noqa: E402

from fgnet.export.graph_inspection import ATTENTION, GraphInspection, Layers, inspect_graph  # noqa: E402
from fgnet.volumes.errors import BundleError  # noqa: E402

FLOAT, HALF, UINT8, INT8, INT64 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT64,
)


def constant(name: str, shape: Sequence[int], dtype: int = FLOAT) -> Any:
    values = np.random.default_rng(0).integers(0, 9, shape).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return onnx.numpy_helper.from_array(values, name)


def model(
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    constants: Sequence[Any] = (),
) -> Any:
    takes, gives = (
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in values.items()]
        for values in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "graph", takes, gives, list(constants))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(made, full_check=True)
    return made


def inspected(folder: Path, *args: Any, **kwargs: Any) -> GraphInspection:
    onnx.save(model(*args, **kwargs), str(folder / "graph.onnx"))
    return inspect_graph(folder / "graph.onnx")


def layers(graph: GraphInspection) -> dict[str, Layers]:
    return {entry.operator: entry for entry in graph.layers}


CONV = (
    [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2)],
    {"x": (FLOAT, (3, 8, 16, 16))},
    {"y": (FLOAT, (3, 6, 8, 8))},
    [constant("w", (6, 4, 3, 3))],
)
TRANSPOSED = (
    [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])],
    {"x": (FLOAT, (3, 8, 16, 16))},
    {"y": (FLOAT, (3, 6, 32, 32))},
    [constant("w", (8, 6, 2, 2))],
)
GEMM = (
    [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)],
    {"x": (FLOAT, (5, 7))},
    {"y": (FLOAT, (7, 11))},
    [constant("w", (11, 5))],
)
LINEAR = (
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    {"x": (HALF, (2, 3, 7, 5))},
    {"y": (HALF, (2, 3, 7, 11))},
    [constant("w", (5, 11), HALF)],
)


@pytest.mark.parametrize(
    ("graph", "flops"),
    [
        (CONV, 2 * (3 * 6 * 8 * 8) * (4 * 3 * 3)),
        (TRANSPOSED, 2 * (3 * 8 * 16 * 16) * (6 * 2 * 2)),
        (GEMM, 2 * 7 * 11 * 5),
        (LINEAR, 2 * 2 * 3 * 7 * 11 * 5),
    ],
    ids=["conv", "transposed", "gemm", "linear"],
)
def test_flops_are_two_for_each_multiply_add(tmp_path: Path, graph: Any, flops: int) -> None:
    found = inspected(tmp_path, *graph)
    assert found.flops == flops
    assert [entry.flops for entry in found.layers] == [flops]
    weight = graph[3][0]
    assert found.parameters == math.prod(weight.dims)
    assert found.parameter_bytes == len(weight.raw_data)


def test_products_of_activations_are_attention_and_those_with_weights_are_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["w"], ["half"], to=HALF),
        helper.make_node("Transpose", ["half"], ["weight"], perm=[1, 0]),
        helper.make_node("MatMul", ["weight", "weight2"], ["folded"]),
        helper.make_node("MatMul", ["x", "folded"], ["q"]),
        helper.make_node("Transpose", ["x"], ["k"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "k"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["wide"], to=FLOAT),
        helper.make_node("Softmax", ["wide"], ["y"]),
    ]
    found = inspected(
        tmp_path,
        nodes,
        {"x": (HALF, (6, 4))},
        {"y": (FLOAT, (6, 6))},
        [constant("w", (4, 4)), constant("weight2", (4, 4), HALF)],
    )
    by_name = layers(found)
    # What is made of constants alone is not computed again in every call.
    assert (by_name["MatMul"].nodes, by_name["MatMul"].flops) == (2, 2 * 6 * 4 * 4)
    assert (by_name[ATTENTION].nodes, by_name[ATTENTION].flops) == (1, 2 * 6 * 6 * 4)
    assert (by_name[ATTENTION].precisions, by_name["MatMul"].precisions) == ({"float16": 1}, {"float16": 2})
    assert by_name["Softmax"].precisions == {"float32": 1}


def quantised(name: str, stored: str, made: list[str]) -> list[Any]:
    """Nodes that dequantise a stored value, and what it becomes on its way to where it is used."""
    nodes = [helper.make_node("DequantizeLinear", [stored, "scale"], [f"{name}_0"])]
    for i, operator in enumerate(made):
        nodes.append(helper.make_node(operator, [f"{name}_{i}"], [f"{name}_{i + 1}"]))
    nodes[-1].output[0] = name
    return nodes


@pytest.mark.parametrize(
    ("nodes", "left", "precision"),
    [
        ([helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]), *quantised("a", "q", [])], "a", "int8"),
        ([], "x", "float32 with int8"),
    ],
    ids=["both factors", "weights only"],
)
def test_a_layer_is_int8_where_all_factors_were_stored_so(
    tmp_path: Path, nodes: list[Any], left: str, precision: str
) -> None:
    found = inspected(
        tmp_path,
        [*nodes, *quantised("b", "w", ["Transpose"]), helper.make_node("MatMul", [left, "b"], ["y"])],
        {"x": (FLOAT, (6, 4))},
        {"y": (FLOAT, (6, 5))},
        [constant("w", (5, 4), INT8), constant("scale", ()), constant("zero", (), INT8)],
    )
    by_name = layers(found)
    assert by_name["MatMul"].precisions == {precision: 1}
    assert by_name["MatMul"].flops == 2 * 6 * 5 * 4
    assert by_name["DequantizeLinear"].precisions.keys() == {"int8"}
    # The weights, their scale and the zero point; a byte each but for the scale.
    assert (found.parameters, found.parameter_bytes) == (22, 25)


def test_shapes_and_indices_are_no_parameters_and_a_condition_no_precision(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant("", (2, 3), HALF)),
        helper.make_node("Reshape", ["c", "shape"], ["flat"]),
        helper.make_node("Where", ["mask", "x", "flat"], ["y"]),
    ]
    shape = onnx.numpy_helper.from_array(np.array([6], np.int64), "shape")
    inputs = {"mask": (TensorProto.BOOL, (6,)), "x": (HALF, (6,))}
    found = inspected(tmp_path, nodes, inputs, {"y": (HALF, (6,))}, [shape])
    assert (found.parameters, found.parameter_bytes, found.flops) == (6, 12, 0)
    assert {entry.operator: entry.precisions for entry in found.layers} == {
        name: {"float16": 1} for name in ("Constant", "Reshape", "Where")
    }


def test_what_multiplies_and_adds_in_ways_not_known_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")]
    found = inspected(tmp_path, nodes, {"x": (FLOAT, (6, 4))}, {"y": (FLOAT, (6, 6))})
    assert (found.flops, found.uncounted) == (0, {"Einsum": 1})


def test_weights_beside_the_graph_count_as_those_within(tmp_path: Path) -> None:
    nodes = LINEAR[0]
    made = model(nodes, {"x": (FLOAT, (3, 64))}, {"y": (FLOAT, (3, 48))}, [constant("w", (64, 48))])
    onnx.save(made, str(tmp_path / "within.onnx"))
    onnx.save(made, str(tmp_path / "g.onnx"), save_as_external_data=True, location="g.onnx.data", size_threshold=0)
    within, beside = inspect_graph(tmp_path / "within.onnx"), inspect_graph(tmp_path / "g.onnx")
    assert beside.bytes == sum((tmp_path / name).stat().st_size for name in ("g.onnx", "g.onnx.data"))
    assert replace(beside, file=within.file, bytes=within.bytes) == within
    assert within.parameters == 64 * 48
    (tmp_path / "g.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"g\.onnx\.data: a file of the graph's weights is missing"):
        inspect_graph(tmp_path / "g.onnx")


def _dynamic(path: Path) -> None:
    nodes, _, _, constants = LINEAR
    onnx.save(model(nodes, {"x": (HALF, ("n", 5))}, {"y": (HALF, ("n", 11))}, constants), str(path))


def _unknown_inside(path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["found"], to=FLOAT),
        helper.make_node("MatMul", ["w", "found"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["y"], keepdims=0),
    ]
    onnx.save(model(nodes, {"x": (FLOAT, (2, 2))}, {"y": (FLOAT, ())}, [constant("w", (3, 2))]), str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_dynamic, "the shape of x is not static"),
        (_unknown_inside, "the shape of found is not static"),
        (lambda path: path.write_bytes(b"\x07no graph"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "holds no graph"),
        (lambda path: None, "cannot be read"),
    ],
    ids=["dynamic", "dynamic inside", "garbage", "empty", "missing"],
)
def test_what_cannot_be_inspected_is_named(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "graph.onnx")
    with pytest.raises(BundleError, match=message) as caught:
        inspect_graph(tmp_path / "graph.onnx")
    assert "graph.onnx" in str(caught.value)
    assert caught.value.remedy
