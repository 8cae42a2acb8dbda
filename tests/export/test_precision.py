"""Half precision in the graph: types, islands, bytes, and numbers close to fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
pytest.importorskip("onnxslim", reason="the export needs the extra fgnet[train]")
onnxruntime = pytest.importorskip("onnxruntime", reason="running graphs needs the extra fgnet[cpu]")

from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

from fgnet.export.precision import PRODUCTS, Half, Islands, convert  # noqa: E402
from fgnet.volumes.errors import BackendError  # noqa: E402

Array = npt.NDArray[Any]
Graphs = dict[str, ModelProto]

HALVES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {w.name: w.data_type for w in inferred.initializer}


def weight_bytes(model: ModelProto) -> int:
    floats = (TensorProto.FLOAT, *HALVES.values())
    return sum(numpy_helper.to_array(w).nbytes for w in model.graph.initializer if w.data_type in floats)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_products_are_half_and_islands_are_not(graphs: Graphs, part: str, precision: Half) -> None:
    model = convert(graphs[part], precision)
    found = types(model)
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            assert {found[name] for name in (*node.input, *node.output) if name} == {HALVES[precision]}, node.name
        if node.op_type in ("LayerNormalization", "Softmax", "Round"):
            assert {found[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name


@pytest.mark.parametrize("precision", HALVES)
def test_residual_sums_that_layer_norms_read_stay_fp32(graphs: Graphs, precision: Half) -> None:
    model = convert(graphs["encoder"], precision)
    found = types(model)
    sums = [node for node in model.graph.node if node.op_type == "Add" and found[node.output[0]] == TensorProto.FLOAT]
    norms = sum(node.op_type == "LayerNormalization" for node in model.graph.node)
    assert 0 < norms - 2 <= len(sums)
    without = convert(graphs["encoder"], precision, Islands(residual_sums=False))
    found = types(without)
    assert all(found[n.output[0]] == HALVES[precision] for n in without.graph.node if n.op_type == "Add")


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_features_are_half_and_gray_and_affinities_stay_uint8(graphs: Graphs, part: str, precision: Half) -> None:
    before, after = graphs[part].graph, convert(graphs[part], precision).graph
    for old, new in zip((*before.input, *before.output), (*after.input, *after.output), strict=True):
        was, now = old.type.tensor_type.elem_type, new.type.tensor_type.elem_type
        assert (old.name, old.type.tensor_type.shape) == (new.name, new.type.tensor_type.shape)
        assert now == (HALVES[precision] if was == TensorProto.FLOAT else TensorProto.UINT8)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_are_stored_once_in_half_the_bytes(graphs: Graphs, part: str, precision: Half) -> None:
    model = convert(graphs[part], precision)
    ratio = weight_bytes(model) / weight_bytes(graphs[part])
    assert 0.5 <= ratio < 0.53
    weights = {weight.name for weight in model.graph.initializer}
    assert not any(node.op_type == "Cast" and node.input[0] in weights for node in model.graph.node)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_no_cast_undoes_another(graphs: Graphs, part: str, precision: Half) -> None:
    model = convert(graphs[part], precision)
    moves = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Split", "Pad"}
    producers = {name: node for node in model.graph.node for name in node.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    for node in casts:
        source = producers.get(node.input[0])
        while source is not None and source.op_type in moves:
            source = producers.get(source.input[0])
        if source is not None and source.op_type == "Cast":
            # Gray becomes fp32 and then half precision: nothing is undone.
            assert types(model)[source.input[0]] == TensorProto.UINT8, node.name


def test_fp16_runs_in_onnx_runtime_and_is_close_to_fp32(affinities_of: Any, graphs: Graphs, tissue: Array) -> None:
    exact = affinities_of(graphs, tissue)
    halved = {part: convert(model, "fp16") for part, model in graphs.items()}
    difference = np.abs(affinities_of(halved, tissue) - exact)
    assert exact.std() > 10
    assert difference.max() <= 3
    assert difference.mean() < 0.2


def test_the_given_graph_is_not_changed(graphs: Graphs) -> None:
    before = graphs["decoder"].SerializeToString(deterministic=True)
    convert(graphs["decoder"], "bf16")
    assert graphs["decoder"].SerializeToString(deterministic=True) == before


def one_product(weight: float) -> ModelProto:
    """A graph x (1, 4) -> y = norm(x + x @ w)."""
    weights = {"w": np.full((4, 4), weight, np.float32), "scale": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["x", "p"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "scale"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "one", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_sum_beyond_the_range_of_fp16_survives_in_its_island() -> None:
    x = np.array([[60000, 100, -200, 300]], np.float16)
    results = {}
    for name, islands in (("with", Islands()), ("without", Islands(operators=frozenset(), residual_sums=False))):
        model = convert(one_product(0.25), "fp16", islands)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results[name] = session.run(None, {"x": x})[0]
        found = types(model)
        assert found["s"] == (TensorProto.FLOAT if name == "with" else TensorProto.FLOAT16)
    assert np.isfinite(results["with"]).all()
    assert np.allclose(results["with"], [[1.732, -0.574, -0.583, -0.568]], atol=0.02)


def test_a_weight_too_large_for_fp16_is_refused_with_a_remedy() -> None:
    with pytest.raises(BackendError, match=r"w: a weight of 1e\+05 is too large for fp16 .*bf16"):
        convert(one_product(1e5), "fp16")
    assert convert(one_product(1e5), "bf16").graph.node
