from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")

from fgnet.engine.bundle import Bundle, BundleManifest, Graphs  # noqa: E402
from fgnet.engine.columns import calls_of  # noqa: E402
from fgnet.export.graph_inspection import ATTENTION, GraphInspection, Layers  # noqa: E402
from fgnet.export.inspection import Inspection, cost_of, inspect_bundle  # noqa: E402
from fgnet.export.inspection_tables import render  # noqa: E402


@pytest.fixture(scope="session")
def inspection(bundle: Bundle) -> Inspection:
    return inspect_bundle(bundle)


def layers(graph: GraphInspection) -> dict[str, Layers]:
    return {entry.operator: entry for entry in graph.layers}


def test_flops_are_those_that_pytorch_counts_on_the_same_network(
    inspection: Inspection, tiny_checkpoint: Path, one_torch_thread: None
) -> None:
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from fgnet.export.block_graph import BlockGraph
    from fgnet.export.deployment import inference_copy
    from fgnet.export.section_graph import SectionGraph, cut_of
    from fgnet.network.checkpoint import load_checkpoint

    network = inference_copy(load_checkpoint(tiny_checkpoint).build().eval())
    cut = cut_of(network)
    sections, blocks = SectionGraph(network, cut).eval(), BlockGraph(network, cut).eval()
    gray = torch.zeros(network.config.patch, dtype=torch.uint8)
    # PyTorch counts attention where it is computed as plain products only.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoder:
            features = sections(gray[: inspection.sections])
        features = [torch.zeros(len(gray), *feature.shape[1:]) for feature in features]
        with FlopCounterMode(display=False) as decoder:
            blocks(*([gray] if cut.gray else []), *features)
    cost = inspection.precisions[0].cost
    assert cost.encoder_call == pytest.approx(encoder.get_total_flops(), rel=0.02)
    assert cost.decoder_call == pytest.approx(decoder.get_total_flops(), rel=0.02)


def test_every_graph_of_the_bundle_is_described(bundle: Bundle, inspection: Inspection) -> None:
    manifest = bundle.manifest
    assert (inspection.name, inspection.patch, inspection.stride) == (manifest.name, manifest.patch, manifest.stride)
    assert [entry.precision for entry in inspection.precisions] == [graphs.precision for graphs in manifest.graphs]
    assert (inspection.single is None) == (manifest.single is None)
    first = inspection.precisions[0]
    assert first.encoder is not None
    depth, *size = manifest.patch
    assert [(port.name, port.dtype, port.shape) for port in first.encoder.inputs] == [
        ("gray", "uint8", (manifest.sections, *size))
    ]
    read = {port.name: port for port in first.decoder.inputs}
    for port in first.encoder.outputs:
        assert read.pop(port.name).shape == (depth, *port.shape[1:])
    assert not read.keys() - {"gray"}
    assert [(port.dtype, port.shape) for port in first.decoder.outputs] == [("uint8", (3, *manifest.patch))]
    for graph in (first.encoder, first.decoder):
        assert graph.bytes == (bundle.path / graph.file).stat().st_size
        assert graph.flops == sum(entry.flops for entry in graph.layers) > 0
        assert not graph.uncounted
        assert 0 < graph.parameters < graph.parameter_bytes < graph.bytes
        nodes = len(onnx.load(str(bundle.path / graph.file)).graph.node)
        assert nodes == sum(entry.nodes for entry in graph.layers)
    assert layers(first.encoder)[ATTENTION].flops > 0
    assert set(layers(first.encoder)["LayerNormalization"].precisions) == {"float32"}


def test_it_is_plain_data_for_json(inspection: Inspection) -> None:
    data = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))
    assert data["counted"].startswith("2 x multiply-adds")
    assert data["precisions"][0]["cost"]["block_reusing"] == inspection.precisions[0].cost.block_reusing
    assert data["precisions"][0]["decoder"]["flops"] > 0


def test_the_tables_show_ports_layers_and_cost(inspection: Inspection) -> None:
    from rich.console import Console

    graph = inspection.precisions[0].decoder
    shown = replace(
        inspection, single=replace(graph, file="single.onnx", uncounted={"Einsum": 2}, flops=12_300_000_000_000)
    )
    stream = io.StringIO()
    Console(file=stream, width=100).print(render(shown))
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 100
    words = " ".join(text.split())
    for part in ("Conv", "affinities", "single.onnx", "2 Einsum", "12.3 T", "multiply-adds", "decoder, one call"):
        assert part in words, part


def manifest_of(patch: tuple[int, int, int], stride: tuple[int, int, int], sections: int) -> BundleManifest:
    return BundleManifest("m", {}, patch, stride, (), {}, sections, (Graphs("fp32", "d.onnx", "e.onnx"),))


def test_a_block_costs_its_decoder_and_the_sections_that_are_missing() -> None:
    cost = cost_of(manifest_of((16, 256, 256), (8, 128, 64), 8), 1000, 50)
    assert (cost.calls_alone, cost.calls_reusing) == (2, 1)
    assert (cost.block_alone, cost.block_reusing) == (2050, 1050)
    assert (cost.encoder_call, cost.encoder_section, cost.decoder_call) == (1000, 125, 50)
    assert cost.voxel_reusing == 1050 / (8 * 128 * 64)
    assert cost.voxel_alone == 2050 / (8 * 128 * 64)


def test_without_encoder_every_block_costs_its_decoder() -> None:
    cost = cost_of(manifest_of((16, 256, 256), (8, 128, 128), 8), None, 50)
    assert (cost.encoder_call, cost.calls_alone, cost.calls_reusing) == (0, 0, 0)
    assert cost.block_alone == cost.block_reusing == 50


@given(st.data())
def test_the_calls_are_those_that_a_column_of_blocks_takes(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, depth))
    sections = data.draw(st.integers(1, depth))
    cost = cost_of(manifest_of((depth, 8, 8), (stride, 8, 8), sections), 1, 0)
    assert cost.calls_alone == len(calls_of([0], depth, sections, depth))
    for blocks in (2, 5, 50):
        last = (blocks - 1) * stride
        taken = len(calls_of(range(0, last + 1, stride), depth, sections, last + depth))
        # What the first block needs more than others is paid once, and so is a call that reaches back.
        assert 0 <= taken - (blocks - 1) * cost.calls_reusing < depth / sections + 1
