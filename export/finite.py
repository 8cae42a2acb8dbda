"""How many numbers overflow in the graphs of a precision?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fgnet.engine.bundle import Bundle, Graphs
from fgnet.engine.columns import calls_of
from fgnet.engine.onnxruntime_session import import_onnxruntime

# From here on, fp16 rounds to infinity.
_FP16_LIMIT = 65520.0


def count_not_finite(bundle: Bundle, graphs: Graphs, blocks: Iterable[npt.NDArray[np.uint8]]) -> int:
    """Numbers that are NaN or infinite: features and logits, and in fp16 graphs everything that is of that type.

    The affinities are 8-bit and cannot tell: a NaN becomes some number in them. Neither can ONNX Runtime on a CPU,
    which computes several fp16 nodes in a row in fp32; what it computes is held against the range of fp16.

    Args:
        bundle: whose graphs.
        graphs: of one precision; not bf16, whose range is that of fp32 and which ONNX Runtime computes on no CPU.
        blocks: (z, y, x) uint8 each.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime()

    def session(file: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model = _counting(onnx.load(str(bundle.path / file)))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    encoder = None if graphs.encoder is None else session(graphs.encoder)
    decoder = session(graphs.decoder)
    takes = {value.name for value in decoder.get_inputs()}
    count, sections = 0, 0 if encoder is None else bundle.manifest.sections
    for block in blocks:
        held: dict[str, Any] = {"gray": block}
        for first in calls_of([0], len(block), sections, len(block)) if sections else ():
            for name, level in _run(encoder, {"gray": block[first : first + sections]}).items():
                if name not in takes:
                    count += int(level)
                    continue
                whole = held.setdefault(name, np.zeros((len(block), *level.shape[1:]), level.dtype))
                whole[first : first + sections] = level
        outputs = _run(decoder, {name: held[name] for name in takes})
        count += sum(int(value) for name, value in outputs.items() if name != "affinities")
    return count


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _counting(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that also gives, for each tensor that is looked at, how many of its numbers are not finite."""
    graph = model.graph
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output)}
    made = [name for node in graph.node for name in node.output]
    looked_at = [name for name in made if kinds.get(name) == TensorProto.FLOAT16]
    looked_at += [value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    # The logits are what the last Sigmoid of a decoder reads.
    looked_at += [node.input[0] for node in graph.node if node.op_type == "Sigmoid"][-1:]
    for limit, name in ((_FP16_LIMIT, "fp16_limit"), (np.inf, "fp32_limit")):
        graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), name))
    for i, name in enumerate(dict.fromkeys(looked_at)):
        limit_name = "fp16_limit" if kinds[name] == TensorProto.FLOAT16 else "fp32_limit"
        steps = [f"{step}_{i}" for step in ("wide", "magnitude", "finite", "not_finite", "counted", "count")]
        wide, magnitude, finite, not_finite, counted, count = steps
        # Less does not hold of NaN, whatever the limit.
        graph.node.extend(
            [
                helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT),
                helper.make_node("Abs", [wide], [magnitude]),
                helper.make_node("Less", [magnitude, limit_name], [finite]),
                helper.make_node("Not", [finite], [not_finite]),
                helper.make_node("Cast", [not_finite], [counted], to=TensorProto.INT64),
                helper.make_node("ReduceSum", [counted], [count], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(count, TensorProto.INT64, []))
    return model
