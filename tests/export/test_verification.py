"""What is compared where, and the comparison of a bundle that was copied."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
pytest.importorskip("onnxruntime", reason="graphs are run with the extra fgnet[cpu]")

from fgnet.engine import backends
from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.export import verification
from fgnet.export.verification import choices, reference_of, verify
from fgnet.network.checkpoint import load_checkpoint
from fgnet.volumes.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Every = tuple[Bundle, list[str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what this machine seems to have."""

    def have(*packages: str, gpu: bool = False, bf16: bool = False) -> None:
        monkeypatch.setattr(verification, "gpu_present", lambda: gpu)
        # Packages seem to be installed; which of them are variants for GPUs is asked of the real ones.
        monkeypatch.setattr(backends, "installed", lambda backend: backend in packages)
        monkeypatch.setattr(verification, "installed", lambda backend: backend in packages)
        monkeypatch.setattr(verification, "computes_bf16", lambda: bf16)

    return have


def chosen(bundle: Bundle, backends: Any = None) -> tuple[list[tuple[str, str, str]], list[str]]:
    said: list[str] = []
    found = choices(bundle, backends, said.append)
    return [(choice.backend, choice.precision, choice.device) for choice in found], said


def test_every_installed_backend_is_compared_at_every_precision_it_computes(
    every_precision: Every, machine: Any
) -> None:
    bundle = every_precision[0]
    machine("onnxruntime", "openvino", "torch")
    on_onnxruntime = [("onnxruntime", half, "cpu") for half in ("fp16", "fp32", "int8")]
    on_openvino = [("openvino", half, "cpu") for half in ("fp16", "fp32", "int8")]
    assert chosen(bundle) == ([*on_onnxruntime, *on_openvino], [])
    machine("onnxruntime", "openvino", bf16=True)
    assert chosen(bundle)[0] == [*on_onnxruntime, *on_openvino, ("openvino", "bf16", "cpu")]
    assert chosen(bundle, ("openvino",))[0] == [*on_openvino, ("openvino", "bf16", "cpu")]


def test_a_gpu_computes_every_precision_and_openvino_stays_on_the_cpu(every_precision: Every, machine: Any) -> None:
    machine("onnxruntime", "openvino", "tensorrt", gpu=True)
    found, _ = chosen(every_precision[0])
    halves = ("fp16", "fp32", "int8", "bf16")
    assert [entry for entry in found if entry[0] == "tensorrt"] == [("tensorrt", half, "cuda") for half in halves]
    assert {entry[2] for entry in found if entry[0] == "openvino"} == {"cpu"}


def test_onnxruntime_for_cpus_is_compared_on_the_cpu_of_a_machine_with_a_gpu(
    every_precision: Every, machine: Any
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is one for GPUs")
    machine("onnxruntime", gpu=True)
    found, _ = chosen(every_precision[0])
    assert {entry[2] for entry in found} == {"cpu"}
    assert "bf16" not in {entry[1] for entry in found}


def test_what_needs_a_gpu_is_named_where_it_was_asked_for_and_passed_over_where_not(
    every_precision: Every, machine: Any
) -> None:
    bundle = every_precision[0]
    machine("onnxruntime", "tensorrt", "tensorrt-rtx")
    found, said = chosen(bundle, ("tensorrt", "onnxruntime"))
    assert {entry[0] for entry in found} == {"onnxruntime"}
    assert said == [
        "tensorrt is not compared: it needs a GPU; fgnet-export --verify does it where there is one",
    ]
    assert chosen(bundle)[1] == []


def test_pytorch_is_not_compared_with_itself(every_precision: Every, machine: Any) -> None:
    machine("onnxruntime", "torch")
    assert chosen(every_precision[0], ("torch", "torch-compile")) == ([], [])


def test_an_fp32_bundle_is_compared_in_bf16_where_openvino_casts_it(tiny_bundle: Path, machine: Any) -> None:
    machine("openvino", bf16=True)
    assert chosen(load_bundle(tiny_bundle))[0] == [("openvino", "fp32", "cpu"), ("openvino", "bf16", "cpu")]


def verified(bundle: Bundle, backends: Any, gray: Any = None) -> tuple[list[Any], list[str]]:
    manifest, said = bundle.manifest, list[str]()
    network = load_checkpoint(bundle.checkpoint).build()
    gray = np.random.default_rng(0).integers(0, 256, manifest.patch, dtype=np.uint8) if gray is None else gray
    reference = reference_of(network, manifest.patch, manifest.stride, manifest.decoding, gray)
    ticks = itertools.count()
    return verify(bundle, network, reference, backends, said.append, lambda: float(next(ticks))), said


def test_a_bundle_that_was_copied_is_verified_at_all_its_precisions(every_precision: Every, tmp_path: Path) -> None:
    copied = load_bundle(shutil.copytree(every_precision[0].path, tmp_path / "copied"))
    reports, said = verified(copied, ("onnxruntime",))
    assert [(r.backend, r.precision, r.not_finite) for r in reports] == [
        ("onnxruntime", half, 0) for half in ("fp16", "fp32", "int8")
    ]
    assert said == [f"comparing onnxruntime {half}" for half in ("fp16", "fp32", "int8")]
    assert reports[1].passed
    assert reports[1].largest < reports[0].largest < reports[2].largest


def test_a_gpus_backend_that_does_not_start_leaves_the_comparison_of_others(
    every_precision: Every, machine: Any
) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed, and may start")
    bundle = every_precision[0]
    fp32 = Bundle(bundle.path, replace(bundle.manifest, graphs=(bundle.graphs("fp32"),)))
    machine("onnxruntime", "tensorrt", gpu=True)
    reports, said = verified(fp32, None)
    assert [report.backend for report in reports] == ["onnxruntime"]
    assert any(line.startswith("tensorrt fp32 is not compared: ") for line in said)
    with pytest.raises(BackendError, match="tensorrt"):
        verified(fp32, ("tensorrt",))


def test_graphs_of_another_network_fail_though_their_hashes_are_right(every_precision: Every, tmp_path: Path) -> None:
    import onnx

    bundle = every_precision[0]
    shutil.copytree(bundle.path, tmp_path / "b")
    model = onnx.load(str(tmp_path / "b" / "decoder.onnx"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bottom.project.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, str(tmp_path / "b" / "decoder.onnx"))
    fp32 = replace(bundle.manifest, graphs=(bundle.graphs("fp32"),))
    ((report,), _) = verified(Bundle(tmp_path / "b", fp32), ("onnxruntime",))
    assert not report.passed
    assert report.mean > 1e-3


def test_a_backend_that_was_asked_for_and_is_missing_is_an_error(
    every_precision: Every, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgnet.engine import backends

    monkeypatch.setattr(backends, "installed", lambda _: False)
    with pytest.raises(BackendError, match="backend openvino: openvino is not installed"):
        verified(every_precision[0], ("openvino",))


def test_overflow_in_any_block_of_the_crop_is_counted(every_precision: Every, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = every_precision[0]
    fp16 = Bundle(bundle.path, replace(bundle.manifest, graphs=(bundle.graphs("fp16"),)))
    # Graphs that overflow where gray is white, which is in the last block alone.
    monkeypatch.setattr(
        verification, "count_not_finite", lambda _, __, blocks: sum(int((block == 255).sum()) for block in blocks)
    )
    z, y, x = fp16.manifest.patch
    gray = np.random.default_rng(0).integers(0, 255, (z, y, x + fp16.manifest.stride[2]), dtype=np.uint8)
    gray[-1, -1, -1] = 255
    ((report,), _) = verified(fp16, ("onnxruntime",), gray)
    assert (report.blocks, report.not_finite, report.passed) == (2, 1, False)
