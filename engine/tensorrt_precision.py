"""Is a network, or an engine, of the precision asked for? TensorRT itself builds whatever types the graph has."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from fgnet.engine.bundle import Precision
from fgnet.volumes.errors import BackendError

COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
"""Layer types whose precision decides about speed; all others may be fp32 islands."""

_DATA_TYPES: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_CAPABILITIES: dict[Precision, int] = {"fp32": 0, "fp16": 53, "bf16": 80, "int8": 61}
_NAMED = 5

# How the inspector writes types: "Half", or "Channel major FP16 format where channel % 8 == 0".
_WORDS: dict[str, str] = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
}


def check_hardware(precision: Precision, architecture: str, where: object) -> None:
    """Refuse a precision that the GPU has no arithmetic for.

    Args:
        precision: asked for.
        architecture: such as "sm89".
        where: to name in the error.

    Raises:
        BackendError: the GPU would only emulate it, or fail late.
    """
    if int(architecture.removeprefix("sm")) < _CAPABILITIES[precision]:
        raise BackendError(
            f"a GPU of architecture {architecture} has no {precision} arithmetic",
            where=where,
            remedy="use --precision fp32",
        )


def check_network(network: Any, precision: Precision, where: object) -> dict[str, int]:
    """Hold a parsed network's types against a precision, before the time is spent to build it.

    Convolutions and matrix products have to take and give the data type of the precision. For int8, those that take
    any quantised tensor have to take quantised tensors only, and there has to be one.

    Args:
        network: an INetworkDefinition, strongly typed.
        precision: asked for.
        where: the graph, to name in the error.

    Returns:
        How many layers there are of each kind and output type, such as {"CONVOLUTION HALF": 57}, without the layers
        that compute shapes.

    Raises:
        BackendError: a layer has another precision; the message names the first of them.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    counts: Counter[str] = Counter()
    for layer in layers:
        types = {tensor.dtype.name for tensor in _tensors(layer, outputs=True)}
        if not types <= {"INT32", "INT64", "BOOL"}:
            counts[f"{layer.type.name} {'/'.join(sorted(types))}"] += 1
    computing = [layer for layer in layers if layer.type.name in COMPUTING]
    if precision == "int8":
        wrong = _half_quantised(layers, computing, where)
    else:
        wrong = []
        for layer in computing:
            touched = {tensor.dtype.name for tensor in (*_tensors(layer), *_tensors(layer, outputs=True))}
            if touched != {_DATA_TYPES[precision]}:
                wrong.append(f"{layer.name} ({layer.type.name.lower()}, {' and '.join(sorted(touched))})")
    if wrong:
        raise BackendError(
            f"{len(wrong)} of {len(computing)} convolutions and matrix products are not {precision}: {_some(wrong)}",
            where=where,
            remedy=f"export the model again with --precision {precision}",
        )
    return dict(sorted(counts.items()))


def check_engine(information: str, precision: Precision, where: object, *, every: bool = True) -> dict[str, int]:
    """Hold what the engine inspector tells of a built engine against a precision.

    Args:
        information: the inspector's JSON of the whole engine.
        precision: asked for.
        where: the plan, to name in the error.
        every: whether every product has to be of this precision; or else one at least. Where a library fuses casts into
            a product on both sides, what it takes and gives says nothing of it.

    Returns:
        How many convolutions and matrix products the engine has, by precision of what they take and give. Empty where
        the inspector tells no types, as it does for regions that it gives no details of.

    Raises:
        BackendError: a convolution or matrix product neither takes nor gives numbers of this precision.
    """
    counts: Counter[str] = Counter()
    wrong = []
    for layer in _inspected(information):
        # One side is enough: a cast from or to an fp32 island may have been fused into the other.
        touched = {kind for side in ("Inputs", "Outputs") for tensor in layer.get(side, []) for kind in _types(tensor)}
        if not touched or not _computes(layer):
            continue
        counts[precision if precision in touched else "/".join(sorted(touched))] += 1
        if precision not in touched:
            wrong.append(f"{layer.get('Name', '?')} ({' and '.join(sorted(touched))})")
    # Some products stay as they are in int8: the quantiser leaves out what it would harm.
    if precision in counts and (precision == "int8" or not every):
        wrong = []
    if wrong:
        raise BackendError(
            f"the built engine is not {precision}: {len(wrong)} layers compute with other numbers: {_some(wrong)}",
            where=where,
            remedy="delete the plan so that it is built again, or use --precision fp32",
        )
    return dict(sorted(counts.items()))


def _inspected(information: str) -> list[dict[str, Any]]:
    try:
        layers = json.loads(information)["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return []
    return [layer for layer in layers if isinstance(layer, dict)]


def _half_quantised(layers: list[Any], computing: list[Any], where: object) -> list[str]:
    makers = {tensor.name: layer for layer in layers for tensor in _tensors(layer, outputs=True)}

    def quantised(tensor: Any) -> bool:
        layer = makers.get(tensor.name)
        # The parser reshapes weights, and transposes them, after they were dequantised.
        while layer is not None and layer.type.name in ("SHUFFLE", "IDENTITY"):
            layer = makers.get(layer.get_input(0).name)
        return layer is not None and layer.type.name == "DEQUANTIZE"

    taken = {layer.name: [quantised(tensor) for tensor in _tensors(layer)] for layer in computing}
    if not any(any(inputs) for inputs in taken.values()):
        raise BackendError(
            "no convolution or matrix product takes quantised numbers",
            where=where,
            remedy="export the model again with --precision int8",
        )
    return [f"{name} (quantised in part)" for name, inputs in taken.items() if any(inputs) and not all(inputs)]


def _tensors(layer: Any, *, outputs: bool = False) -> list[Any]:
    count, get = (layer.num_outputs, layer.get_output) if outputs else (layer.num_inputs, layer.get_input)
    return [tensor for i in range(count) if (tensor := get(i)) is not None]


def _computes(layer: dict[str, Any]) -> bool:
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    return any(word in kind for word in ("conv", "gemm", "matmul", "matrixmultiply", "einsum", "mha"))


def _types(tensor: dict[str, Any]) -> set[str]:
    text = f"{tensor.get('Format/Datatype', '')} {tensor.get('DataType', '')}".lower()
    return {_WORDS[word] for word in re.findall(r"[a-z]+\d*", text) if word in _WORDS}


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
