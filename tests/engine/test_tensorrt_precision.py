"""What the engine inspector says is held against the precision; its words are those that TensorRT 10 and 11 print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fgnet.engine.tensorrt_precision import check_engine, check_hardware
from fgnet.volumes.errors import BackendError

HALF = {"Name": "x", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
FLOAT = {"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP32"}
BYTES = {
    "Name": "z",
    "Dimensions": [1, 8, 4, 4],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
}
GRAY = {"Name": "gray", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear UInt8 format"}


def _layer(name: str, kind: str, inputs: list[Any], outputs: list[Any], parameters: str = "") -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "ParameterType": parameters, "Inputs": inputs, "Outputs": outputs}


def _check(precision: Any, *layers: dict[str, Any] | str) -> dict[str, int]:
    return check_engine(json.dumps({"Layers": list(layers), "Bindings": ["x"]}), precision, "a plan")


def test_an_fp16_engine_is_accepted_with_its_fp32_islands() -> None:
    counts = _check(
        "fp16",
        _layer("conv", "CaskConvolution", [HALF], [HALF], "Convolution"),
        _layer("gemm", "gemm", [{"Name": "a", "Format/Datatype": "Half"}], [{"Name": "b", "Format/Datatype": "Float"}]),
        _layer("norm", "kgen", [FLOAT], [FLOAT]),
        _layer("first", "CaskConvolution", [GRAY], [HALF]),
        _layer("copy", "Reformat", [FLOAT], [HALF]),
    )
    assert counts == {"fp16": 3}


def test_an_fp32_engine_that_calls_itself_fp16_is_refused_by_its_layers() -> None:
    layers = [_layer(f"conv{i}", "CaskConvolution", [FLOAT], [FLOAT]) for i in range(7)]
    with pytest.raises(BackendError, match=r"not fp16: 7 layers .* conv0 \(fp32\), .* and 2 more"):
        _check("fp16", *layers)


def test_where_casts_may_be_fused_one_product_is_enough() -> None:
    fused, half = (_layer("m", "CaskConvolution", [tensor], [tensor]) for tensor in (FLOAT, HALF))
    information = [json.dumps({"Layers": layers}) for layers in ([fused, half], [fused])]
    with pytest.raises(BackendError, match="not fp16: 1 layers"):
        check_engine(information[0], "fp16", "a plan")
    assert check_engine(information[0], "fp16", "a plan", every=False) == {"fp16": 1, "fp32": 1}
    with pytest.raises(BackendError, match="not fp16: 1 layers"):
        check_engine(information[1], "fp16", "a plan", every=False)


def test_types_are_read_where_tensorrt_11_writes_them() -> None:
    tensor = {"Name": "x", "DataType": "BFloat16", "Format": "Row major linear"}
    assert _check("bf16", _layer("gemm", "gemm", [tensor], [tensor])) == {"bf16": 1}
    with pytest.raises(BackendError, match=r"gemm \(bf16\)"):
        _check("fp16", _layer("gemm", "gemm", [tensor], [tensor]))


def test_an_int8_engine_may_keep_some_products_but_not_all() -> None:
    kept, quantised = (_layer("m", "CaskGemmConvolution", [tensor], [FLOAT]) for tensor in (FLOAT, BYTES))
    assert _check("int8", kept, quantised) == {"fp32": 1, "int8": 1}
    with pytest.raises(BackendError, match="not int8"):
        _check("int8", kept)


@pytest.mark.parametrize("information", ["", "{}", "not json", '{"Layers": ["conv1", "conv2"]}', "[]"])
def test_an_inspector_that_tells_no_types_proves_nothing_and_refuses_nothing(information: str) -> None:
    assert check_engine(information, "fp16", "a plan") == {}


def test_arithmetic_that_the_gpu_lacks_is_refused() -> None:
    check_hardware("fp16", "sm75", "a bundle")
    check_hardware("bf16", "sm120", "a bundle")
    check_hardware("fp32", "sm50", "a bundle")
    for precision, architecture in (("fp16", "sm52"), ("bf16", "sm75"), ("int8", "sm60")):
        with pytest.raises(BackendError, match=f"{architecture} has no {precision} arithmetic"):
            check_hardware(precision, architecture, "a bundle")  # type: ignore[arg-type]
