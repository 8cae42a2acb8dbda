"""Engines are built for real, with TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fgnet.engine import tensorrt_builder
from fgnet.engine.bundle import load_bundle
from fgnet.engine.tensorrt_builder import BuildReport, build_engine, check_plan_size
from fgnet.engine.tensorrt_library import TensorRTName, open_library
from fgnet.volumes.errors import BackendError

MakeGraphs = Callable[..., tuple[Path, Path]]
RTX: TensorRTName = "tensorrt-rtx"


@pytest.fixture(autouse=True)
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="engines are built with tensorrt-rtx-cu13-bindings and -libs")


def _build(path: Path, precision: Any, **options: Any) -> tuple[bytes, BuildReport]:
    return build_engine(path, backend=RTX, precision=precision, **{"architecture": "sm89", **options})


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16")])
def test_both_graphs_build_in_the_precision_asked_for(make_graphs: MakeGraphs, precision: str, kind: str) -> None:
    encoder, decoder = make_graphs(precision)
    plan, report = _build(encoder, precision)
    assert len(plan) == report.plan_bytes > report.graph_bytes == encoder.stat().st_size
    assert (report.backend, report.architecture, report.precision) == (RTX, "sm89", precision)
    assert report.version == open_library(RTX).version
    assert report.layers[f"CONVOLUTION {kind}"] == report.layers[f"MATRIX_MULTIPLY {kind}"] == 1
    assert report.seconds > 0
    _, report = _build(decoder, precision)
    assert report.layers[f"CONVOLUTION {kind}"] == 1
    assert report.layers["CAST UINT8"] == 1


def test_every_graph_of_an_exported_bundle_builds_in_its_precision(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    for graphs in bundle.manifest.graphs:
        for file in graphs.files:
            assert _build(bundle.path / file, graphs.precision)[1].precision == graphs.precision


@pytest.mark.parametrize("architecture", ["sm86", "sm120"])
def test_engines_are_built_for_other_architectures(make_graphs: MakeGraphs, architecture: str) -> None:
    _, report = _build(make_graphs("fp16")[1], "fp16", architecture=architecture)
    assert report.architecture == architecture


def test_a_product_that_stayed_fp32_is_refused_by_name(make_graphs: MakeGraphs) -> None:
    encoder, _ = make_graphs("fp16", product="fp32")
    with pytest.raises(BackendError, match=r"1 of 2 convolutions and matrix products are not fp16: mix .*FLOAT"):
        _build(encoder, "fp16")


def test_a_graph_of_another_precision_is_refused_before_it_is_built(make_graphs: MakeGraphs) -> None:
    phases: list[str] = []
    with pytest.raises(BackendError, match=r"2 of 2 .* are not fp16: embed .*FLOAT.*export the model again"):
        _build(make_graphs("fp32")[0], "fp16", progress=lambda phase, done, total: phases.append(phase))
    assert not phases


def test_an_operator_that_the_library_does_not_know_is_named(tmp_path: Path) -> None:
    path = _save(tmp_path, lambda node: [node("Frobnicate", ["x"], ["y"], "the_node", domain="nowhere")])
    with pytest.raises(BackendError, match=r"does not take the graph: node the_node \(Frobnicate\)") as caught:
        _build(path, "fp32")
    assert caught.value.where == str(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"broken\.onnx"):
        _build(tmp_path / "broken.onnx", "fp32")


def test_a_graph_without_static_shapes_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, lambda node: [node("Relu", ["x"], ["y"])], shape=("n", 64))
    with pytest.raises(BackendError, match=r"the input x has no static shape, but \(-1, 64\)"):
        _build(path, "fp32")


def test_a_plan_that_holds_the_weights_in_twice_the_bits_is_refused(tmp_path: Path) -> None:
    # Stored in fp16, cast in the graph: the engine computes in fp32, from weights that the builder has widened.
    onnx = pytest.importorskip("onnx")
    values = np.random.default_rng(0).normal(size=(2048, 3072)).astype(np.float16)
    path = _save(
        tmp_path,
        lambda node: [node("Cast", ["w"], ["wide"], to=onnx.TensorProto.FLOAT), node("MatMul", ["x", "wide"], ["y"])],
        shape=(64, 2048),
        out=(64, 3072),
        constants=[onnx.numpy_helper.from_array(values, "w")],
    )
    with pytest.raises(BackendError, match=r"the plan takes (2[5-9]|3\d)\.\d MB for a graph of 12\.6 MB in fp32"):
        _build(path, "fp32")


@pytest.mark.parametrize(
    ("plan", "graph", "fits"), [(64, 64, True), (129, 64, False), (129, 113, True), (5, 0.1, True)]
)
def test_the_allowance_grows_with_weights_and_kernels(plan: float, graph: float, fits: bool) -> None:
    layers = {"CONVOLUTION HALF": 40, "CAST FLOAT": 500}
    report = BuildReport(RTX, "1", "sm89", "fp16", layers, int(plan * 1e6), int(graph * 1e6), 1.0)
    if fits:
        check_plan_size(report, "a graph")
    else:
        with pytest.raises(BackendError, match=r"129\.0 MB .* 64\.0 MB"):
            check_plan_size(report, "a graph")


def test_progress_tells_phases_steps_and_ends(make_graphs: MakeGraphs) -> None:
    told: list[tuple[str, int, int]] = []
    _build(make_graphs("fp32")[0], "fp32", progress=lambda *event: told.append(event))
    assert ("Building engine", 0) in {event[:2] for event in told}
    assert all(0 <= done <= total for _, done, total in told)


def test_what_progress_raises_ends_the_build(make_graphs: MakeGraphs) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(make_graphs("fp32")[0], "fp32", progress=interrupt)


def test_tensorrt_for_rtx_keeps_no_timings(make_graphs: MakeGraphs, tmp_path: Path) -> None:
    _build(make_graphs("fp32")[1], "fp32", timing_cache_folder=tmp_path / "timings", workspace_bytes=1 << 28)
    assert not (tmp_path / "timings").exists()


def test_bf16_is_refused_on_a_gpu_without_it(make_graphs: MakeGraphs) -> None:
    with pytest.raises(BackendError, match=r"sm75 has no bf16 arithmetic.*--precision fp32"):
        _build(make_graphs("bf16")[0], "bf16", architecture="sm75")


def test_an_architecture_that_cannot_be_built_for_is_refused(make_graphs: MakeGraphs) -> None:
    with pytest.raises(BackendError, match=r"sm70.*sm75"):
        _build(make_graphs("fp32")[0], "fp32", architecture="sm70")


def test_a_gpu_that_it_does_not_build_for_is_refused(make_graphs: MakeGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = SimpleNamespace(capability=(9, 0), close=lambda: None)
    monkeypatch.setattr(tensorrt_builder, "open_cuda", lambda: hopper)
    with pytest.raises(BackendError, match=r"it builds for sm75, .*sm89.*, not for sm90") as caught:
        _build(make_graphs("fp16")[1], "fp16", architecture=None)
    assert "--backend" in str(caught.value.remedy)


def test_a_quantised_product_is_built(tmp_path: Path) -> None:
    _, report = _build(_quantised(tmp_path, activation=True), "int8")
    assert report.layers["QUANTIZE INT8"] == report.layers["MATRIX_MULTIPLY FLOAT"] == 1


def test_a_quantised_graph_has_to_be_quantised_on_both_sides(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"product \(quantised in part\)"):
        _build(_quantised(tmp_path, activation=False), "int8")


def test_a_graph_without_quantised_products_is_not_int8(make_graphs: MakeGraphs) -> None:
    with pytest.raises(BackendError, match=r"takes quantised numbers.*--precision int8"):
        _build(make_graphs("fp32")[0], "int8")


def _quantised(folder: Path, *, activation: bool) -> Path:
    onnx = pytest.importorskip("onnx")
    values = np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(np.int8)
    constants = [
        onnx.numpy_helper.from_array(values, "w"),
        onnx.numpy_helper.from_array(np.float32(0.01), "s"),
        onnx.numpy_helper.from_array(np.int8(0), "z"),
    ]

    def nodes(node: Any) -> list[Any]:
        made = [node("DequantizeLinear", ["w", "s", "z"], ["weights"])]
        if activation:
            made.append(node("QuantizeLinear", ["x", "s", "z"], ["q"]))
            made.append(node("DequantizeLinear", ["q", "s", "z"], ["dq"]))
        return [*made, node("MatMul", ["dq" if activation else "x", "weights"], ["y"], "product")]

    return _save(folder, nodes, constants=constants)


def _save(
    folder: Path,
    nodes: Callable[[Any], list[Any]],
    *,
    shape: tuple[Any, ...] = (64, 64),
    out: tuple[Any, ...] | None = None,
    constants: list[Any] | None = None,
) -> Path:
    onnx = pytest.importorskip("onnx", reason="graphs are made with the extra fgnet[train]")
    helper, element = onnx.helper, onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", element, shape)]
    outputs = [helper.make_tensor_value_info("y", element, out or shape)]
    graph = helper.make_graph(nodes(helper.make_node), "graph", inputs, outputs, constants or [])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path
