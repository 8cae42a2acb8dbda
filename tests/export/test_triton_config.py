from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

onnxruntime = pytest.importorskip("onnxruntime", reason="the models are run with the extra fgnet[cpu]")
pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")

from fgnet.engine.bundle import load_bundle, sha256  # noqa: E402
from fgnet.export.graph_file import Port  # noqa: E402
from fgnet.export.triton import write_triton_repository  # noqa: E402
from fgnet.export.triton_config import DATA_TYPES, ModelConfig  # noqa: E402

# As the schema numbers them.
TYPES = {"tensor(uint8)": 2, "tensor(float16)": 10, "tensor(float)": 11}
KIND_CPU = 2


def test_configurations_parse_and_say_what_the_models_take_and_give(
    tiny_bundle: Path, tmp_path: Path, parse_config: Callable[[str], Any]
) -> None:
    tiny, repository = load_bundle(tiny_bundle), tmp_path / "deep" / "r"
    write_triton_repository(tiny, repository, device="cpu", name="tiny")
    for name, file in (("tiny_encoder", tiny.graphs().encoder), ("tiny_decoder", tiny.graphs().decoder)):
        assert file is not None
        config = parse_config((repository / name / "config.pbtxt").read_text())
        session = onnxruntime.InferenceSession(
            str(repository / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        for found, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [(port.name, port.data_type, list(port.dims)) for port in found] == [
                (value.name, TYPES[value.type], value.shape) for value in values
            ]
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        assert [(group.count, group.kind) for group in config.instance_group] == [(1, KIND_CPU)]
        said = {key: value.string_value for key, value in config.parameters.items()}
        assert said["fgnet.graph_sha256"] == tiny.manifest.files[file] == sha256(repository / name / "1" / "model.onnx")
        assert json.loads(said["fgnet.patch"]) == list(tiny.manifest.patch)
        assert json.loads(said["fgnet.stride"]) == list(tiny.manifest.stride)
        assert json.loads(said["fgnet.voxel_sizes_nm"]) == [list(size) for size in tiny.manifest.voxel_sizes]
        assert said["fgnet.precision"] == tiny.graphs().precision
        (warmup,) = config.model_warmup
        assert warmup.batch_size == 1
        for port in config.input:
            given = warmup.inputs[port.name]
            assert (given.data_type, given.dims) == (port.data_type, port.dims)
            assert given.WhichOneof("input_data_type") == ("random_data" if port.name == "gray" else "zero_data")
        assert warmup.inputs.keys() == {port.name for port in config.input}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_in_a_configuration(parse_config: Callable[[str], Any], text: str) -> None:
    config = ModelConfig("m", "onnxruntime", (Port(text, "int8", (1,), 1),), (), parameters={text: text, "b": "c"})
    found = parse_config(config.to_text())
    assert found.input[0].name == text
    assert {key: value.string_value for key, value in found.parameters.items()} == {text: text, "b": "c"}
    assert found.model_warmup[0].inputs.keys() == {text}


def test_every_name_of_a_type_is_one_of_the_schema(parse_config: Callable[[str], Any]) -> None:
    ports = tuple(Port(dtype, dtype, (1,), 1) for dtype in DATA_TYPES)
    found = parse_config(ModelConfig("m", "tensorrt", ports, ports).to_text())
    assert sorted(port.data_type for port in found.output) == [*range(1, 13), 14]
