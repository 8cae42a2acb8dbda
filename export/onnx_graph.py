"""A deployed network, whole or as its two halves, as ONNX: traced, simplified, checked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from fgnet.export.block_graph import BlockGraph
from fgnet.export.deployment import Deployment, inference_copy
from fgnet.export.section_graph import SectionGraph, cut_of
from fgnet.network.model import FGNet

# The first one with Gelu as one operator, which backends run in one pass over memory.
OPSET = 20

# Protocol buffers end at 2 GiB; beyond, weights have to stand in a file of their own.
LARGEST_FILE = 2**31 - 2**20


class TwoGraphs(NamedTuple):
    """FP32 graphs of a network's halves; no encoder where the network computes nothing section by section."""

    encoder: onnx.ModelProto | None
    decoder: onnx.ModelProto


def two_graphs(network: FGNet, sections: int) -> TwoGraphs:
    """Trace both halves (see `section_graph` and `block_graph`).

    Args:
        network: trained; its configuration gives the patch.
        sections: that one call of the encoder takes.
    """
    deployed = inference_copy(network)
    cut = cut_of(deployed)
    depth, rows, columns = network.config.patch
    encoder = SectionGraph(deployed, cut).eval()
    names = encoder.names
    features: tuple[Tensor, ...] = ()
    graph = None
    if names:
        gray = torch.zeros((sections, rows, columns), dtype=torch.uint8)
        graph = trace(encoder, (gray,), ["gray"], names)
        with torch.no_grad():
            features = encoder(gray[:1])
    # Shapes are all that tracing reads of its inputs.
    inputs = [torch.zeros((depth, *level.shape[1:])) for level in features]
    if cut.gray:
        inputs.insert(0, torch.zeros((depth, rows, columns), dtype=torch.uint8))
        names = ["gray", *names]
    return TwoGraphs(graph, trace(BlockGraph(deployed, cut).eval(), tuple(inputs), names, ["affinities"]))


def single_graph(network: FGNet) -> onnx.ModelProto:
    """Trace the whole network in its plain form: gray (1, 1, z, y, x) uint8 -> affinities (1, 3, z, y, x) float32."""
    example = torch.zeros((1, 1, *network.config.patch), dtype=torch.uint8)
    return trace(Deployment(network).eval(), (example,), ["gray"], ["affinities"])


def trace(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> onnx.ModelProto:
    """A module as a simplified ONNX graph of static shapes, with nothing in it that tells of its maker's machine."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        # The exporter's own use of deprecated calls is not the user's concern.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            input_names=names,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the exporter returned no program")
        program.optimize()
        model: onnx.ModelProto = onnxslim.slim(program.model_proto)
    # The exporter writes the source line of every node into the file: larger, and it names the maker's paths.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    del model.functions[:]
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a checked graph; weights beyond what a protocol buffer holds go into `path`.data."""
    if model.ByteSize() > LARGEST_FILE:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)
        onnx.checker.check_model(str(path), full_check=True)
        # onnx has moved the weights out of the model itself, which is yet to be converted to other precisions.
        onnx.load_external_data_for_model(model, str(path.parent))
        return
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
