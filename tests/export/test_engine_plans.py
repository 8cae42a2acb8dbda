"""Plans of TensorRT for RTX, which builds them on machines without a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.engine.bundle import Bundle, Engine, load_bundle, sha256
from fgnet.export import engine_plans
from fgnet.export.bundle_writer import ExportOptions, export_bundle
from fgnet.export.engine_plans import DEFAULT_ARCHITECTURE, build_plans
from fgnet.volumes.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Exported = tuple[Bundle, list[str]]


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle with plans, and what was said; not to be changed."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="plans are built with the extra fgnet[rtx]")
    pytest.importorskip("openvino", reason="it is compared with the extra fgnet[cpu]")
    said: list[str] = []
    backends = ("onnxruntime", "openvino", "tensorrt-rtx")
    options = ExportOptions(precisions=("fp16",), backends=backends, architectures=("sm89", "sm75"))  # type: ignore[arg-type]
    output = tmp_path_factory.mktemp("plans") / "b"
    return export_bundle(small_checkpoint, output, options, say=said.append), said


def test_plans_stand_in_the_bundle_for_each_architecture_with_their_hashes(exported: Exported) -> None:
    bundle = load_bundle(exported[0].path)
    engines = bundle.manifest.engines
    assert [(e.backend, e.architecture, e.precision, e.graph, e.plan) for e in engines] == [
        ("tensorrt-rtx", arch, "fp16", "decoder.fp16.onnx", f"decoder.fp16.tensorrt-rtx.{arch}.plan")
        for arch in ("sm89", "sm75")
    ]
    for engine in engines:
        assert engine.version
        assert (bundle.path / engine.plan).stat().st_size > 1000
        assert bundle.manifest.files[engine.plan] == sha256(bundle.path / engine.plan)


def test_the_cpu_backends_are_compared_and_the_build_is_told(exported: Exported) -> None:
    bundle, said = exported
    assert {("onnxruntime", "fp16"), ("openvino", "fp16")} <= {
        (report["backend"], report["precision"]) for report in bundle.manifest.parity
    }
    assert "building decoder.fp16.onnx with tensorrt-rtx for sm75" in said
    assert [text for text in said if text.startswith("decoder.fp16.tensorrt-rtx.sm89.plan: ")]


def test_an_architecture_that_there_is_not_is_refused_and_nothing_is_left(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="plans are built with the extra fgnet[rtx]")
    pytest.importorskip("onnxruntime", reason="it is compared with the extra fgnet[cpu]")
    options = ExportOptions(backends=("onnxruntime", "tensorrt-rtx"), architectures=("sm12",))
    with pytest.raises(BackendError, match=r"sm12.*sm89") as caught:
        export_bundle(small_checkpoint, tmp_path / "b", options)
    assert caught.value.where == "backend tensorrt-rtx"
    assert not list(tmp_path.iterdir())


def test_without_gpu_and_architecture_the_most_common_one_is_built_for_and_said(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_plans, "gpu_present", lambda: False)
    bundle = Bundle(Path(shutil.copytree(exported[0].path, tmp_path / "b")), exported[0].manifest)
    said: list[str] = []
    (engine,) = build_plans(bundle, ("tensorrt-rtx",), (), said.append)
    assert isinstance(engine, Engine)
    assert engine.architecture == DEFAULT_ARCHITECTURE
    assert said[0].startswith(f"no GPU here: engines are built for {DEFAULT_ARCHITECTURE}")


@pytest.mark.parametrize("backends", [None, (), ("onnxruntime", "openvino")])
def test_engines_are_built_only_where_they_were_asked_for(tiny_bundle: Path, backends: tuple[str, ...] | None) -> None:
    said: list[str] = []
    bundle = load_bundle(tiny_bundle)
    assert build_plans(bundle, backends, ("sm89",), said.append) == ()  # type: ignore[arg-type]
    assert not said
