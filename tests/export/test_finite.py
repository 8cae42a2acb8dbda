"""Overflow of a precision is counted where 8-bit affinities would hide it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")
pytest.importorskip("onnxruntime", reason="running graphs needs the extra fgnet[cpu]")

from onnx import numpy_helper  # noqa: E402

from fgnet.engine.bundle import Bundle, Graphs, load_bundle  # noqa: E402
from fgnet.export.finite import count_not_finite  # noqa: E402
from fgnet.export.precision import convert  # noqa: E402

Every = tuple[Bundle, list[str]]


def block_of(bundle: Bundle) -> Any:
    return np.random.default_rng(0).integers(0, 256, bundle.manifest.patch, dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_sound_graphs_of_every_precision_have_no_such_number(every_precision: Every, precision: Any) -> None:
    bundle = every_precision[0]
    assert count_not_finite(bundle, bundle.graphs(precision), [block_of(bundle)]) == 0


@pytest.fixture(scope="module")
def large(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle of fp32 and fp16 graphs in which the last products of a half have weights of up to 60000."""

    def make(half: str) -> Bundle:
        plain = load_bundle(tiny_bundle)
        folder = tmp_path_factory.mktemp("large")
        for name in ("encoder", "decoder"):
            model = onnx.load(str(tiny_bundle / f"{name}.onnx"))
            if name == half:
                weights = {tensor.name: tensor for tensor in model.graph.initializer}
                products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
                # The last ones of the encoder make features, and those of the decoder logits.
                for weight in [weights[node.input[1]] for node in products[-2:]]:
                    array = numpy_helper.to_array(weight)
                    weight.CopyFrom(numpy_helper.from_array(array * np.float32(6e4 / np.abs(array).max()), weight.name))
            onnx.save(model, str(folder / f"{name}.onnx"))
            onnx.save(convert(model, "fp16"), str(folder / f"{name}.fp16.onnx"))
        graphs = tuple(
            Graphs(precision, decoder=f"decoder{part}.onnx", encoder=f"encoder{part}.onnx")
            for precision, part in (("fp32", ""), ("fp16", ".fp16"))
        )
        return Bundle(folder, replace(plain.manifest, graphs=graphs))

    return make


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_features_and_logits_beyond_the_range_of_fp16_are_counted(large: Callable[[str], Bundle], half: str) -> None:
    bundle = large(half)
    blocks = [block_of(bundle)] * 2
    assert count_not_finite(bundle, bundle.graphs("fp32"), blocks[:1]) == 0
    once = count_not_finite(bundle, bundle.graphs("fp16"), blocks[:1])
    assert once > 0
    assert count_not_finite(bundle, bundle.graphs("fp16"), blocks) == 2 * once


def test_a_decoder_without_encoder_is_counted_too(
    make_network: Callable[..., Any], tmp_path: Path, tiny_bundle: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    from fgnet.export.precision_graphs import write_graphs

    network = make_network(modules="without_sam2", depth=3, patch=(2, 32, 32))
    with torch.no_grad():
        network.refined.head.weight[:, :, 1, 1] = torch.inf
    graphs = write_graphs(network, tmp_path, 1, ["fp32"], None, lambda _: None)
    manifest = replace(load_bundle(tiny_bundle).manifest, patch=(2, 32, 32), sections=1, graphs=graphs)
    bundle = Bundle(tmp_path, manifest)
    logits = 3 * 2 * 32 * 32
    assert count_not_finite(bundle, graphs[0], [block_of(bundle)]) == logits


def test_overflow_between_two_products_is_counted_though_the_cpu_computes_it_in_fp32(
    every_precision: Every, tmp_path: Path
) -> None:
    bundle = every_precision[0]
    graphs = bundle.graphs("fp32")
    encoder, decoder = (onnx.load(str(bundle.path / name)) for name in graphs.files)
    weights = {tensor.name: tensor for tensor in decoder.graph.initializer}
    first, second = [node for node in decoder.graph.node if node.op_type == "Conv"][-3:-1]
    for name, largest in (*((name, 6e4) for name in first.input[1:]), (second.input[1], 1e-4)):
        array = numpy_helper.to_array(weights[name])
        array = array * np.float32(largest / np.abs(array).max())
        weights[name].CopyFrom(numpy_helper.from_array(np.abs(array), name))
    assert first.output[0] in {name for node in decoder.graph.node for name in node.input if node.op_type == "Relu"}
    for half, model in (("encoder", encoder), ("decoder", decoder)):
        onnx.save(convert(model, "fp16"), str(tmp_path / f"{half}.onnx"))
    large = Bundle(tmp_path, replace(bundle.manifest, graphs=(Graphs("fp16", "decoder.onnx", "encoder.onnx"),)))
    assert count_not_finite(large, large.graphs(), [block_of(bundle)]) > 0
