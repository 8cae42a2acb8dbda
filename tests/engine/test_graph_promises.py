"""Graphs of another maker: taken where their ends are what the manifest promises, and refused in one line otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgnet.engine.bundle import Bundle, BundleManifest, Graphs
from fgnet.engine.columns import Column, run_block
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.openvino_runner import OpenVINORunner
from fgnet.volumes.errors import BackendError

End = tuple[str, str, list[Any]]
Make = Callable[..., Bundle]

SECTIONS: End = ("gray", "uint8", [2, 64, 64])
BLOCK: End = ("gray", "uint8", [4, 64, 64])
GIVEN: End = ("coarse", "float", [2, 8, 16, 16])
TAKEN: End = ("coarse", "float", [4, 8, 16, 16])
AFFINITIES: End = ("affinities", "uint8", [3, 4, 64, 64])

both_runners = pytest.mark.parametrize("runner", [OnnxRuntimeRunner, OpenVINORunner])


def graph_of(inputs: list[End], outputs: list[End]) -> bytes:
    """An ONNX graph that gives zeros, whatever it takes."""
    from onnx import TensorProto, checker, helper

    kinds = {"uint8": TensorProto.UINT8, "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}
    nodes = []
    for name, kind, shape in outputs:
        extents = [1 if isinstance(extent, str) else extent for extent in shape]
        numbers = helper.make_tensor(f"{name}_extents", TensorProto.INT64, [len(extents)], extents)
        nodes.append(helper.make_node("Constant", [], [f"{name}_shape"], value=numbers))
        zero = helper.make_tensor(f"{name}_zero", kinds[kind], [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=zero))
    ends = [[helper.make_tensor_value_info(n, kinds[k], s) for n, k, s in side] for side in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(nodes, "zeros", *ends), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    checker.check_model(model)
    return model.SerializeToString()  # type: ignore[no-any-return]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A bundle of two graphs given by their ends, or of a decoder alone."""
    pytest.importorskip("onnx", reason="graphs are made with the extra fgnet[train]")

    def make(
        encoder: tuple[list[End], list[End]] | None = ([SECTIONS], [GIVEN]),
        decoder: tuple[list[End], list[End]] = ([BLOCK, TAKEN], [AFFINITIES]),
    ) -> Bundle:
        (tmp_path / "decoder.onnx").write_bytes(graph_of(*decoder))
        if encoder is not None:
            (tmp_path / "encoder.onnx").write_bytes(graph_of(*encoder))
        return bundle_of(tmp_path, encoder=None if encoder is None else "encoder.onnx")

    return make


def bundle_of(folder: Path, encoder: str | None) -> Bundle:
    graphs = (Graphs("fp32", "decoder.onnx", encoder),)
    return Bundle(folder, BundleManifest("zeros", {}, (4, 64, 64), (2, 32, 32), (), {}, sections=2, graphs=graphs))


@both_runners
@pytest.mark.parametrize("inputs", [[BLOCK, TAKEN], [TAKEN], [TAKEN, BLOCK]], ids=["gray", "no gray", "order"])
def test_two_graphs_run_where_their_ends_are_as_promised(make: Make, runner: Any, inputs: list[End]) -> None:
    opened = runner(make(decoder=(inputs, [AFFINITIES])), threads=1)
    assert (opened.sections, opened.patch) == (2, (4, 64, 64))
    affinities = run_block(opened, np.ones((4, 64, 64), np.uint8))
    assert (affinities.shape, affinities.dtype, affinities.any()) == ((3, 4, 64, 64), np.uint8, False)


@both_runners
def test_a_decoder_alone_runs_without_slots_to_fill(make: Make, runner: Any) -> None:
    opened = runner(make(None, ([BLOCK], [AFFINITIES])), threads=1, slots=4)
    assert opened.sections == 0
    column = Column(opened, 9, lambda _, count: np.ones((count, 64, 64), np.uint8))
    for start in (0, 1, 5):
        assert not column.affinities(start).any()


BAD_ENCODERS: dict[str, tuple[list[End], list[End]]] = {
    "sections": ([("gray", "uint8", [4, 64, 64])], [GIVEN]),
    "size": ([("gray", "uint8", [2, 64, 32])], [GIVEN]),
    "rank": ([("gray", "uint8", [1, 2, 64, 64])], [GIVEN]),
    "dtype": ([("gray", "float", [2, 64, 64])], [GIVEN]),
    "dynamic": ([("gray", "uint8", ["sections", 64, 64])], [GIVEN]),
    "name": ([("image", "uint8", [2, 64, 64])], [GIVEN]),
    "two inputs": ([SECTIONS, ("mask", "uint8", [1])], [GIVEN]),
    "feature's name": ([SECTIONS], [("fine", "float", [2, 8, 16, 16])]),
    "feature's shape": ([SECTIONS], [("coarse", "float", [2, 8, 16, 8])]),
    "feature too many": ([SECTIONS], [GIVEN, ("fine", "float", [2, 8, 16, 16])]),
    "feature too few": ([SECTIONS], []),
}
BAD_DECODERS: dict[str, tuple[list[End], list[End]]] = {
    "depth": ([("gray", "uint8", [8, 64, 64]), TAKEN], [AFFINITIES]),
    "dynamic": ([("gray", "uint8", ["depth", 64, 64]), TAKEN], [AFFINITIES]),
    "dtype": ([("gray", "float", [4, 64, 64]), TAKEN], [AFFINITIES]),
    "feature's sections": ([BLOCK, ("coarse", "float", [2, 8, 16, 16])], [AFFINITIES]),
    "input too many": ([BLOCK, TAKEN, ("mask", "uint8", [1])], [AFFINITIES]),
    "channels": ([BLOCK, TAKEN], [("affinities", "uint8", [2, 4, 64, 64])]),
    "size": ([BLOCK, TAKEN], [("affinities", "uint8", [3, 4, 32, 32])]),
    "float": ([BLOCK, TAKEN], [("affinities", "float", [3, 4, 64, 64])]),
    "rank": ([BLOCK, TAKEN], [("affinities", "uint8", [1, 3, 4, 64, 64])]),
    "output's name": ([BLOCK, TAKEN], [("logits", "uint8", [3, 4, 64, 64])]),
    "two outputs": ([BLOCK, TAKEN], [AFFINITIES, ("more", "float", [1])]),
}


def assert_refused(bundle: Bundle, runner: Any) -> None:
    with pytest.raises(BackendError, match=r"the bundle promises|the feature \w+ is|does not take the graph") as caught:
        runner(bundle, threads=1)
    assert str(bundle.path) in str(caught.value.where)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@both_runners
@pytest.mark.parametrize("case", BAD_ENCODERS)
def test_an_encoder_that_is_not_as_the_manifest_promises_is_refused(make: Make, runner: Any, case: str) -> None:
    assert_refused(make(BAD_ENCODERS[case]), runner)


@both_runners
@pytest.mark.parametrize("case", BAD_DECODERS)
def test_a_decoder_that_is_not_as_the_manifest_promises_is_refused(make: Make, runner: Any, case: str) -> None:
    assert_refused(make(decoder=BAD_DECODERS[case]), runner)


@both_runners
@pytest.mark.parametrize("shape", [[4, 8, 16, 16], [2, "channels", 16, 16]], ids=["a block's sections", "dynamic"])
def test_features_that_are_not_one_for_each_section_are_refused(make: Make, runner: Any, shape: list[Any]) -> None:
    taken: End = ("coarse", "float", [4, *shape[1:]])
    assert_refused(make(([SECTIONS], [("coarse", "float", shape)]), ([BLOCK, taken], [AFFINITIES])), runner)


@both_runners
def test_features_of_a_type_that_no_export_writes_are_refused_or_kept_as_they_are(make: Make, runner: Any) -> None:
    wide = [("coarse", "double", [sections, 8, 16, 16]) for sections in (2, 4)]
    bundle = make(([SECTIONS], wide[:1]), ([BLOCK, wide[1]], [AFFINITIES]))  # type: ignore[arg-type,list-item]
    if runner is OnnxRuntimeRunner:
        assert_refused(bundle, runner)
    else:
        assert not run_block(runner(bundle, threads=1), np.ones((4, 64, 64), np.uint8)).any()


@both_runners
@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x08" * 50], ids=["empty", "text", "nonsense"])
@pytest.mark.parametrize("half", ["encoder.onnx", "decoder.onnx"])
def test_a_file_that_is_no_graph_is_refused_in_one_line(make: Make, runner: Any, content: bytes, half: str) -> None:
    bundle = make()
    (bundle.path / half).write_bytes(content)
    with pytest.raises(BackendError, match="does not take the graph") as caught:
        runner(bundle)
    assert caught.value.where == str(bundle.path / half)
    assert "\n" not in str(caught.value)


@both_runners
def test_a_file_that_is_gone_is_refused_in_one_line(make: Make, runner: Any) -> None:
    bundle = make()
    (bundle.path / "decoder.onnx").unlink()
    with pytest.raises(BackendError, match="does not take the graph") as caught:
        runner(bundle)
    assert "\n" not in str(caught.value)
