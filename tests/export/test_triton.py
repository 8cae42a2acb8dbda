from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")

from onnx import TensorProto, helper  # noqa: E402

from fgnet.engine.bundle import Bundle, Engine, sha256  # noqa: E402
from fgnet.export.triton import write_triton_repository  # noqa: E402
from fgnet.volumes.errors import BackendError, BundleError, FGNetError, OutputError  # noqa: E402

PATCH = (4, 8, 8)
# As the schema numbers them.
UINT8, FP32, BF16 = 2, 11, 14
KIND_GPU = 1

Make = Callable[..., Bundle]
Read = Callable[[Path, str], Any]
WithPlans = Callable[..., Bundle]


def ports(values: Any) -> list[tuple[str, int, list[int]]]:
    return [(value.name, value.data_type, list(value.dims)) for value in values]


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="session")
def config_of(parse_config: Callable[[str], Any]) -> Read:
    return lambda folder, model: parse_config((folder / model / "config.pbtxt").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def made(make_bundle: Make, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


def test_the_repository_holds_a_folder_per_model_and_the_files_are_told(
    made: Bundle, config_of: Read, tmp_path: Path
) -> None:
    files = write_triton_repository(made, tmp_path / "r", instances=3)
    expected = ["README.md"]
    for name in ("mine_decoder", "mine_encoder"):
        expected += [f"{name}/1/model.onnx", f"{name}/config.pbtxt"]
    assert [path.relative_to(tmp_path / "r").as_posix() for path in files] == sorted(expected)
    assert listing(tmp_path)[0] == "r"
    (group,) = config_of(tmp_path / "r", "mine_encoder").instance_group
    assert (group.count, group.kind) == (3, KIND_GPU)


def test_the_single_graph_is_served_under_the_plain_name(
    make_bundle: Make, make_graph: Callable[..., Any], reseal: Callable[..., Bundle], config_of: Read, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "b")
    gray, affinities = (TensorProto.UINT8, (1, 1, *PATCH)), (TensorProto.FLOAT, (1, 3, *PATCH))
    onnx.save(make_graph({"gray": gray}, "affinities", affinities), str(bundle.path / "whole.onnx"))
    bundle = reseal(bundle, single="whole.onnx")
    write_triton_repository(bundle, tmp_path / "r")
    config = config_of(tmp_path / "r", "mine")
    assert ports(config.input) == [("gray", UINT8, [1, 1, *PATCH])]
    assert ports(config.output) == [("affinities", FP32, [1, 3, *PATCH])]
    assert config.parameters["fgnet.precision"].string_value == "fp32"
    assert "`mine` is the whole network" in (tmp_path / "r" / "README.md").read_text()


def test_bfloat16_is_refused_for_onnxruntime_and_served_as_a_plan(
    with_plans: WithPlans, config_of: Read, tmp_path: Path
) -> None:
    bundle = with_plans(tmp_path / "b", ("10.3", "sm90"), features="BFLOAT16")
    with pytest.raises(BackendError, match="onnxruntime cannot take or give deep as bfloat16") as caught:
        write_triton_repository(bundle, tmp_path / "r")
    assert caught.value.remedy is not None
    assert "TensorRT" in caught.value.remedy
    assert listing(tmp_path)[0] == "b"
    assert not (tmp_path / "r").exists()
    write_triton_repository(bundle, tmp_path / "r", backend="tensorrt")
    assert ports(config_of(tmp_path / "r", "mine_encoder").output) == [("deep", BF16, [2, 5, 4, 4])]
    assert '"tritonclient[grpc]>=2.70"' in (tmp_path / "r" / "README.md").read_text()


@pytest.fixture(scope="session")
def with_plans(make_bundle: Make, reseal: Callable[..., Bundle]) -> WithPlans:
    """Writes a bundle that holds plans, in name, for versions and architectures."""

    def write(folder: Path, *kinds: tuple[str, str], backend: str = "tensorrt", features: str = "FLOAT") -> Bundle:
        bundle = make_bundle(folder, features)
        engines = []
        for version, architecture in kinds:
            for file in bundle.graphs().files:
                plan = f"{Path(file).stem}.{version}.{architecture}.plan"
                (folder / plan).write_bytes(plan.encode())
                engines.append(Engine(backend, version, architecture, "fp32", file, plan))
        return reseal(bundle, engines=tuple(engines))

    return write


def test_plans_are_served_by_tensorrt(with_plans: WithPlans, config_of: Read, tmp_path: Path) -> None:
    bundle = with_plans(tmp_path / "b", ("10.3", "sm90"))
    write_triton_repository(bundle, tmp_path / "r", backend="tensorrt")
    config = config_of(tmp_path / "r", "mine_decoder")
    assert config.backend == "tensorrt"
    assert (tmp_path / "r/mine_decoder/1/model.plan").read_bytes() == b"decoder.10.3.sm90.plan"
    assert not list((tmp_path / "r").rglob("*.onnx"))
    said = {key: value.string_value for key, value in config.parameters.items()}
    assert (said["fgnet.tensorrt"], said["fgnet.architecture"]) == ("10.3", "sm90")
    assert said["fgnet.plan_sha256"] == sha256(tmp_path / "r/mine_decoder/1/model.plan")
    assert "TensorRT 10.3, and its GPUs have to be sm90" in (tmp_path / "r" / "README.md").read_text()


def test_one_kind_of_plans_is_chosen(with_plans: WithPlans, tmp_path: Path) -> None:
    kinds = (("10.3", "sm80"), ("10.3", "sm90"), ("10.9", "sm90"))
    bundle = with_plans(tmp_path / "b", *kinds)
    with pytest.raises(BackendError, match=r"several kinds: TensorRT 10\.3 for sm80; TensorRT 10\.3 for sm90"):
        write_triton_repository(bundle, tmp_path / "r", backend="tensorrt")
    write_triton_repository(bundle, tmp_path / "r", backend="tensorrt", architecture="sm90", version="10.9")
    assert (tmp_path / "r/mine_encoder/1/model.plan").read_bytes() == b"encoder.10.9.sm90.plan"
    with pytest.raises(BackendError, match="no TensorRT plans of precision fp32 for sm75 "):
        write_triton_repository(bundle, tmp_path / "r2", backend="tensorrt", architecture="sm75")


@pytest.mark.parametrize("backend", [None, "tensorrt-rtx"])
def test_without_plans_of_tensorrt_it_says_to_build_them(
    with_plans: WithPlans, tmp_path: Path, backend: str | None
) -> None:
    bundle = with_plans(tmp_path / "b", *([] if backend is None else [("1.2", "sm90")]), backend=backend)
    with pytest.raises(BackendError, match=r"holds no TensorRT plans of precision fp32 \(build them"):
        write_triton_repository(bundle, tmp_path / "r", backend="tensorrt")


def test_a_plan_for_one_of_two_graphs_is_none(with_plans: WithPlans, tmp_path: Path) -> None:
    bundle = with_plans(tmp_path / "b", ("10.3", "sm90"))
    half = replace(bundle, manifest=replace(bundle.manifest, engines=bundle.manifest.engines[:1]))
    with pytest.raises(BackendError, match="holds no TensorRT plans"):
        write_triton_repository(half, tmp_path / "r", backend="tensorrt")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backend": "tensorrt", "device": "cpu"}, "TensorRT runs on GPUs only"),
        ({"backend": "pytorch"}, "backends are onnxruntime and tensorrt"),
        ({"device": "tpu"}, "devices gpu and cpu"),
        ({"instances": 0}, "no 0 instances"),
        ({"precision": "int8"}, "no graphs of precision int8"),
        *(({"name": name}, "a model cannot be called") for name in ("", "a/b", "..", "a b", "naïve", "a\n")),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    made: Bundle, tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(FGNetError, match=error):
        write_triton_repository(made, tmp_path / "r", **options)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "model"),
    [("nano-2.1", "nano-2.1"), ("neurons of layer 2/3", "neurons_of_layer_2_3"), ("../x", "x"), ("ü", "fgnet")],
)
def test_names_of_bundles_become_names_of_models(
    made: Bundle, config_of: Read, tmp_path: Path, name: str, model: str
) -> None:
    write_triton_repository(replace(made, manifest=replace(made.manifest, name=name)), tmp_path / "r")
    config = config_of(tmp_path / "r", f"{model}_decoder")
    assert config.parameters["fgnet.model"].string_value == name


def move_weights_out(folder: Path, location: str) -> None:
    """Gives the decoder weights that lie in another file."""
    model = onnx.load(str(folder / "decoder.onnx"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "weights"))
    last = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["weights"], ["added"], keepdims=0),
            helper.make_node("Add", [last.input[0], "added"], ["shifted"]),
        ]
    )
    last.input[0] = "shifted"
    model.graph.node.append(last)
    (folder / "decoder.onnx").unlink()
    (folder / location).parent.mkdir(exist_ok=True)
    onnx.save(model, str(folder / "decoder.onnx"), save_as_external_data=True, location=location, size_threshold=4096)


def test_weights_beside_a_graph_go_with_it(
    make_bundle: Make, reseal: Callable[..., Bundle], made: Bundle, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the model is loaded with the extra fgnet[cpu]")
    bundle = make_bundle(tmp_path / "b")
    move_weights_out(bundle.path, "decoder.onnx.data")
    files = write_triton_repository(reseal(bundle), tmp_path / "r")
    model = tmp_path / "r/mine_decoder/1/model.onnx"
    assert model.with_name("decoder.onnx.data") in files
    shutil.rmtree(tmp_path / "b")
    onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    write_triton_repository(made, tmp_path / "r", overwrite=True)
    assert not model.with_name("decoder.onnx.data").exists()


def test_weights_that_the_manifest_does_not_name_are_not_followed(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    move_weights_out(bundle.path, "deep/decoder.data")
    with pytest.raises(BundleError, match=r"does not name: deep/decoder\.data"):
        write_triton_repository(bundle, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_repository_that_exists_is_refused_and_left_alone(made: Bundle, tmp_path: Path) -> None:
    write_triton_repository(made, tmp_path / "r")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    with pytest.raises(OutputError, match="exists already"):
        write_triton_repository(made, tmp_path / "r")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == before


def test_overwriting_replaces_a_repository_whole(made: Bundle, tmp_path: Path) -> None:
    write_triton_repository(made, tmp_path / "r", name="old")
    write_triton_repository(made, tmp_path / "r", overwrite=True)
    assert [path.name for path in sorted((tmp_path / "r").iterdir())] == ["README.md", "mine_decoder", "mine_encoder"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def _file(path: Path, made: Bundle) -> Path:
    return path


def _folder(path: Path, made: Bundle) -> Path:
    path.mkdir()
    return path / "notes.txt"


def _readme(path: Path, made: Bundle) -> Path:
    path.mkdir()
    return path / "README.md"


def _model_of_someone_else(path: Path, made: Bundle) -> Path:
    (path / "other" / "1").mkdir(parents=True)
    return path / "other" / "config.pbtxt"


def _file_in_our_model(path: Path, made: Bundle) -> Path:
    write_triton_repository(made, path)
    return path / "mine_decoder" / "labels.txt"


def _version_in_our_model(path: Path, made: Bundle) -> Path:
    write_triton_repository(made, path)
    (path / "mine_decoder" / "2").mkdir()
    return path / "mine_decoder" / "2" / "model.onnx"


@pytest.mark.parametrize(
    "make", [_file, _folder, _readme, _model_of_someone_else, _file_in_our_model, _version_in_our_model]
)
def test_overwriting_never_deletes_what_fgnet_did_not_write(
    made: Bundle, tmp_path: Path, make: Callable[[Path, Bundle], Path]
) -> None:
    kept = make(tmp_path / "r", made)
    kept.write_text("dear")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="overwriting would delete it"):
        write_triton_repository(made, tmp_path / "r", overwrite=True)
    assert kept.read_text() == "dear"
    assert listing(tmp_path) == before


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def copyfile(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copyfile)
        yield


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_behind(made: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written.*No space left"):
        write_triton_repository(made, tmp_path / "r")
    assert listing(tmp_path) == []


def test_a_full_disk_leaves_an_earlier_repository(made: Bundle, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    write_triton_repository(made, tmp_path / "r", name="old")
    before = listing(tmp_path)
    request.getfixturevalue("full_disk")
    with pytest.raises(OutputError, match="No space left"):
        write_triton_repository(made, tmp_path / "r", overwrite=True)
    assert listing(tmp_path) == before


def test_a_repository_below_a_file_is_refused(made: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_triton_repository(made, tmp_path / "file" / "r")
