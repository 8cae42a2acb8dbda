"""int8 in the graph: where the pairs stand, and numbers close to fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
pytest.importorskip("onnxslim", reason="the export needs the extra fgnet[train]")
onnxruntime = pytest.importorskip("onnxruntime", reason="running graphs needs the extra fgnet[cpu]")

from onnx import ModelProto, TensorProto, numpy_helper  # noqa: E402

from fgnet.export.quantisation import LEAST_PATCHES, products, quantise  # noqa: E402
from fgnet.volumes.errors import BackendError  # noqa: E402

Array = npt.NDArray[Any]
Graphs = dict[str, ModelProto]
Calibration = dict[str, list[dict[str, Array]]]


@pytest.fixture(scope="module")
def calibration(graphs: Graphs, tissue: Array, features_of: Any) -> Calibration:
    """Inputs of both graphs for a few patches of synthetic tissue."""
    patches = [np.ascontiguousarray(np.roll(tissue, 16 * i, axis=2)[:, :: (-1) ** i]) for i in range(LEAST_PATCHES)]
    sections = graphs["encoder"].graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return {
        "encoder": [{"gray": patch[:sections]} for patch in patches],
        "decoder": [features_of(graphs, patch) for patch in patches],
    }


@pytest.fixture(scope="module")
def quantised(graphs: Graphs, calibration: Calibration) -> Graphs:
    return {part: quantise(graphs[part], calibration[part]) for part in graphs}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_chosen_products_read_int8_that_is_symmetric(graphs: Graphs, quantised: Graphs, part: str) -> None:
    graph = quantised[part].graph
    producers = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    named = {node.name: node for node in graph.node}
    chosen = products(graphs[part])
    assert len(chosen) > 3
    for product in chosen:
        activation, weight = (producers[name] for name in named[product.node.name].input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert producers[activation.input[0]].op_type == "QuantizeLinear"
        stored, scale = weights[weight.input[0]], weights[weight.input[1]]
        assert stored.dtype == np.int8
        assert scale.shape == (product.weight.shape[product.axis],)
        assert not weights[weight.input[2]].any()
        assert not weights[activation.input[2]].any()
        assert product.node.input[1] not in weights


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_first_layer_head_and_depthwise_convolutions_stay_fp32(quantised: Graphs, part: str) -> None:
    graph = quantised[part].graph
    weights = {w.name: w for w in graph.initializer}
    plain = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    shapes = [tuple(weights[node.input[1]].dims) for node in plain]
    assert shapes
    assert all(min(shape[:2]) < 8 for shape in shapes)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_inputs_and_outputs_are_those_of_the_fp32_graph(graphs: Graphs, quantised: Graphs, part: str) -> None:
    before, after = graphs[part].graph, quantised[part].graph
    assert [v.SerializeToString() for v in before.input] == [v.SerializeToString() for v in after.input]
    assert [(v.name, v.type.tensor_type) for v in before.output] == [(v.name, v.type.tensor_type) for v in after.output]


def test_a_tensor_read_by_sums_as_well_reaches_them_unrounded(quantised: Graphs) -> None:
    graph = quantised["decoder"].graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.op_type for node in graph.node if rounded & set(node.input)}
    assert readers <= {"Conv", "Gemm", "MatMul"}


def test_int8_runs_in_onnx_runtime_and_is_close_to_fp32(
    affinities_of: Any, graphs: Graphs, quantised: Graphs, tissue: Array
) -> None:
    exact = affinities_of(graphs, tissue)
    difference = np.abs(affinities_of(quantised, tissue) - exact)
    assert exact.std() > 10
    assert 0 < difference.mean() < 4


def test_scales_come_from_all_patches(graphs: Graphs, calibration: Calibration) -> None:
    name = products(graphs["encoder"])[0].node.input[0]
    quiet = [{"gray": np.full_like(patch["gray"], 128)} for patch in calibration["encoder"]]
    scales = [
        next(
            float(numpy_helper.to_array(w))
            for w in quantise(graphs["encoder"], patches).graph.initializer
            if w.name == f"{name}_scale"
        )
        for patches in (quiet, [*quiet, *calibration["encoder"]], calibration["encoder"])
    ]
    assert scales[0] != scales[2]
    assert scales[1] == pytest.approx(max(scales[0], scales[2]))


def test_too_few_patches_are_refused_with_the_number_needed(graphs: Graphs, calibration: Calibration) -> None:
    with pytest.raises(BackendError, match=f"at least {LEAST_PATCHES} calibration patches, 2 were given"):
        quantise(graphs["encoder"], iter(calibration["encoder"][:2]))


@pytest.mark.parametrize("change", ["shape", "dtype", "name"])
def test_a_patch_that_does_not_fit_is_refused_with_what_is_expected(
    graphs: Graphs, calibration: Calibration, change: str
) -> None:
    gray = calibration["encoder"][0]["gray"]
    patch = {"shape": {"gray": gray[:, :32]}, "dtype": {"gray": gray.astype(np.float32)}, "name": {"x": gray}}[change]
    with pytest.raises(BackendError, match=r"patch 1 does not fit the graph: gray .*give gray as uint8"):
        quantise(graphs["encoder"], [calibration["encoder"][0], patch])


def test_the_given_graph_is_not_changed(graphs: Graphs, calibration: Calibration) -> None:
    before = graphs["encoder"].SerializeToString(deterministic=True)
    quantise(graphs["encoder"], calibration["encoder"])
    assert graphs["encoder"].SerializeToString(deterministic=True) == before
    assert all(w.data_type != TensorProto.INT8 for w in graphs["encoder"].graph.initializer)
