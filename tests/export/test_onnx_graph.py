"""The traced graphs: what they take, give and hold, and their numbers in ONNX Runtime."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")
onnxruntime = pytest.importorskip("onnxruntime", reason="running graphs needs the extra fgnet[cpu]")

from onnx import TensorProto, numpy_helper  # noqa: E402

from fgnet.engine.bundle import load_bundle  # noqa: E402
from fgnet.engine.columns import calls_of  # noqa: E402
from fgnet.engine.torch_runner import TorchRunner  # noqa: E402
from fgnet.export import onnx_graph  # noqa: E402
from fgnet.export.onnx_graph import OPSET, TwoGraphs, save, single_graph, two_graphs  # noqa: E402
from fgnet.network.checkpoint import load_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SECTIONS = 2
# Beside `tiny_bundle`, which holds the whole network.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "one section, depth 3": {"depth": 3, "patch": (3, 32, 32), "finest_depth_kernel": 1, "context_sections": 0},
    "without_sam2": {"modules": "without_sam2", "depth": 3, "patch": (3, 32, 32)},
    "without_fge": {"modules": "without_fge", "depth": 3, "patch": (2, 32, 64)},
    "cross_attention": {"guidance": "cross_attention", "depth": 4, "patch": (2, 32, 32), "finest_depth_kernel": 3},
    "tiny of SAM2": {"encoder": "tiny", "depth": 3, "patch": (2, 32, 32), "input_scale": 2},
}


class Traced(NamedTuple):
    network: Any
    graphs: TwoGraphs

    @property
    def both(self) -> list[Any]:
        return [graph for graph in self.graphs if graph is not None]


@pytest.fixture(scope="session")
def trace_of(make_network: Callable[..., Any], tiny_bundle: Path) -> Callable[[str], Traced]:
    """A network and its graphs by the name of its configuration, each traced once; not to be changed."""
    held: dict[str, Traced] = {}

    def traced(name: str) -> Traced:
        if name not in held and name == "full":
            bundle = load_bundle(tiny_bundle)
            encoder, decoder = bundle.graphs().files
            graphs = TwoGraphs(onnx.load(str(bundle.path / encoder)), onnx.load(str(bundle.path / decoder)))
            held[name] = Traced(load_checkpoint(bundle.checkpoint).build(), graphs)
        elif name not in held:
            network = make_network(**CONFIGURATIONS[name])
            held[name] = Traced(network, two_graphs(network, SECTIONS))
        return held[name]

    return traced


@pytest.fixture(params=CONFIGURATIONS)
def traced(trace_of: Callable[[str], Traced], request: pytest.FixtureRequest) -> Traced:
    return trace_of(request.param)


def session(model: Any) -> Any:
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])


def run_pair(encoder: Any | None, decoder: Any, gray: Any) -> Any:
    """Affinities of a block by sessions of both halves."""
    held: dict[str, Any] = {"gray": gray}
    for first in calls_of([0], len(gray), SECTIONS, len(gray)) if encoder is not None else ():
        assert encoder is not None
        names = [value.name for value in encoder.get_outputs()]
        for name, level in zip(names, encoder.run(names, {"gray": gray[first : first + SECTIONS]}), strict=True):
            whole = held.setdefault(name, np.full((len(gray), *level.shape[1:]), np.nan, level.dtype))
            whole[first : first + SECTIONS] = level
    return decoder.run(["affinities"], {value.name: held[value.name] for value in decoder.get_inputs()})[0]


def block_of(network: Any) -> Any:
    return np.random.default_rng(5).integers(0, 256, network.config.patch, dtype=np.uint8)


def eager(network: Any, gray: Any) -> Any:
    return TorchRunner(network, network.config.patch, device="cpu").run(gray)


def test_onnxruntime_gives_the_affinities_of_eager_pytorch(traced: Traced) -> None:
    gray = block_of(traced.network)
    expected = eager(traced.network, gray)
    found = run_pair(traced.graphs.encoder and session(traced.graphs.encoder), session(traced.graphs.decoder), gray)
    assert found.dtype == np.uint8
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected.astype(np.float64) * 255, rtol=0, atol=0.5 + 255 * 1e-5)


def ends(values: Any) -> dict[str, tuple[int, list[int]]]:
    return {
        value.name: (value.type.tensor_type.elem_type, [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in values
    }


def test_the_graphs_take_bytes_and_give_bytes_at_static_shapes(traced: Traced) -> None:
    depth, *size = traced.network.config.patch
    encoder, decoder = traced.graphs
    takes = ends(decoder.graph.input)
    if encoder is not None:
        assert ends(encoder.graph.input) == {"gray": (TensorProto.UINT8, [SECTIONS, *size])}
        for name, (kind, (count, *shape)) in ends(encoder.graph.output).items():
            assert (kind, count) == (TensorProto.FLOAT, SECTIONS)
            assert takes.pop(name) == (kind, [depth, *shape])
    assert takes.pop("gray", None) in (None, (TensorProto.UINT8, [depth, *size]))
    assert not takes
    assert ends(decoder.graph.output) == {"affinities": (TensorProto.UINT8, [3, depth, *size])}
    for model in traced.both:
        for value in model.graph.value_info:
            assert all(d.WhichOneof("value") == "dim_value" for d in value.type.tensor_type.shape.dim), value.name


def test_batch_norms_are_folded_and_nothing_but_the_standard_operators_is_used(traced: Traced) -> None:
    kinds = Counter(node.op_type for model in traced.both for node in model.graph.node)
    assert kinds["Conv"] > 5
    assert not kinds.keys() & {"BatchNormalization", "If", "Loop", "Scan", "Shape", "NonZero"}
    for model in traced.both:
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [OPSET]
        assert not model.functions


@pytest.mark.parametrize("name", ["one section, depth 3", "without_fge"])
def test_sections_are_shifted_without_a_fifth_axis(trace_of: Callable[[str], Traced], name: str) -> None:
    values = trace_of(name).graphs.decoder.graph.value_info
    assert "Pad" in {node.op_type for node in trace_of(name).graphs.decoder.graph.node}
    assert not [value.name for value in values if len(value.type.tensor_type.shape.dim) > 4]


def test_attention_pads_no_window(trace_of: Callable[[str], Traced]) -> None:
    encoder = trace_of("tiny of SAM2").graphs.encoder
    assert encoder is not None
    assert "Softmax" in (operators := {node.op_type for node in encoder.graph.node})
    assert "Pad" not in operators


def test_positions_are_baked_no_constant_is_resized(traced: Traced) -> None:
    resized = [(model, node) for model in traced.both for node in model.graph.node if node.op_type == "Resize"]
    assert resized
    for model, node in resized:
        constants = {tensor.name for tensor in model.graph.initializer}
        constants |= {output for other in model.graph.node if other.op_type == "Constant" for output in other.output}
        assert node.input[0] not in constants
        assert next(a.s for a in node.attribute if a.name == "mode") in (b"linear", b"nearest")


def test_no_zeros_are_stored_but_pads_and_biases(traced: Traced) -> None:
    for tensor in traced.graphs.decoder.graph.initializer:
        array = numpy_helper.to_array(tensor)
        assert array.ndim < 2 or array.any(), tensor.name


def test_each_weight_is_stored_once(traced: Traced) -> None:
    stored = [
        numpy_helper.to_array(tensor).tobytes()
        for model in traced.both
        for tensor in model.graph.initializer
        if np.prod(tensor.dims) > 64
    ]
    assert len(stored) == len(set(stored))


def test_the_weights_of_the_coarse_decoder_are_not_in_the_graphs(trace_of: Callable[[str], Traced]) -> None:
    network, graphs = trace_of("full")
    stored = {numpy_helper.to_array(tensor).tobytes() for tensor in graphs.decoder.graph.initializer}

    def found(decoder: Any) -> list[bool]:
        # No batch norm follows these, so that they are stored as they were trained.
        return [conv.weight.detach().numpy().tobytes() in stored for conv in decoder.narrows]

    assert found(network.refined) == [True] * 3
    assert found(network.coarse) == [False] * 2


def test_the_files_name_no_folder_and_no_source_of_their_maker(traced: Traced) -> None:
    root = str(Path(__file__).parents[2])
    for model in traced.both:
        content = model.SerializeToString()
        for text in (root, sys.prefix, str(Path.home()), "site-packages", ".py", "Traceback"):
            assert text.encode() not in content, text
        graph = model.graph
        assert model.doc_string == graph.doc_string == ""
        described = (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output)
        assert not [entry for entry in described if entry.metadata_props]
        described = (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output)
        assert not [entry for entry in described if entry.doc_string]


def test_the_single_graph_gives_floats_at_the_plain_shapes(trace_of: Callable[[str], Traced]) -> None:
    network = trace_of("without_sam2").network
    model, gray = single_graph(network), block_of(network)
    patch = list(network.config.patch)
    assert ends(model.graph.input) == {"gray": (TensorProto.UINT8, [1, 1, *patch])}
    assert ends(model.graph.output) == {"affinities": (TensorProto.FLOAT, [1, 3, *patch])}
    (found,) = session(model).run(None, {"gray": gray[None, None]})
    np.testing.assert_allclose(found[0], eager(network, gray), rtol=0, atol=1e-5)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if protocol buffers ended at a few kilobytes."""
    with monkeypatch.context() as patched:
        patched.setattr(onnx_graph, "LARGEST_FILE", 4096)
        yield


@pytest.mark.usefixtures("small_files")
def test_weights_too_large_for_one_file_stand_beside_it_and_are_found_from_anywhere(
    trace_of: Callable[[str], Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, graphs = trace_of("one section, depth 3")
    (tmp_path / "bundle").mkdir()
    for half, graph in zip(TwoGraphs._fields, graphs, strict=True):
        save(graph, tmp_path / "bundle" / f"{half}.onnx")
    names = {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"}
    assert {file.name for file in (tmp_path / "bundle").iterdir()} == names
    assert (tmp_path / "bundle" / "encoder.onnx").stat().st_size < 1 << 18
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").rename(tmp_path / "moved")
    gray = block_of(network)
    beside = run_pair(session(tmp_path / "moved" / "encoder.onnx"), session(tmp_path / "moved" / "decoder.onnx"), gray)
    # The graphs themselves still hold their weights: they are converted to other precisions afterwards.
    np.testing.assert_array_equal(beside, run_pair(session(graphs.encoder), session(graphs.decoder), gray))


def test_a_graph_that_makes_no_sense_is_not_written(trace_of: Callable[[str], Traced], tmp_path: Path) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(trace_of("without_sam2").graphs.decoder)
    broken.graph.node[-1].input[0] = "nowhere"
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        save(broken, tmp_path / "broken.onnx")
    assert not list(tmp_path.iterdir())
