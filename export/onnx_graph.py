"""The deployed network as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch

from fgnet.export.deployment import Deployment
from fgnet.network.model import FGNet

OPSET = 18


def write_onnx(network: FGNet, path: Path) -> None:
    """Export `gray` (1, 1, z, y, x) uint8 -> `affinities` (1, 3, z, y, x) float32, static, FP32, checked.

    Args:
        network: trained; its configuration gives the patch.
        path: of the file to write.
    """
    deployment = Deployment(network).eval()
    example = torch.zeros((1, 1, *network.config.patch), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's own use of deprecated calls is not the user's concern.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployment,
            (example,),
            input_names=["gray"],
            output_names=["affinities"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    program.optimize()
    model = program.model_proto
    # The exporter writes the source line of every node into the file: larger, and it names the maker's paths.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.functions[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
