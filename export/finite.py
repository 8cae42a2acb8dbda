"""How many numbers overflow in the graphs of a precision?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fgnet.engine.bundle import Bundle, Graphs
from fgnet.engine.runner import encoder_calls


def count_not_finite(bundle: Bundle, graphs: Graphs, blocks: Iterable[npt.NDArray[np.uint8]]) -> int:
    """Features and logits that are NaN or infinite, as ONNX Runtime computes them.

    The affinities are 8-bit and cannot tell: a NaN becomes some number in them.

    Args:
        bundle: whose graphs.
        graphs: of one precision; not bf16, whose range is that of fp32 and which ONNX Runtime computes on no CPU.
        blocks: (z, y, x) uint8 each.
    """
    import onnxruntime

    def session(model: onnx.ModelProto | str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        given = model if isinstance(model, str) else model.SerializeToString()
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])

    encoder = None if graphs.encoder is None else session(str(bundle.path / graphs.encoder))
    decoder = session(_with_logits(onnx.load(str(bundle.path / graphs.decoder))))
    takes_gray = "gray" in {value.name for value in decoder.get_inputs()}
    count, sections = 0, 0 if encoder is None else bundle.manifest.sections
    for block in blocks:
        held: dict[str, Any] = {"gray": block} if takes_gray else {}
        for first in encoder_calls(0, len(block), sections, 0):
            assert encoder is not None  # noqa: S101 - without one nothing is encoded
            names = [value.name for value in encoder.get_outputs()]
            for name, level in zip(names, encoder.run(names, {"gray": block[first : first + sections]}), strict=True):
                whole = held.setdefault(name, np.zeros((len(block), *level.shape[1:]), level.dtype))
                whole[first : first + sections] = level
        (logits,) = decoder.run(["logits"], held)
        values = [*(held[name] for name in held if name != "gray"), logits]
        count += sum(int(np.count_nonzero(~np.isfinite(value))) for value in values)
    return count


def _with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """A decoder that gives its logits too: what its last Sigmoid reads."""
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Sigmoid")
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kind = next(value.type.tensor_type.elem_type for value in typed.value_info if value.name == last.input[0])
    shape = next(value.type.tensor_type.shape for value in typed.value_info if value.name == last.input[0])
    # A copy under a name of its own: the tensor may already be an output of something that backends fuse.
    model.graph.node.append(onnx.helper.make_node("Identity", [last.input[0]], ["logits"]))
    extents = [dimension.dim_value for dimension in shape.dim]
    model.graph.output.append(onnx.helper.make_tensor_value_info("logits", kind, extents))
    return model
